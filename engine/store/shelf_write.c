/* store/shelf_write.c: putting to and removing from a shelf (shelf.h).
 *
 * A writer opens the file anew, which gives it a description of its own to lock and finds the file that has the name
 * now; then it brings the index up to date, and so knows where the good records end and which records are older ones.
 * While another has the lock it waits outside of the guard, so that the threads of this process go on reading. It gives
 * up after some seconds: the other may have been stopped. Called by folder.c and store.c.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "store/file.h"
#include "store/inherit.h"
#include "store/shelf.h"

#define PAUSE_FIRST INT64_C(20000)            /* ns, before the lock is tried again; doubled each time */
#define PAUSE_MOST INT64_C(1000000)           /* ns */
#define WAIT_MOST (INT64_C(5) * SHOAL_SECOND) /* for another's lock, altogether */
#define WAIT_AGAIN INT64_C(20000000)          /* the same, after a wait that was in vain */
#define ATTEMPTS 64                           /* how often the shelf may be replaced in between */
#define WASTE_LEAST 65536u                    /* bytes of no use that are not worth a new file */
#define GAP_LEAST 4096u                       /* bytes of no use that may lie together and be given back */
#define RECOUNT 8u                            /* with so few entries it is looked whether others removed the last */

/* ---- the lock ---- */

static void unlock(struct shelf_lock *lock)
{
    (void)flock(lock->fd, LOCK_UN); /* a child forked between the next two steps keeps the description */
    inherit_allow(lock->slot);
    (void)close(lock->fd);
}

/* Lock an open file, which is closed if that fails. -EWOULDBLOCK: another has it; -ENOLCK: there are no locks here. */
static int lock_file(int fd, struct shelf_lock *lock)
{
    *lock = (struct shelf_lock){.fd = fd, .slot = inherit_forbid(fd)};
    int error;
    do
        error = flock(fd, LOCK_EX | LOCK_NB) != 0 ? -errno : 0;
    while (error == -EINTR);
    if (error == 0)
        return 0;
    if (error != -EWOULDBLOCK)
        error = -ENOLCK; /* file systems over a network say so in many ways: ENOSYS, EOPNOTSUPP, EINVAL, EBADF */
    inherit_allow(lock->slot);
    (void)close(fd);
    return error;
}

/* Lock the file that has the shelf's name. -ESTALE: it lost it meanwhile. */
static int lock_named(int folder, struct shelf_lock *lock, struct stat *status)
{
    int fd = file_open_any(folder, SHELF_NAME, O_RDWR);
    int error = fd < 0 ? fd : lock_file(fd, lock);
    if (error != 0)
        return error;
    error = fstat(fd, status) != 0 ? -errno : status->st_nlink == 0 ? -ESTALE : file_check(status);
    lock->size = (uint64_t)status->st_size;
    if (error != 0)
        unlock(lock);
    return error;
}

/* Wait a little before the lock is tried again. False: that was long enough. */
static bool wait_more(int64_t *pause, int64_t *waited)
{
    struct timespec rest = {.tv_nsec = (long)*pause};
    (void)nanosleep(&rest, NULL);
    *waited += *pause;
    *pause = 2 * *pause < PAUSE_MOST ? 2 * *pause : PAUSE_MOST;
    return *waited < WAIT_MOST;
}

/* ---- a shelf where there is none, or one that cannot be used ---- */

/* `length`: what its head is to say, at least. */
static int create(int folder, uint64_t length)
{
    bool unsupported = false;
    int fd = -1;
    int error = file_open_unnamed(folder, &unsupported, &fd);
    if (error != 0)
        return unsupported ? SHELF_ELSEWHERE : error;
    uint8_t mark[RECORD_MARK];
    struct shelf_head head;
    error = getrandom(mark, sizeof mark, 0) != sizeof mark ? -errno : 0;
    if (error == 0) {
        record_make_head(&head, mark, length);
        error = shelf_write_all(fd, (const uint8_t *)&head, sizeof head, 0);
    }
    if (error == 0)
        error = file_link_unnamed(fd, folder, SHELF_NAME, &unsupported);
    (void)close(fd);
    return unsupported ? SHELF_ELSEWHERE : error == -EEXIST ? 0 : error;
}

static bool is_unusable(int error)
{
    return error == SHOAL_ECORRUPT || error == -EPERM || error == -EACCES;
}

/* Have the folder's own lock, as who removes what has the shelf's name and cannot be locked itself: else two might find
 * the same, and the second remove what the first put in its place. As lock_file. */
static int lock_folder(int folder, struct shelf_lock *lock)
{
    int fd = openat(folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return fd < 0 ? -errno : lock_file(fd, lock);
}

/* Whether an open file can be a shelf: 0 or why not. */
static int check_usable(int fd)
{
    struct stat status;
    struct shelf_head head;
    uint8_t mark[RECORD_MARK];
    int error = fstat(fd, &status) != 0 ? -errno : file_check(&status);
    if (error == 0)
        error = status.st_size > (off_t)SHELF_MOST ? SHOAL_ECORRUPT : file_read_at(fd, &head, sizeof head, 0);
    return error != 0 ? error : record_read_head(&head, mark);
}

/* Remove what has the shelf's name and cannot be used. Where it can be locked it is: who clears the folder meanwhile
 * would make room for a good one. -EWOULDBLOCK: another is at work. */
static int remove_unusable(int folder)
{
    struct shelf_lock lock = {.fd = -1, .slot = INHERIT_SLOTS}, own = lock;
    struct stat status;
    int error = lock_folder(folder, &lock);
    if (error != 0)
        return error;
    int fd = file_open_any(folder, SHELF_NAME, O_RDWR);
    error = fd < 0 ? fd : lock_file(fd, &own);
    if (error == 0) {
        error = fstat(own.fd, &status) == 0 && status.st_nlink == 0 ? -ENOENT : check_usable(own.fd);
        if (is_unusable(error))
            error = file_remove(folder, SHELF_NAME);
        unlock(&own);
    } else if (is_unusable(error)) {
        error = file_remove(folder, SHELF_NAME);
    }
    unlock(&lock);
    return error == -ENOENT ? 0 : error;
}

/* Where no file could be removed, no record may be. */
static int check_folder(int folder)
{
    struct stat status;
    return fstat(folder, &status) != 0 ? -errno : file_check_writable(folder, &status);
}

/* Make room for a new shelf. If nobody was told of the old one's end, the new one's head (`length`) says that something
 * is missing. */
static int replace_unusable(const struct shelf *shelf, int folder, uint64_t *length)
{
    if (!shelf->told)
        *length = sizeof(struct shelf_head) + RECORD_ALIGNMENT;
    return remove_unusable(folder);
}

/* Take the guard and the file's lock, with descriptor and index up to date. `make`: a shelf where there is none that
 * can be used; else such a one is an error. */
static int begin(struct shelf *shelf, int folder, bool make, struct shelf_lock *lock)
{
    int64_t pause = PAUSE_FIRST, waited = 0;
    uint64_t length = sizeof(struct shelf_head);
    int error = 0;
    for (int attempt = 0; error == 0 && attempt < ATTEMPTS;) {
        struct stat status;
        shelf_enter(shelf);
        error = lock_named(folder, lock, &status);
        if (error == 0) {
            shelf->stuck = false;
            bool known = shelf->device == (uint64_t)status.st_dev && shelf->inode == (uint64_t)status.st_ino;
            error = shelf_attach(shelf, folder, !known);
            if (error == 0 && (shelf->device != (uint64_t)status.st_dev || shelf->inode != (uint64_t)status.st_ino))
                error = -ESTALE;
            if (error == 0) {
                if (!known)
                    (void)unlinkat(folder, SHELF_NEW, 0); /* a dead writer's, as we have the lock */
                return 0;
            }
            unlock(lock);
        }
        if (make && error == -ENOENT)
            error = create(folder, length);
        else if (make && is_unusable(error))
            error = replace_unusable(shelf, folder, &length);
        else if (error == -ESTALE)
            error = 0;
        if (error == -EWOULDBLOCK && waited >= (shelf->stuck ? WAIT_AGAIN : WAIT_MOST)) {
            shelf->stuck = true;
            error = -ETIMEDOUT;
        }
        shelf_leave(shelf);
        if (error == -EWOULDBLOCK) {
            (void)wait_more(&pause, &waited);
            error = 0;
        } else {
            attempt++;
        }
    }
    return error != 0 ? error : -ETIMEDOUT;
}

static void end(struct shelf *shelf, struct shelf_lock *lock)
{
    unlock(lock);
    shelf_leave(shelf);
}

/* ---- changing it ---- */

int shelf_write_all(int fd, const uint8_t *data, size_t size, uint64_t offset)
{
    while (size != 0) {
        ssize_t done = pwrite(fd, data, size, (off_t)offset);
        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0)
            return -errno;
        data += done;
        size -= (size_t)done;
        offset += (uint64_t)done;
    }
    return 0;
}

int shelf_remove_stale(struct shelf *shelf, const struct shelf_lock *lock)
{
    struct index *index = &shelf->index;
    size_t done = 0;
    int error = 0;
    /* The first that was found is the first that goes: a key's last record hides those of before to the end. */
    for (; done < index->stale_count; done++) {
        const struct index_place *place = &index->stale[done];
        uint64_t offset = (uint64_t)place->block * RECORD_ALIGNMENT;
        struct record_header header;
        record_make(&header, shelf->mark, place->key.bytes, place->span, 0);
        error = file_size_allowed(offset + sizeof header) ? 0 : -EFBIG; /* RLIMIT_FSIZE holds for what is there, too */
        if (error == 0)
            error = shelf_write_all(lock->fd, (const uint8_t *)&header, sizeof header, offset);
        if (error != 0)
            break;
    }
    index->stale_count -= done;
    if (done != 0 && index->stale_count != 0)
        memmove(index->stale, index->stale + done, index->stale_count * sizeof *index->stale);
    return error;
}

static void compact_if_worth(struct shelf *shelf, int folder, const struct shelf_lock *lock)
{
    uint64_t waste = shelf_waste(shelf);
    if (waste <= WASTE_LEAST || 2 * waste <= shelf->scanned || waste < 2 * shelf->futile)
        return;
    if (shelf_compact(shelf, folder, lock) == 0)
        return;
    shelf_free_gaps(shelf, folder, lock);
    shelf->futile = waste; /* a full disk, say: not with each put */
}

/* Write how long the file is to its head, after what makes it so long. If that fails, a cut may go unseen. */
static int write_length(struct shelf *shelf, const struct shelf_lock *lock)
{
    struct shelf_length lengths[2];
    uint64_t length = shelf_length(shelf, shelf->scanned);
    record_make_lengths(lengths, shelf->mark, length);
    int error = file_size_allowed(sizeof(struct shelf_head)) ? 0 : -EFBIG;
    if (error == 0)
        error =
            shelf_write_all(lock->fd, (const uint8_t *)lengths, sizeof lengths, offsetof(struct shelf_head, lengths));
    if (error == 0 && length == shelf->scanned)
        shelf->lost = shelf->told = false;
    return error;
}

static int append(struct shelf *shelf, const struct shelf_lock *lock, const struct index_place *place, uint8_t *block)
{
    struct index_place put = *place;
    bool told = shelf->told;
    int error = 0;
    if (lock->size > shelf->scanned && ftruncate(lock->fd, (off_t)shelf->scanned) != 0) /* a dead writer's tail */
        return -errno;
    put.block = (uint32_t)(shelf->scanned / RECORD_ALIGNMENT);
    memset(block + sizeof(struct record_header) + put.size, 0, put.span - sizeof(struct record_header) - put.size);
    record_make((struct record_header *)(void *)block, shelf->mark, put.key.bytes, put.span, put.size);
    error = shelf_write_all(lock->fd, block, put.span, shelf->scanned);
    if (error != 0) {
        (void)ftruncate(lock->fd, (off_t)shelf->scanned);
        return error;
    }
    shelf->tail = shelf->scanned;
    shelf->scanned += put.span;
    (void)write_length(shelf, lock);
    if (index_add(&shelf->index, &put) != 0)
        shelf_forget(shelf); /* it is found again when there is memory */
    else if (!told || index_remove_anonymous(&shelf->index) == 0)
        (void)shelf_remove_stale(shelf, lock); /* the later record counts, whatever becomes of the older */
    return 0;
}

int shelf_put(struct shelf *shelf, int folder, const shoal_key *key, const char *name, uint8_t *block, uint32_t size)
{
    struct index_place place = {.key = *key, .span = record_span(size), .size = size};
    struct shelf_lock lock = {.fd = -1, .slot = INHERIT_SLOTS};
    uint64_t most = file_size_most();
    if (sizeof(struct shelf_head) + place.span > most)
        return SHELF_ELSEWHERE;
    most = most < SHELF_MOST ? most : SHELF_MOST;
    for (bool compacted = false;;) {
        int error = begin(shelf, folder, true, &lock);
        if (error != 0)
            return error == -ENOLCK || error == -ETIMEDOUT ? SHELF_ELSEWHERE : error;
        uint64_t all = shelf->scanned + place.span;
        if (all <= most)
            break;
        bool again = !compacted && shelf_waste(shelf) > all / 4 && shelf_compact(shelf, folder, &lock) == 0;
        end(shelf, &lock);
        if (!again)
            return SHELF_ELSEWHERE;
        compacted = true;
    }
    int error = append(shelf, &lock, &place, block);
    if (error == 0) {
        if (file_remove(folder, name) == 0)
            file_sweep(folder, name);
        compact_if_worth(shelf, folder, &lock);
    }
    end(shelf, &lock);
    return error;
}

/* With the last entry the shelf goes, unless it is to tell that something was cut off it. */
static void tidy(struct shelf *shelf, int folder, const struct shelf_lock *lock)
{
    if (shelf->index.count <= RECOUNT) { /* others may have removed what this index still has */
        shelf_forget(shelf);
        if (shelf_attach(shelf, folder, false) != 0)
            return;
    }
    if (shelf->index.count != 0 || (shelf->lost && !shelf->told)) {
        compact_if_worth(shelf, folder, lock);
        return;
    }
    (void)unlinkat(folder, SHELF_NEW, 0);
    (void)unlinkat(folder, SHELF_NAME, 0);
    shelf_forget(shelf);
}

/* Whether a removal is to make what was lost, nobody knows of whose, of no account: nothing else is to be removed, or a
 * file was put after a get that told of it. */
static bool is_to_settle(const struct shelf *shelf, const shoal_key *key, const char *name)
{
    return (shelf->lost || shelf->index.anonymous != 0) && (name != NULL ? shelf->told : key == NULL);
}

/* What is there under a key; others may have removed what the index still has. `damaged`: unless it is sound. */
static struct index_place *find(struct shelf *shelf, const shoal_key *key, bool damaged)
{
    struct index_place *place = key != NULL ? index_find(&shelf->index, key->bytes) : NULL;
    if (place == NULL)
        return NULL;
    int error = shelf_check_place(shelf, place);
    if (error == -ENOENT && index_remove(&shelf->index, place, false) == 0)
        return NULL;
    return damaged && error != SHOAL_ECORRUPT ? NULL : place;
}

/* What remove_entry is to heed. */
struct removal {
    const char *name; /* NULL, or a file without which the entry stays */
    const char *with; /* NULL, or a file that goes before it: it is an older one's, perhaps, and hidden by it */
    bool durable;     /* it is not to come back after a loss of power */
    bool damaged;     /* it stays where it is sound: another put it meanwhile */
};

/* `key`: NULL for what was cut off. */
static int remove_entry(struct shelf *shelf, int folder, const shoal_key *key, const struct removal *how)
{
    const char *name = how->name;
    struct shelf_lock lock = {.fd = -1, .slot = INHERIT_SLOTS};
    struct stat status;
    shelf_enter(shelf);
    int error = shelf_attach(shelf, folder, true);
    if (error == 0 && find(shelf, key, how->damaged) == NULL && !is_to_settle(shelf, key, name))
        error = -ENOENT; /* which needs no lock */
    shelf_leave(shelf);
    if (error == 0)
        error = check_folder(folder);
    if (error == 0)
        error = begin(shelf, folder, false, &lock);
    if (error != 0)
        return error;
    struct index_place *place = find(shelf, key, how->damaged);
    if (place == NULL && is_to_settle(shelf, key, name)) {
        shelf->told = true;
        error = write_length(shelf, &lock);
        if (error == 0)
            error = index_remove_anonymous(&shelf->index);
        if (error == 0 && (error = shelf_remove_stale(shelf, &lock)) != 0)
            shelf_forget(shelf);
        if (error == 0)
            tidy(shelf, folder, &lock);
    } else if (place == NULL || (name != NULL && fstatat(folder, name, &status, AT_SYMLINK_NOFOLLOW) != 0)) {
        error = -ENOENT;
    } else {
        if (how->with != NULL)
            (void)file_remove(folder, how->with);
        error = index_remove(&shelf->index, place, true);
        if (error == 0 && (error = shelf_remove_stale(shelf, &lock)) != 0)
            shelf_forget(shelf); /* it is still there */
        if (error == 0 && how->durable && fdatasync(lock.fd) != 0)
            error = -errno;
        if (error == 0)
            tidy(shelf, folder, &lock);
    }
    end(shelf, &lock);
    return error;
}

int shelf_settle(struct shelf *shelf, int folder)
{
    return remove_entry(shelf, folder, NULL, &(struct removal){0});
}

int shelf_remove(struct shelf *shelf, int folder, const shoal_key *key, const char *name)
{
    int64_t pause = PAUSE_FIRST, waited = 0;
    int error = remove_entry(shelf, folder, key, &(struct removal){.with = name, .damaged = name == NULL});
    while (is_unusable(error)) {
        int removed = check_folder(folder);
        if (removed == 0)
            removed = remove_unusable(folder);
        if (removed != -EWOULDBLOCK)
            return removed;
        if (!wait_more(&pause, &waited))
            return -ETIMEDOUT;
    }
    return error;
}

int shelf_give_way(struct shelf *shelf, int folder, const shoal_key *key, const char *name, bool durable)
{
    int error = remove_entry(shelf, folder, key, &(struct removal){.name = name, .durable = durable});
    if (is_unusable(error)) { /* then gets look at the file, and say so where there is none */
        shelf_enter(shelf);
        bool told = shelf->told;
        shelf_leave(shelf);
        if (told && check_folder(folder) == 0)
            (void)remove_unusable(folder);
        return 0;
    }
    return error == -ENOENT ? 0 : error;
}

static bool is_worth_trimming(const struct shelf *shelf)
{
    return 16 * shelf_waste(shelf) > shelf->scanned;
}

void shelf_trim(struct shelf *shelf, int folder, bool full)
{
    struct shelf_lock lock = {.fd = -1, .slot = INHERIT_SLOTS};
    shelf_enter(shelf);
    bool worth = shelf_attach(shelf, folder, true) == 0 && shelf_waste(shelf) >= GAP_LEAST;
    shelf_leave(shelf);
    if (!worth || begin(shelf, folder, false, &lock) != 0)
        return;
    if (full || !is_worth_trimming(shelf)) /* which needs no room, as the other does */
        shelf_free_gaps(shelf, folder, &lock);
    if (is_worth_trimming(shelf) && shelf_compact(shelf, folder, &lock) != 0 && !full) /* nobody did meanwhile */
        shelf_free_gaps(shelf, folder, &lock);
    end(shelf, &lock);
}

int shelf_discard(int folder)
{
    int64_t pause = PAUSE_FIRST, waited = 0;
    for (;;) {
        struct shelf_lock lock = {.fd = -1, .slot = INHERIT_SLOTS};
        struct stat status;
        int error = lock_named(folder, &lock, &status);
        if (error == 0) {
            (void)unlinkat(folder, SHELF_NEW, 0);
            error = unlinkat(folder, SHELF_NAME, 0) != 0 ? -errno : 0;
            unlock(&lock);
        } else if (error == -ENOLCK) { /* without locks nobody puts anything there */
            error = file_remove(folder, SHELF_NAME);
        } else if (is_unusable(error)) {
            int locked = lock_folder(folder, &lock);
            error = locked == 0 || locked == -ENOLCK ? file_remove(folder, SHELF_NAME) : locked;
            if (locked == 0)
                unlock(&lock);
        } else if (error == -ENOENT) {
            (void)unlinkat(folder, SHELF_NEW, 0); /* nobody makes it without a shelf */
        }
        if (error != -ESTALE && error != -EWOULDBLOCK)
            return error == -ENOENT ? 0 : error;
        if (!wait_more(&pause, &waited))
            return -ETIMEDOUT;
    }
}
