/* store/shelf.c: a store's shelves in memory, and reading them (shelf.h).
 *
 * The guard is a word that names the process whose thread is at work on a shelf's descriptor and index. It is held for
 * some microseconds, never while waiting for another process. A child of fork may find it held by its parent, whose
 * thread it does not have: it takes it over, and forgets the index, which may be half changed. So a fork finds nothing
 * locked. Writers are in shelf_write.c. Called by folder.c and store.c.
 */
#include "store/shelf.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "store/entry.h"
#include "store/file.h"
#include "store/inherit.h"

#define CHUNK ((size_t)256 << 10)     /* bytes that are read at once to be searched for records */
#define CHUNK_SMALL ((size_t)8 << 10) /* the same, without an allocation */
#define YIELDS 20                     /* before a thread that waits for another's guard sleeps */
#define SLEEP 50000                   /* ns */
#define ATTEMPTS 4                    /* how often what others remove or replace meanwhile is looked for again */

/* ---- all of a store's ---- */

static _Atomic(struct shelf *) *list_of(struct shelves *shelves, const char *name)
{
    uint32_t hash = 0;
    for (const char *c = name; *c != '\0'; c++)
        hash = hash * 31 + (uint8_t)*c;
    return &shelves->lists[(hash ^ hash >> 12) & (SHELF_TABLE - 1)];
}

struct shelf *shelf_of(struct shelves *shelves, const char *name)
{
    _Atomic(struct shelf *) *list = list_of(shelves, name);
    struct shelf *first = atomic_load_explicit(list, memory_order_acquire); /* acquire: what is in it was written */
    struct shelf *made = NULL, *known = NULL;
    for (;;) {
        for (struct shelf *shelf = first; shelf != known; shelf = shelf->next) {
            if (strcmp(shelf->name, name) == 0) {
                free(made);
                return shelf;
            }
        }
        known = first;
        if (made == NULL && (made = calloc(1, sizeof *made + strlen(name) + 1)) == NULL)
            return NULL;
        inherit_prepare();
        made->fd = -1;
        made->shelves = shelves;
        memcpy(made->name, name, strlen(name) + 1);
        made->next = first;
        /* acq_rel: publishes what is in it; another thread's that came first is seen whole */
        if (atomic_compare_exchange_strong_explicit(list, &first, made, memory_order_acq_rel, memory_order_acquire))
            return made;
    }
}

void shelf_hold(struct shelf *shelf)
{
    (void)atomic_fetch_add_explicit(&shelf->users, 1, memory_order_relaxed); /* a count, on which no memory rests */
}

void shelf_rest(struct shelf *shelf, bool held)
{
    if (held)
        (void)atomic_fetch_sub_explicit(&shelf->users, 1, memory_order_relaxed);
    shelf_enter(shelf);
    if (!shelf->kept && atomic_load_explicit(&shelf->users, memory_order_relaxed) == 0)
        shelf_forget(shelf);
    shelf_leave(shelf);
}

void shelves_close(struct shelves *shelves)
{
    for (uint32_t i = 0; i < SHELF_TABLE; i++) {
        struct shelf *next, *shelf = atomic_load_explicit(&shelves->lists[i], memory_order_acquire);
        for (; shelf != NULL; shelf = next) {
            next = shelf->next;
            shelf_enter(shelf);
            shelf_forget(shelf);
            shelf_leave(shelf);
            free(shelf);
        }
    }
}

/* ---- its file ---- */

static bool is_same(const struct shelf *shelf, const struct stat *status)
{
    return (uint64_t)status->st_dev == shelf->device && (uint64_t)status->st_ino == shelf->inode;
}

/* Whether the number still stands for what it did: a daemon closes all its descriptors. */
static bool is_ours(const struct shelf *shelf, struct stat *status)
{
    return shelf->fd >= 0 && fstat(shelf->fd, status) == 0 && is_same(shelf, status);
}

static void close_file(struct shelf *shelf)
{
    struct stat status;
    if (is_ours(shelf, &status))
        (void)close(shelf->fd);
    shelf->fd = -1;
    if (shelf->kept)
        (void)atomic_fetch_sub_explicit(&shelf->shelves->kept, 1, memory_order_relaxed);
    shelf->kept = false;
}

/* Whether a file that was opened may stay so. At worst some threads find the last place free at once. */
static bool keep_file(struct shelf *shelf)
{
    if (atomic_load_explicit(&shelf->shelves->kept, memory_order_relaxed) >= SHELF_KEPT)
        return false;
    (void)atomic_fetch_add_explicit(&shelf->shelves->kept, 1, memory_order_relaxed);
    return true;
}

/* ---- the guard ---- */

void shelf_enter(struct shelf *shelf)
{
    int cancelling;
    uint32_t own = inherit_generation();
    (void)pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancelling); /* a cancelled thread would keep the guard */
    for (int turn = 0;; turn++) {
        uint32_t holder = 0;
        /* acquire: what the one before did with the shelf is seen */
        if (atomic_compare_exchange_strong_explicit(&shelf->guard, &holder, own, memory_order_acquire,
                                                    memory_order_relaxed))
            break;
        if (holder != own && atomic_compare_exchange_strong_explicit(&shelf->guard, &holder, own, memory_order_acquire,
                                                                     memory_order_relaxed)) {
            shelf->index = (struct index){0}; /* not freed: it may be half changed */
            shelf->scanned = shelf->tail = 0;
            break;
        }
        struct timespec rest = {.tv_nsec = SLEEP};
        if (turn < YIELDS)
            (void)sched_yield();
        else
            (void)nanosleep(&rest, NULL);
    }
    shelf->cancelling = cancelling;
}

void shelf_leave(struct shelf *shelf)
{
    int cancelling = shelf->cancelling;
    if (!shelf->kept)
        close_file(shelf); /* a program may have thousands of functions, and files of its own to open */
    atomic_store_explicit(&shelf->guard, 0, memory_order_release); /* release: pairs with the acquire of the next */
    (void)pthread_setcancelstate(cancelling, NULL);
}

/* ---- the index ---- */

static void forget_contents(struct shelf *shelf)
{
    index_clear(&shelf->index);
    shelf->scanned = shelf->tail = shelf->futile = 0;
}

void shelf_forget(struct shelf *shelf)
{
    close_file(shelf);
    forget_contents(shelf);
}

uint64_t shelf_length(const struct shelf *shelf, uint64_t size)
{
    return shelf->lost && !shelf->told ? size + RECORD_ALIGNMENT : size;
}

uint64_t shelf_waste(const struct shelf *shelf)
{
    uint64_t used = sizeof(struct shelf_head) + shelf->index.bytes;
    return shelf->scanned > used ? shelf->scanned - used : 0;
}

/* Whether there is no good header at `offset` still, if one looks twice: a header that somebody writes over, or a tail
 * that is cut off, may be seen half changed. */
static bool is_damaged(const struct shelf *shelf, uint64_t offset)
{
    struct record_header header;
    (void)sched_yield();
    return file_read_at(shelf->fd, &header, sizeof header, (off_t)offset) == 0 && !record_is_good(&header, shelf->mark);
}

/* Enter what is in `data`, the file's bytes from `scanned` on, into the index. 0, -EAGAIN: look again; or -ENOMEM. */
static int scan_chunk(struct shelf *shelf, const uint8_t *data, size_t size, uint64_t end)
{
    uint64_t start = shelf->scanned;
    for (;;) {
        struct record record;
        size_t at = (size_t)(shelf->scanned - start);
        enum record_kind kind = record_at(data, size, at, end - shelf->scanned, shelf->mark, &record);
        if (kind == RECORD_NONE)
            return 0;
        if (kind == RECORD_DAMAGED && !is_damaged(shelf, shelf->scanned))
            return -EAGAIN;
        if (kind != RECORD_REMOVED) {
            struct index_place place = {.block = (uint32_t)(shelf->scanned / RECORD_ALIGNMENT),
                                        .span = record.span,
                                        .size = record.size,
                                        .anonymous = record.anonymous};
            memcpy(place.key.bytes, record.key, sizeof place.key.bytes);
            int error = index_add(&shelf->index, &place);
            if (error != 0)
                return error;
        }
        shelf->tail = kind != RECORD_DAMAGED ? shelf->scanned : 0;
        shelf->scanned += record.span;
    }
}

/* Whether the last record that is known is still there: somebody may have written the file anew, in place. */
static bool is_continued(const struct shelf *shelf)
{
    struct record_header header;
    return shelf->tail == 0 || (file_read_at(shelf->fd, &header, sizeof header, (off_t)shelf->tail) == 0 &&
                                record_is_good(&header, shelf->mark) && shelf->tail + header.span == shelf->scanned);
}

/* Read the head, and see whether the file is shorter than it says. Its size, which `end` becomes, is looked at
 * afterwards: whoever wrote that length had made the file so long before. So it does not matter how many append
 * meanwhile. */
static int read_head(struct shelf *shelf, uint64_t *end)
{
    uint64_t length = UINT64_MAX;
    for (int attempt = 0; length == UINT64_MAX && attempt < ATTEMPTS; attempt++) {
        struct shelf_head head;
        if (attempt != 0)
            (void)sched_yield(); /* somebody may have been writing the length */
        int error = file_read_at(shelf->fd, &head, sizeof head, 0);
        if (error == 0)
            error = record_read_head(&head, shelf->mark);
        if (error != 0)
            return error;
        length = record_read_length(&head, shelf->mark);
    }
    struct stat status;
    if (fstat(shelf->fd, &status) != 0)
        return -errno;
    *end = (uint64_t)status.st_size;
    shelf->lost = length > *end;
    if (!shelf->lost)
        shelf->told = false;
    return 0;
}

/* Enter what was appended, up to the file's `end`. */
static int catch_up(struct shelf *shelf, uint64_t end)
{
    if (end < shelf->scanned || !is_continued(shelf))
        forget_contents(shelf); /* or cut it short */
    if (shelf->scanned == 0 || shelf->lost) {
        int error = read_head(shelf, &end);
        if (error != 0)
            return error;
        if (shelf->scanned == 0)
            shelf->scanned = sizeof(struct shelf_head);
        if (end < shelf->scanned)
            end = shelf->scanned; /* cut this moment: seen by the next */
    }
    uint8_t small[CHUNK_SMALL], *data = small;
    size_t capacity = sizeof small;
    int error = 0;
    if (end - shelf->scanned > sizeof small && (data = malloc(capacity = CHUNK)) == NULL)
        return -ENOMEM;
    for (int attempt = 0; error == 0 && end - shelf->scanned >= RECORD_ALIGNMENT;) {
        uint64_t before = shelf->scanned;
        size_t size = end - before < capacity ? (size_t)(end - before) : capacity;
        error = file_read_at(shelf->fd, data, size, (off_t)before);
        if (error == 0)
            error = scan_chunk(shelf, data, size, end);
        if (error == 0 && shelf->scanned == before)
            break; /* the beginning of a record, whose writer is at work or dead */
        if ((error == SHOAL_ECORRUPT || error == -EAGAIN) && ++attempt < ATTEMPTS) { /* cut off, or half changed */
            struct stat status;
            error = fstat(shelf->fd, &status) != 0 ? -errno : 0;
            end = error == 0 && (uint64_t)status.st_size > shelf->scanned ? (uint64_t)status.st_size : shelf->scanned;
        }
    }
    if (data != small)
        free(data);
    return error == SHOAL_ECORRUPT || error == -EAGAIN ? -EIO : error; /* the head is sound */
}

/* Whether the file that was opened is the one that the index is of. An inode's number comes back, a mark does not. */
static bool is_known(const struct shelf *shelf, int fd, const struct stat *status)
{
    struct shelf_head head;
    uint8_t mark[RECORD_MARK];
    return shelf->scanned != 0 && is_same(shelf, status) && file_read_at(fd, &head, sizeof head, 0) == 0 &&
           record_read_head(&head, mark) == 0 && memcmp(mark, shelf->mark, sizeof mark) == 0;
}

int shelf_attach(struct shelf *shelf, int folder, bool check)
{
    struct stat status, there;
    bool good = is_ours(shelf, &status) && status.st_nlink != 0;
    if (good && check)
        good = fstatat(folder, SHELF_NAME, &there, AT_SYMLINK_NOFOLLOW) == 0 && is_same(shelf, &there);
    int error = 0;
    if (!good) {
        int fd = -1;
        close_file(shelf);
        error = file_open(folder, SHELF_NAME, &status, &fd);
        if (error != 0 || !is_known(shelf, fd, &status))
            forget_contents(shelf);
        if (error != 0)
            return error;
        shelf->fd = fd;
        shelf->kept = keep_file(shelf);
        shelf->device = (uint64_t)status.st_dev;
        shelf->inode = (uint64_t)status.st_ino;
        shelf->owner = status.st_uid;
        shelf->mode = status.st_mode;
    } else if (status.st_uid != shelf->owner || status.st_mode != shelf->mode) {
        error = file_check_owner(&status);
    }
    if (error == 0 && status.st_size > (off_t)SHELF_MOST) {
        forget_contents(shelf);
        error = SHOAL_ECORRUPT; /* not ours: a place in the index could not say where in it something is */
    }
    if (error == 0 && (shelf->scanned == 0 || shelf->lost || (uint64_t)status.st_size != shelf->scanned))
        error = catch_up(shelf, (uint64_t)status.st_size);
    return error;
}

/* ---- reading ---- */

/* Read the record that is said to be at a place into an entry. -ENOENT: it was removed; SHOAL_ECORRUPT: it is not as it
 * was put, or not there any more. */
static int read_record(const struct shelf *shelf, const struct index_place *place, shoal_entry *entry)
{
    struct record_header header;
    uint8_t *start = (uint8_t *)entry->data - sizeof header;
    int error = file_read_at(shelf->fd, start, place->span, (off_t)place->block * RECORD_ALIGNMENT);
    if (error != 0)
        return error;
    memcpy(&header, start, sizeof header);
    if (!record_is_good(&header, shelf->mark))
        return SHOAL_ECORRUPT;
    if (header.size == 0)
        return -ENOENT;
    if (header.size != place->size || memcmp(header.key, place->key.bytes, sizeof header.key) != 0)
        return SHOAL_ECORRUPT;
    for (uint32_t at = (uint32_t)sizeof header + place->size; at < place->span; at++)
        if (start[at] != 0)
            return SHOAL_ECORRUPT; /* beyond the entry's checksum, and no less a change */
    return entry_parse(entry->data, place->size, place->key.bytes, true);
}

int shelf_check_place(const struct shelf *shelf, const struct index_place *place)
{
    if (place->size == 0)
        return SHOAL_ECORRUPT;
    shoal_entry *entry = file_new_entry(sizeof(struct record_header), place->size);
    if (entry == NULL)
        return -ENOMEM;
    int error = read_record(shelf, place, entry);
    shoal_entry_close(entry);
    return error;
}

/* The entry as it lies on the shelf, and the bytes that it takes there, also of a damaged one. */
static int read_entry(struct shelf *shelf, int folder, bool check, const shoal_key *key, shoal_entry **out,
                      uint32_t *span)
{
    int error = -ENOENT;
    for (int attempt = 0; attempt < ATTEMPTS; attempt++) {
        error = shelf_attach(shelf, folder, check);
        if (error != 0)
            return error;
        struct index_place *place = index_find(&shelf->index, key->bytes);
        if (place == NULL && shelf->index.anonymous != 0 && attempt == 0) {
            forget_contents(shelf); /* it may have been there; unless that only looked so, as a writer was at work */
            continue;
        }
        if (place == NULL) /* it may also have been in what was cut off */
            return shelf->lost || shelf->index.anonymous != 0 ? SHOAL_ECORRUPT : -ENOENT;
        *span = place->span;
        error = SHOAL_ECORRUPT;
        if (place->size != 0) {
            shoal_entry *entry = file_new_entry(sizeof(struct record_header), place->size);
            if (entry == NULL)
                return -ENOMEM;
            entry->file_size = place->span;
            error = read_record(shelf, place, entry);
            if (error == 0) {
                *out = entry;
                return 0;
            }
            shoal_entry_close(entry);
        }
        if (error == -ENOENT) /* if it was replaced, what replaced it was there before it went */
            (void)index_remove(&shelf->index, place, false);
        else if (error == SHOAL_ECORRUPT && attempt == 0)
            forget_contents(shelf); /* the file may have been changed in place: another's copy, or sound again */
        else
            return error;
    }
    return error;
}

int shelf_get(struct shelf *shelf, int folder, bool check, const shoal_key *key, uint64_t *state, shoal_entry **out)
{
    uint32_t span;
    shelf_enter(shelf);
    int error = read_entry(shelf, folder, check, key, out, &span);
    memcpy(state, shelf->mark, sizeof *state);
    *state = shelf->scanned != 0 ? *state + shelf->scanned : 0;
    shelf_leave(shelf);
    return error != 0 ? error : file_expand(out);
}

int shelf_read_numbers(struct shelf *shelf, int folder, const shoal_key *key, shoal_entry_numbers *out)
{
    uint32_t span = 0;
    shoal_entry *entry;
    *out = (shoal_entry_numbers){0};
    shelf_enter(shelf);
    int error = read_entry(shelf, folder, false, key, &entry, &span);
    shelf_leave(shelf);
    if (error == 0) {
        shoal_entry_about(entry, out);
        shoal_entry_close(entry);
    }
    out->size = span;
    return error;
}

int shelf_keys(struct shelf *shelf, int folder, bool fresh, shoal_key **out, size_t *count, bool *lost)
{
    shelf_enter(shelf);
    if (fresh)
        forget_contents(shelf);
    int error = shelf_attach(shelf, folder, true);
    shoal_key *keys = error == 0 ? malloc((shelf->index.count + 1) * sizeof *keys) : NULL;
    if (error == 0 && keys == NULL)
        error = -ENOMEM;
    if (error == 0) {
        size_t cursor = 0;
        *count = 0;
        for (const struct index_place *place; (place = index_next(&shelf->index, &cursor)) != NULL;)
            keys[(*count)++] = place->key;
        *out = keys;
        *lost = shelf->lost;
    }
    shelf_leave(shelf);
    return error;
}

void shelf_note_told(struct shelf *shelf)
{
    shelf_enter(shelf);
    shelf->told =
        shelf->lost || shelf->index.anonymous != 0 || shelf->scanned == 0; /* else it is one entry that is damaged */
    shelf_leave(shelf);
}

bool shelf_has(struct shelf *shelf, const shoal_key *key)
{
    shelf_enter(shelf);
    bool has = index_find(&shelf->index, key->bytes) != NULL;
    shelf_leave(shelf);
    return has;
}
