/* store/claim.c: who computes an entry that is missing.
 *
 * A claim is a lock (an open file description's) on one byte of the store's file `.claims`, chosen by the key. The
 * kernel frees it with the claimer, however that one ends, and nothing has to be swept. A child of fork would hold its
 * parent's descriptions, and so its claims, for as long as it lives: it closes them before it does anything else
 * (inherit.h).
 * Whoever removes the file while it is used undoes nothing but the claims: then two compute the same, both rightly.
 *
 * Waiting looks again after ever longer pauses, an eighth of the time waited: the kernel's own wait has no limit, and
 * the wake-up would save a computation of seconds some milliseconds. Called by memo.c and the binding.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "store/folder.h"
#include "store/inherit.h"

#define CLAIMS_FILE ".claims"
#define PAUSE_FIRST INT64_C(50000)
#define PAUSE_MOST INT64_C(20000000)

struct shoal_claim {
    int fd;
    pid_t owner;
    uint32_t slot;
};

static int open_claims(const shoal_store *store, int *out)
{
    int root;
    int error = store_open_root(store, true, &root);
    if (error != 0)
        return error;
    int fd = openat(root, CLAIMS_FILE, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, S_IRUSR | S_IWUSR);
    error = fd < 0 ? -errno : 0;
    (void)close(root);
    struct stat status;
    if (error == 0 && fstat(fd, &status) == 0 && (status.st_mode & (S_IRUSR | S_IWUSR)) != (S_IRUSR | S_IWUSR))
        (void)fchmod(fd, S_IRUSR | S_IWUSR); /* the umask took what the next one needs */
    *out = fd;
    return error;
}

static int64_t clock_now(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * SHOAL_SECOND + now.tv_nsec;
}

static int wait_for_lock(int fd, off_t place, int64_t timeout)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = place, .l_len = 1};
    int64_t began = 0;
    while (fcntl(fd, F_OFD_SETLK, &lock) != 0) {
        if (errno == EINTR)
            continue;
        if (errno != EAGAIN && errno != EACCES)
            return -errno;
        if (timeout == 0)
            return -ETIMEDOUT;
        int64_t now = clock_now();
        if (began == 0)
            began = now;
        if (timeout != SHOAL_FOREVER && now - began >= timeout)
            return -ETIMEDOUT;
        int64_t pause = (now - began) / 8;
        pause = pause < PAUSE_FIRST ? PAUSE_FIRST : pause > PAUSE_MOST ? PAUSE_MOST : pause;
        struct timespec rest = {.tv_nsec = (long)pause};
        if (nanosleep(&rest, NULL) != 0 && errno == EINTR)
            return -EINTR;
    }
    return 0;
}

int shoal_folder_claim(shoal_folder *folder, const shoal_key *key, int64_t timeout, shoal_claim **out)
{
    shoal_claim *claim = malloc(sizeof *claim);
    if (claim == NULL)
        return -ENOMEM;
    int fd;
    int error = open_claims(folder->store, &fd);
    if (error != 0)
        goto free_claim;
    uint64_t place;
    memcpy(&place, key->bytes, sizeof place);
    *claim = (shoal_claim){.fd = fd, .owner = getpid(), .slot = inherit_forbid(fd)};
    error = wait_for_lock(fd, (off_t)(place >> 2), timeout);
    if (error != 0) {
        shoal_claim_release(claim);
        return error;
    }
    *out = claim;
    return 0;

free_claim:
    free(claim);
    return error;
}

void shoal_claim_release(shoal_claim *claim)
{
    if (claim == NULL)
        return;
    if (claim->owner == getpid()) { /* else the child's handler has closed it, and the number may be another's */
        struct flock lock = {.l_type = F_UNLCK, .l_whence = SEEK_SET};
        (void)fcntl(claim->fd, F_OFD_SETLK,
                    &lock); /* a child forked between the next two steps keeps the description */
        inherit_allow(claim->slot);
        (void)close(claim->fd);
    }
    free(claim);
}
