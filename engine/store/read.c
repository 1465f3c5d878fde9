/* store/read.c: reading entries' files, and who may have written them (file.h).
 *
 * A file's owner and mode are looked at before its contents, on the descriptor that the contents then come from.
 * Small entries are read in one call and verified each time, which costs less than a microsecond. Of large ones the
 * checksum is verified once in a process, and again when the file's identity or times have changed.
 *
 * The large parts of a large one are mapped, privately, for who asked for the value to look at. Touching a page that
 * somebody has cut off the file is a SIGBUS, so no byte that is looked at here or in the binding lies in such a page:
 * what is not a large part, and what only passes through (a pickle, a compressed part), is copied into memory of its
 * own. Verifying has to go through the mapping: reading 80 MB a second time for that would take 7.2 ms, where this
 * takes 4.8. For so long the file has a lease, which lets nobody open it for writing or cut it; where there is none to
 * be had (a file system over a network, a file that somebody has open for writing), all is read and nothing mapped.
 *
 * Called by folder.c and store.c.
 */
#include "store/file.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "store/compress.h"
#include "store/entry.h"
#include "store/hash.h"

/* A file changed twice within a tick of its clock keeps its times. So one as young as this is verified, but not taken
 * to be known. */
#define SETTLED_AFTER INT64_C(50000000) /* ns */

int file_check_owner(const struct stat *status)
{
    return status->st_uid == geteuid() && (status->st_mode & (S_IWGRP | S_IWOTH)) == 0 ? 0 : -EPERM;
}

int file_check_writable(int folder, const struct stat *status)
{
    /* root may, whatever the mode says */
    return (status->st_mode & S_IWUSR) != 0 || faccessat(folder, ".", W_OK, AT_EACCESS) == 0 ? 0 : -errno;
}

void file_name(const shoal_key *key, char name[FILE_NAME])
{
    static const char digits[] = "0123456789abcdef";
    for (size_t i = 0; i < sizeof key->bytes; i++) {
        name[2 * i] = digits[key->bytes[i] >> 4];
        name[2 * i + 1] = digits[key->bytes[i] & 15];
    }
    name[FILE_NAME - 1] = '\0';
}

static int hex_value(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

bool file_is_entry_name(const char *name, shoal_key *key)
{
    if (strlen(name) != FILE_NAME - 1)
        return false;
    for (size_t i = 0; i < SHOAL_DIGEST_SIZE; i++) {
        int high = hex_value(name[2 * i]), low = hex_value(name[2 * i + 1]);
        if (high < 0 || low < 0)
            return false;
        if (key != NULL)
            key->bytes[i] = (uint8_t)(high << 4 | low);
    }
    return true;
}

int64_t file_age(const struct stat *status)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_REALTIME, &now);
    return ((int64_t)now.tv_sec - status->st_ctim.tv_sec) * SHOAL_SECOND + now.tv_nsec - status->st_ctim.tv_nsec;
}

/* What identifies the contents of a file, as one word that is never 0; 0 if the file is too young to tell. */
static uint64_t fingerprint(const struct stat *status)
{
    if (file_age(status) < SETTLED_AFTER)
        return 0;
    uint64_t words[7] = {(uint64_t)status->st_dev,          (uint64_t)status->st_ino,
                         (uint64_t)status->st_size,         (uint64_t)status->st_mtim.tv_sec,
                         (uint64_t)status->st_mtim.tv_nsec, (uint64_t)status->st_ctim.tv_sec,
                         (uint64_t)status->st_ctim.tv_nsec};
    uint8_t digest[HASH_DIGEST];
    struct iovec piece = {words, sizeof words};
    hash_pieces(&piece, 1, digest);
    uint64_t word;
    memcpy(&word, digest, sizeof word);
    return word | 1;
}

static _Atomic uint64_t *slot_of(struct verified *verified, uint64_t word)
{
    return &verified->slots[(word >> 32) & (FILE_VERIFIED_SLOTS - 1)];
}

int file_read_at(int fd, void *data, size_t size, off_t offset)
{
    while (size != 0) {
        ssize_t got = pread(fd, data, size, offset);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return -errno;
        if (got == 0)
            return SHOAL_ECORRUPT;
        data = (char *)data + got;
        size -= (size_t)got;
        offset += got;
    }
    return 0;
}

int file_open_any(int folder, const char *name, int access)
{
    int fd = openat(folder, name, access | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY);
    if (fd >= 0)
        return fd; /* else: a link, a FIFO, a socket, a folder */
    return errno == ELOOP || errno == ENXIO || errno == ENODEV || errno == EISDIR ? SHOAL_ECORRUPT : -errno;
}

int file_check(const struct stat *status)
{
    int error = file_check_owner(status);
    return error == 0 && !S_ISREG(status->st_mode) ? SHOAL_ECORRUPT : error;
}

int file_open(int folder, const char *name, struct stat *status, int *out)
{
    int fd = file_open_any(folder, name, O_RDONLY);
    if (fd < 0)
        return fd;
    int error = fstat(fd, status) != 0 ? -errno : file_check(status);
    if (error != 0) {
        (void)close(fd);
        return error;
    }
    *out = fd;
    return 0;
}

static int open_entry(int folder, const char *name, struct stat *status, int *out)
{
    int error = file_open(folder, name, status, out);
    if (error == 0 && status->st_size < (off_t)sizeof(struct entry_header)) {
        (void)close(*out);
        error = SHOAL_ECORRUPT;
    }
    return error;
}

int file_expand(shoal_entry **inout)
{
    shoal_entry *packed = *inout, *entry = NULL;
    struct entry_header header;
    memcpy(&header, packed->data, sizeof header);
    if (header.version != ENTRY_VERSION_ENCODED)
        return 0;

    int error = -ENOMEM;
    shoal_part *parts = calloc(header.part_count != 0 ? header.part_count : 1, sizeof *parts);
    struct entry_header *head = malloc(entry_head_size(header.part_count));
    if (parts == NULL || head == NULL)
        goto done;
    for (uint32_t i = 0; i < header.part_count; i++) {
        struct entry_part part;
        error = entry_part_at(packed->data, packed->size, i, &part);
        if (error != 0)
            goto done;
        parts[i] = (shoal_part){NULL, (size_t)part.size, part.kind};
    }
    shoal_entry_numbers numbers = {.created = header.created, .cost = header.cost};
    memcpy(numbers.tag, header.tag, sizeof numbers.tag);
    uint64_t size;
    error = entry_lay_out(parts, header.part_count, header.key, &numbers, head, &size) != 0 ? SHOAL_ECORRUPT : 0;
    if (error != 0)
        goto done;
    error = -ENOMEM;
    if (size > SIZE_MAX - ENTRY_PAGE || (entry = calloc(1, sizeof *entry)) == NULL)
        goto done;
    *entry =
        (shoal_entry){.size = (size_t)size, .file_size = packed->file_size != 0 ? packed->file_size : packed->size};
    entry->data = entry->separate =
        aligned_alloc(ENTRY_PAGE, (entry->size + ENTRY_PAGE - 1) & ~(size_t)(ENTRY_PAGE - 1));
    if (entry->data == NULL)
        goto done;
    memcpy(entry->data, head, entry_head_size(header.part_count));
    error = 0;
    for (uint32_t i = 0; error == 0 && i < header.part_count; i++) {
        struct entry_part from, to;
        if (entry_part_at(packed->data, packed->size, i, &from) != 0 ||
            entry_part_at(entry->data, entry->size, i, &to) != 0 || from.size != to.size) {
            error = SHOAL_ECORRUPT;
            break;
        }
        const char *data = (const char *)packed->data + from.offset;
        char *place = (char *)entry->data + to.offset;
        if (from.encoding == 0)
            memcpy(place, data, (size_t)from.stored);
        else
            error = compress_expand(from.encoding, data, (size_t)from.stored, place, (size_t)from.size);
    }

done:
    free(parts);
    free(head);
    shoal_entry_close(packed);
    if (error != 0) {
        shoal_entry_close(entry);
        entry = NULL;
    }
    *inout = entry;
    return error;
}

shoal_entry *file_new_entry(size_t headroom, size_t size)
{
    size_t before = ((sizeof(shoal_entry) + ENTRY_ALIGNMENT - 1) & ~(size_t)(ENTRY_ALIGNMENT - 1)) + headroom;
    size_t all = (before + size + ENTRY_ALIGNMENT - 1) & ~(size_t)(ENTRY_ALIGNMENT - 1);
    shoal_entry *entry = aligned_alloc(ENTRY_ALIGNMENT, all);
    if (entry != NULL)
        *entry = (shoal_entry){.data = (char *)entry + before, .size = size};
    return entry;
}

static int read_small(int fd, size_t size, const shoal_key *key, shoal_entry **out)
{
    shoal_entry *entry = file_new_entry(0, size);
    if (entry == NULL)
        return -ENOMEM;
    int error = file_read_at(fd, entry->data, size, 0);
    if (error == 0)
        error = entry_parse(entry->data, size, key->bytes, true);
    if (error != 0) {
        free(entry);
        return error;
    }
    *out = entry;
    return 0;
}

/* Keep others from writing to the file or cutting it: until `let_go` they wait. False: that cannot be. Those who wait
 * are told of by a signal, for which we take one that is ignored where nobody asks for it. */
static bool hold_still(int fd)
{
    return fcntl(fd, F_SETSIG, SIGURG) == 0 && fcntl(fd, F_SETLEASE, F_RDLCK) == 0;
}

static void let_go(int fd)
{
    (void)fcntl(fd, F_SETLEASE, F_UNLCK); /* not left to close: a child of fork may have the descriptor, too */
}

/* Where what may be mapped begins, behind the first `copied` parts: at a large part. `entry` has its head read. */
static size_t find_views(const shoal_entry *entry, uint32_t copied)
{
    struct entry_header header;
    struct entry_part part;
    memcpy(&header, entry->data, sizeof header);
    for (uint32_t i = copied; entry->mapped && header.version == ENTRY_VERSION && i < header.part_count; i++)
        if (entry_part_at(entry->data, entry->size, i, &part) == 0 && part.stored >= ENTRY_PAGE_PART &&
            part.offset % ENTRY_PAGE == 0)
            return (size_t)part.offset;
    return entry->size;
}

static size_t page_end(size_t size)
{
    return (size + ENTRY_PAGE - 1) & ~(size_t)(ENTRY_PAGE - 1);
}

/* Have memory of the entry's own, in place of the file's pages, from `from` (a page) to `to`. */
static int own_pages(const shoal_entry *entry, size_t from, size_t to)
{
    if (!entry->mapped || from >= to)
        return 0;
    void *place = mmap((char *)entry->data + from, page_end(to) - from, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    return place == MAP_FAILED ? -EAGAIN : 0; /* too many mappings */
}

/* Memory for a large entry, with its head read into it. It begins as a mapping of the file, for which the kernel takes
 * addresses that let it use large pages. */
static int begin_large(int fd, size_t size, bool mapped, shoal_entry *entry)
{
    struct entry_header header;
    int error = file_read_at(fd, &header, sizeof header, 0);
    if (error != 0)
        return error;
    size_t head = entry_head_size(header.part_count);
    if (header.part_count > ENTRY_PARTS || head > size)
        return SHOAL_ECORRUPT;
    entry->size = size;
    if (mapped)
        entry->data = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, fd, 0);
    entry->mapped = mapped && entry->data != MAP_FAILED;
    if (!entry->mapped) { /* too many mappings, or a file system that has none */
        entry->data = entry->separate = aligned_alloc(ENTRY_PAGE, page_end(size));
        if (entry->separate == NULL)
            return -ENOMEM;
    }
    error = own_pages(entry, 0, head);
    return error != 0 ? error : file_read_at(fd, entry->data, head, 0);
}

/* Read what is before the views, which begin at `views` if they are to be mapped, and what is behind the last whole
 * page. */
static int fill_large(int fd, size_t views, bool ahead, const shoal_entry *entry)
{
    struct entry_header header;
    char *data = entry->data;
    memcpy(&header, data, sizeof header);
    size_t head = entry_head_size(header.part_count), size = entry->size;
    size_t behind = views < size ? size & ~(size_t)(ENTRY_PAGE - 1) : size;
    if (ahead)
        (void)madvise(data + views, behind - views, MADV_WILLNEED);
    int error = own_pages(entry, page_end(head), views);
    if (error == 0 && views < size)
        error = own_pages(entry, behind, size);
    if (error == 0)
        error = file_read_at(fd, data + head, views - head, (off_t)head);
    return error != 0 || views == size ? error : file_read_at(fd, data + behind, size - behind, (off_t)behind);
}

/* Read a large entry into `entry`, of no value yet. -EAGAIN: that is to be tried with nothing mapped. */
static int read_parts(int fd, struct stat *status, const shoal_key *key, struct verified *verified, uint32_t copied,
                      shoal_entry *entry)
{
    int error = begin_large(fd, (size_t)status->st_size, copied != FILE_ALL, entry);
    if (error != 0)
        return error;
    size_t views = find_views(entry, copied);
    uint64_t word = fingerprint(status);
    /* relaxed: the word says all there is to say; nothing else is read on its strength but the file */
    bool known = word != 0 && atomic_load_explicit(slot_of(verified, word), memory_order_relaxed) == word;
    bool held = !known && views < entry->size && hold_still(fd);
    if (held) { /* it may have been cut before that */
        if (fstat(fd, status) != 0)
            error = -errno;
        else if ((size_t)status->st_size != entry->size)
            error = SHOAL_ECORRUPT;
        word = fingerprint(status);
    } else if (!known) {
        views = entry->size;
    }
    if (error == 0)
        error = fill_large(fd, views, held, entry);
    if (error == 0 && known && (fstat(fd, status) != 0 || fingerprint(status) != word))
        error = -EAGAIN; /* somebody changed it while it was read */
    if (error == 0)
        error = entry_parse(entry->data, entry->size, key->bytes, !known);
    if (held)
        let_go(fd);
    if (error == 0 && !known && word != 0)
        atomic_store_explicit(slot_of(verified, word), word, memory_order_relaxed);
    return error;
}

static int read_large(int fd, struct stat *status, const shoal_key *key, struct verified *verified, uint32_t copied,
                      shoal_entry **out)
{
    int error = -EAGAIN;
    for (int attempt = 0; error == -EAGAIN && attempt < 4; attempt++) {
        shoal_entry *entry = calloc(1, sizeof *entry);
        if (entry == NULL)
            return -ENOMEM;
        error = read_parts(fd, status, key, verified, copied, entry);
        if (error == 0)
            *out = entry;
        else
            shoal_entry_close(entry);
        copied = FILE_ALL;
    }
    return error;
}

int file_read(int folder, const char *name, const shoal_key *key, struct verified *verified, uint32_t copied,
              shoal_entry **out)
{
    struct stat status = {0};
    int fd = -1;
    int error = open_entry(folder, name, &status, &fd);
    if (error != 0)
        return error;
    if (status.st_size <= FILE_READ_LIMIT)
        error = read_small(fd, (size_t)status.st_size, key, out);
    else
        error = read_large(fd, &status, key, verified, copied, out);
    (void)close(fd);
    return error != 0 ? error : file_expand(out);
}

static void numbers_from(const struct entry_header *header, shoal_entry_numbers *out)
{
    *out = (shoal_entry_numbers){
        .created = header->created, .cost = header->cost, .size = header->file_size, .parts = header->part_count};
    memcpy(out->tag, header->tag, sizeof out->tag);
}

int file_check_numbers(const struct entry_header *header, uint64_t size, const shoal_key *key, shoal_entry_numbers *out)
{
    if (memcmp(header->magic, ENTRY_MAGIC, sizeof header->magic) != 0 || !entry_is_known_version(header->version) ||
        header->byte_order != ENTRY_BYTE_ORDER || header->file_size != size ||
        memcmp(header->key, key->bytes, sizeof header->key) != 0)
        return SHOAL_ECORRUPT;
    numbers_from(header, out);
    return 0;
}

int file_read_numbers(int folder, const char *name, const shoal_key *key, shoal_entry_numbers *out)
{
    struct stat status = {0};
    int fd = -1;
    *out = (shoal_entry_numbers){0};
    int error = open_entry(folder, name, &status, &fd);
    if (error != 0)
        return error;
    struct entry_header header;
    error = file_read_at(fd, &header, sizeof header, 0);
    (void)close(fd);
    out->size = (uint64_t)status.st_size;
    if (error != 0)
        return error;
    return file_check_numbers(&header, out->size, key, out);
}

void shoal_entry_about(const shoal_entry *entry, shoal_entry_numbers *out)
{
    struct entry_header header;
    memcpy(&header, entry->data, sizeof header);
    numbers_from(&header, out);
    out->size = entry->file_size != 0 ? entry->file_size : entry->size;
}

int shoal_entry_part(const shoal_entry *entry, uint32_t index, shoal_part *out)
{
    struct entry_header header;
    struct entry_part part;
    memcpy(&header, entry->data, sizeof header);
    if (index >= header.part_count || index >= ENTRY_PARTS)
        return -EINVAL;
    int error = entry_part_at(entry->data, entry->size, index, &part);
    if (error != 0)
        return error;
    *out = (shoal_part){(char *)entry->data + part.offset, (size_t)part.stored, part.kind};
    return 0;
}

void shoal_entry_close(shoal_entry *entry)
{
    if (entry == NULL)
        return;
    if (entry->mapped)
        (void)munmap(entry->data, entry->size);
    free(entry->separate);
    free(entry);
}
