/* store/write.c: writing an entry so that it appears whole, and removing one (file.h).
 *
 * The file is written without a name (O_TMPFILE) and linked in when it is complete: a writer that is killed leaves
 * nothing. Where there is an older one it is linked in beside that, as NAME.new, and renamed over it, so that there is
 * always the one or the other. Several who replace the same entry use the same name: whose file a rename moves is of no
 * account, all are whole and as new; and who finds his gone looks whether it was that, or writes it anew, as a file
 * that lost its last name gets no other. So what a dead writer left may be removed by anybody at any time, and is by
 * the next who replaces, reads or removes the entry, clears the folder, reduces the store, or verifies it and removes
 * what is damaged. File systems that lack unnamed files get a temporary name in a folder of their own and a rename; the
 * writer holds a lock (flock) on the temporary file, so that whoever comes later can tell, and remove, what a dead
 * writer left. Called by folder.c.
 */
#include "store/file.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "store/source.h"

#define ATTEMPTS 64 /* how often others may put or remove the same key in between before we leave it to them */
#define WRITE_MOST (1u << 30) /* bytes a write; the kernel's own limit is just under 2 GiB */
#define FOLDER_DEPTH 32       /* of a folder that somebody made in an entry's place */

static int write_pieces(int fd, struct iovec *pieces, size_t count)
{
    size_t first = 0;
    while (first < count) {
        struct iovec now[64];
        size_t used = 0, bytes = 0;
        for (size_t i = first; i < count && used < 64 && bytes < WRITE_MOST; i++, used++) {
            now[used] = pieces[i];
            if (now[used].iov_len > WRITE_MOST - bytes)
                now[used].iov_len = WRITE_MOST - bytes;
            bytes += now[used].iov_len;
        }
        ssize_t done = writev(fd, now, (int)used);
        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0)
            return -errno;
        for (size_t left = (size_t)done; first < count;) {
            if (left < pieces[first].iov_len) {
                pieces[first].iov_base = (char *)pieces[first].iov_base + left;
                pieces[first].iov_len -= left;
                break;
            }
            left -= pieces[first++].iov_len;
        }
    }
    return 0;
}

uint64_t file_size_most(void)
{
    struct rlimit limit;
    return getrlimit(RLIMIT_FSIZE, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY ? UINT64_MAX : limit.rlim_cur;
}

bool file_size_allowed(uint64_t size)
{
    return size <= file_size_most();
}

static int write_contents(int fd, const struct source *source)
{
    uint8_t onstack[4096] __attribute__((aligned(8)));
    size_t most = source_most(source);
    uint64_t size;
    int error;
    if (most != SIZE_MAX) { /* in one block: one write, one pass */
        uint8_t *block = most <= sizeof onstack ? onstack : malloc(most);
        error = block == NULL ? -ENOMEM : source_build(source, block, &size);
        if (error == 0 && !file_size_allowed(size))
            error = -EFBIG;
        if (error == 0) {
            struct iovec piece = {block, (size_t)size};
            error = write_pieces(fd, &piece, 1);
        }
        if (block != onstack)
            free(block);
        return error;
    }

    struct entry_header *head = malloc(entry_head_size(source->count));
    struct iovec *pieces = malloc((1 + 2 * (size_t)source->count) * sizeof *pieces);
    error = head == NULL || pieces == NULL ? -ENOMEM : source_lay_out(source, head, &size);
    if (error == 0 && !file_size_allowed(size))
        error = -EFBIG;
    if (error == 0) {
        size_t count = entry_pieces(head, source->parts, pieces);
        source_seal(head, pieces, count);
        error = write_pieces(fd, pieces, count);
    }
    free(pieces);
    free(head);
    return error;
}

static int write_and_sync(int fd, const struct source *source)
{
    int error = write_contents(fd, source);
    if (error == 0 && (source->flags & SHOAL_STORE_DURABLE) != 0 && fdatasync(fd) != 0)
        error = -errno;
    return error;
}

int file_open_unnamed(int folder, bool *unsupported, int *out)
{
    int fd = openat(folder, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, S_IRUSR | S_IWUSR);
    if (fd < 0) {
        int error = -errno;
        struct stat status;
        *unsupported = error == -EOPNOTSUPP || error == -EISDIR || error == -EINVAL;
        /* ext4 says "not permitted" of a folder that was removed. */
        return error == -EPERM && fstat(folder, &status) == 0 && status.st_nlink == 0 ? -ENOENT : error;
    }
    /* The umask may have taken bits that we need. */
    if (fchmod(fd, S_IRUSR | S_IWUSR) != 0) {
        int error = -errno;
        (void)close(fd);
        return error;
    }
    *out = fd;
    return 0;
}

int file_link_unnamed(int fd, int folder, const char *name, bool *unsupported)
{
    char path[64];
    (void)snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    if (linkat(AT_FDCWD, path, folder, name, AT_SYMLINK_FOLLOW) == 0)
        return 0;
    int error = -errno;
    /* No /proc here: the folder itself was reached, so it is not the folder that is missing. */
    *unsupported = error == -ENOENT && access("/proc/self/fd", X_OK) != 0;
    return error;
}

#define PASSING_NEW ".new" /* what is about to be renamed to the entry's name */
#define PASSING_OLD ".old" /* what had it, and was damaged */
#define PASSING_NAME (FILE_NAME + sizeof PASSING_NEW - 1)
static_assert(sizeof PASSING_NEW == sizeof PASSING_OLD, "one size for both");

static void passing_name(const char *name, const char *ending, char out[PASSING_NAME])
{
    memcpy(out, name, FILE_NAME - 1);
    memcpy(out + FILE_NAME - 1, ending, sizeof PASSING_NEW);
}

bool file_is_passing_name(const char *name)
{
    char entry[FILE_NAME];
    if (strlen(name) != PASSING_NAME - 1)
        return false;
    memcpy(entry, name, FILE_NAME - 1);
    entry[FILE_NAME - 1] = '\0';
    const char *ending = name + FILE_NAME - 1;
    return (strcmp(ending, PASSING_NEW) == 0 || strcmp(ending, PASSING_OLD) == 0) && file_is_entry_name(entry, NULL);
}

void file_sweep(int folder, const char *name)
{
    char passing[PASSING_NAME];
    passing_name(name, PASSING_NEW, passing);
    (void)unlinkat(folder, passing, 0);
    passing_name(name, PASSING_OLD, passing);
    (void)unlinkat(folder, passing, 0);
}

/* Who is between making the name and renaming it is there for some microseconds, and would write his file anew. */
#define LEFT_AFTER SHOAL_SECOND

void file_sweep_left(int folder, const char *name)
{
    char passing[PASSING_NAME];
    struct stat status;
    passing_name(name, PASSING_NEW, passing);
    if (fstatat(folder, passing, &status, AT_SYMLINK_NOFOLLOW) == 0 && file_age(&status) > LEFT_AFTER)
        (void)unlinkat(folder, passing, 0);
}

#define WRITE_ANEW 1 /* the file had a name, and lost it: it cannot get another */

/* Put a written file in place of what has the name. -EAGAIN: another did something in between. */
static int replace(int fd, int folder, const char *name, bool *unsupported)
{
    char passing[PASSING_NAME];
    struct stat status;
    passing_name(name, PASSING_NEW, passing);
    int error = file_link_unnamed(fd, folder, passing, unsupported);
    if (error == -EEXIST) {
        error = file_remove(folder, passing);
        return error == 0 || error == -ENOENT ? -EAGAIN : error;
    }
    if (error != 0)
        return error;
    if (renameat(folder, passing, folder, name) == 0)
        return 0;
    error = -errno;
    if (error == -ENOENT) /* removed by another, or renamed for us: then it has a name */
        return fstat(fd, &status) == 0 && status.st_nlink != 0 ? 0 : WRITE_ANEW;
    (void)unlinkat(folder, passing, 0);
    if (error == -EISDIR || error == -ENOTEMPTY || error == -EEXIST) { /* a folder is in its place */
        error = file_remove(folder, name);
        return error == 0 || error == -ENOENT ? WRITE_ANEW : error;
    }
    return error;
}

/* 0, WRITE_ANEW or an error. *attempts: what is left of them, over all files that are written for this entry. */
static int write_file(int folder, const char *name, const struct source *source, bool *unsupported, int *attempts)
{
    int fd = -1;
    int error = file_open_unnamed(folder, unsupported, &fd);
    if (error != 0)
        return error;
    error = write_and_sync(fd, source);
    while (error == 0) {
        int linked = file_link_unnamed(fd, folder, name, unsupported);
        if (linked == -EEXIST)
            linked = replace(fd, folder, name, unsupported);
        const bool disturbed = linked == -EAGAIN || linked == WRITE_ANEW;
        if (linked == 0 || (disturbed && (*attempts)-- == 0))
            break; /* others keep putting or removing the same key: what they did is as new as this */
        if (linked != -EAGAIN)
            error = linked;
    }
    (void)close(fd);
    return error;
}

static int write_unnamed(int folder, const char *name, const struct source *source, bool *unsupported)
{
    int attempts = ATTEMPTS, error;
    do
        error = write_file(folder, name, source, unsupported, &attempts);
    while (error == WRITE_ANEW);
    return error;
}

static int write_named(int folder, const char *name, const struct source *source, int temporary)
{
    for (int attempt = 0;; attempt++) {
        static _Atomic uint32_t counter;
        struct timespec now;
        char own[80];
        (void)clock_gettime(CLOCK_MONOTONIC, &now);
        (void)snprintf(own, sizeof own, "%ld-%u-%llx%09lx", (long)getpid(),
                       atomic_fetch_add_explicit(&counter, 1, memory_order_relaxed), (unsigned long long)now.tv_sec,
                       (unsigned long)now.tv_nsec);
        int fd = openat(temporary, own, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC | O_NOFOLLOW, S_IRUSR | S_IWUSR);
        if (fd < 0) {
            if (errno == EEXIST && attempt < ATTEMPTS)
                continue;
            return -errno;
        }
        /* Somebody who sweeps may have come in between and hold the lock for an instant, before removing the file. */
        int error = flock(fd, LOCK_EX | LOCK_NB) != 0 ? -errno : 0;
        bool swept = error == -EWOULDBLOCK;
        if (error == 0 && fchmod(fd, S_IRUSR | S_IWUSR) != 0) /* as above */
            error = -errno;
        if (error == 0)
            error = write_and_sync(fd, source);
        for (int turn = 0; error == 0 && renameat(temporary, own, folder, name) != 0; turn++) {
            struct stat status;
            error = -errno;
            if ((error == -EISDIR || error == -ENOTEMPTY || error == -EEXIST) && turn < ATTEMPTS) {
                error = file_remove(folder, name);
                if (error == -ENOENT)
                    error = 0;
            } else if (error == -ENOENT) {
                swept = fstatat(temporary, own, &status, AT_SYMLINK_NOFOLLOW) != 0;
            }
        }
        if (error != 0)
            (void)unlinkat(temporary, own, 0);
        (void)close(fd);
        if (!swept || attempt >= ATTEMPTS)
            return error;
    }
}

int file_write(int folder, const char *name, const struct source *source, int (*temporary)(void *context),
               void *context)
{
    bool unsupported = (source->flags & SHOAL_STORE_NAMED_FILES) != 0;
    int error = 0;
    if (!unsupported)
        error = write_unnamed(folder, name, source, &unsupported);
    if (unsupported) {
        int fd = temporary(context);
        if (fd < 0)
            return fd;
        error = write_named(folder, name, source, fd);
        (void)close(fd);
    }
    if (error == 0 && (source->flags & SHOAL_STORE_DURABLE) != 0 && fsync(folder) != 0)
        error = -errno;
    return error;
}

static int remove_folder(int parent, const char *name, int depth)
{
    if (unlinkat(parent, name, AT_REMOVEDIR) == 0)
        return 0;
    if ((errno != ENOTEMPTY && errno != EEXIST) || depth == 0)
        return -errno;
    int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *folder = fd < 0 ? NULL : fdopendir(fd);
    if (folder == NULL) {
        int error = -errno;
        if (fd >= 0)
            (void)close(fd);
        return error;
    }
    for (struct dirent *item; (item = readdir(folder)) != NULL;) {
        if (strcmp(item->d_name, ".") == 0 || strcmp(item->d_name, "..") == 0)
            continue;
        if (unlinkat(fd, item->d_name, 0) != 0 && errno == EISDIR)
            (void)remove_folder(fd, item->d_name, depth - 1);
    }
    (void)closedir(folder);
    return unlinkat(parent, name, AT_REMOVEDIR) == 0 ? 0 : -errno;
}

int file_remove(int folder, const char *name)
{
    if (unlinkat(folder, name, 0) == 0)
        return 0;
    return errno == EISDIR || errno == EPERM ? remove_folder(folder, name, FOLDER_DEPTH) : -errno;
}

void file_remove_damaged(int folder, const char *name, const shoal_key *key)
{
    char passing[PASSING_NAME];
    struct verified unverified = {0};
    shoal_entry *entry = NULL;
    if (file_read(folder, name, key, &unverified, 0, &entry) != SHOAL_ECORRUPT) {
        shoal_entry_close(entry);
        return;
    }
    /* Between that and this, too, a sound one may have come; then it goes back, unless yet another has come. */
    passing_name(name, PASSING_OLD, passing);
    if (renameat(folder, name, folder, passing) != 0)
        return;
    if (file_read(folder, passing, key, &unverified, 0, &entry) != SHOAL_ECORRUPT) {
        shoal_entry_close(entry);
        (void)linkat(folder, passing, folder, name, 0);
    }
    (void)file_remove(folder, passing);
}

void file_sweep_temporary(int folder)
{
    int own = openat(folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *list = own < 0 ? NULL : fdopendir(own);
    if (list == NULL) {
        if (own >= 0)
            (void)close(own);
        return;
    }
    for (struct dirent *item; (item = readdir(list)) != NULL;) {
        int fd = openat(own, item->d_name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
        struct stat status;
        if (fd < 0)
            continue;
        if (fstat(fd, &status) == 0 && S_ISREG(status.st_mode) && flock(fd, LOCK_EX | LOCK_NB) == 0)
            (void)unlinkat(own, item->d_name, 0);
        (void)close(fd);
    }
    (void)closedir(list);
}
