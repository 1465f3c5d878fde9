/* store/uses.c: the table of uses (uses.h). Eight records a bucket, chosen by the key; a new one takes the place of the
 * one that was used longest ago. Called by folder.c, store.c and reduce.c. */
#include "store/uses.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "store/file.h"

#define BUCKETS 4096u /* a power of 2 */
#define IN_BUCKET 8u

/* All are written by anybody, whenever they are used; each word is sound by itself, which is all that is asked. */
struct record {
    _Atomic uint64_t name; /* of the key; 0: free */
    _Atomic uint32_t last; /* seconds since 1970 */
    _Atomic uint32_t hits;
};
static_assert(sizeof(struct record) == 16, "the layout on disk");

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* since Linux 5.14 */
#endif

struct uses {
    struct record records[BUCKETS][IN_BUCKET];
};

static int open_table(int root, bool create)
{
    for (int attempt = 0; attempt < 4; attempt++) {
        struct stat status;
        int fd = openat(root, USES_FILE, O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
        if (fd >= 0) {
            if (fstat(fd, &status) == 0 && S_ISREG(status.st_mode) && status.st_size == sizeof(struct uses) &&
                file_check_owner(&status) == 0)
                return fd;
            (void)close(fd);
        }
        if (!create || (fd < 0 && errno != ENOENT && errno != ELOOP && errno != EISDIR))
            return -1;
        /* Another's that is just being made may go with it; its maker then notes what nobody reads. */
        if (fd >= 0 || errno != ENOENT)
            (void)file_remove(root, USES_FILE);
        fd = openat(root, USES_FILE, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, S_IRUSR | S_IWUSR);
        if (fd < 0)
            continue;
        if (fchmod(fd, S_IRUSR | S_IWUSR) == 0 && file_size_allowed(sizeof(struct uses)) &&
            fallocate(fd, 0, 0, sizeof(struct uses)) == 0)
            return fd;
        (void)unlinkat(root, USES_FILE, 0);
        (void)close(fd);
        return -1;
    }
    return -1;
}

struct uses *uses_open(int root, bool create)
{
    int fd = open_table(root, create);
    if (fd < 0)
        return NULL;
    void *table = mmap(NULL, sizeof(struct uses), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    (void)close(fd);
    return table == MAP_FAILED ? NULL : table;
}

void uses_close(struct uses *uses)
{
    if (uses != NULL)
        (void)munmap(uses, sizeof *uses);
}

static uint64_t name_of(const shoal_key *key, struct record **bucket, struct uses *uses)
{
    uint64_t name;
    uint32_t at;
    memcpy(&name, key->bytes, sizeof name);
    memcpy(&at, key->bytes + sizeof name, sizeof at);
    *bucket = uses->records[at & (BUCKETS - 1)];
    return name | 1;
}

/* Whether a bucket is still in the file: who cut that short has us die of a SIGBUS where we touch it. It costs 0.5 us,
 * and what it leaves is the instant until the touch. */
static bool is_there(struct uses *uses, struct record *bucket)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t offset = (size_t)((char *)bucket - (char *)uses) & ~(page - 1);
    return madvise((char *)uses + offset, page, MADV_POPULATE_WRITE) == 0 || errno != EFAULT;
}

/* Everything here is relaxed: no other memory is read on the strength of these words. */
void uses_note(struct uses *uses, const shoal_key *key, bool fresh)
{
    if (uses == NULL)
        return;
    struct record *bucket, *mine = NULL;
    uint64_t name = name_of(key, &bucket, uses);
    if (!is_there(uses, bucket))
        return;
    struct timespec now;
    (void)clock_gettime(CLOCK_REALTIME_COARSE, &now);
    uint32_t oldest = UINT32_MAX;
    for (uint32_t i = 0; i < IN_BUCKET; i++) {
        uint64_t there = atomic_load_explicit(&bucket[i].name, memory_order_relaxed);
        uint32_t last = there == 0 ? 0 : atomic_load_explicit(&bucket[i].last, memory_order_relaxed);
        if (there == name) {
            mine = &bucket[i];
            break;
        }
        if (mine == NULL || last < oldest) {
            mine = &bucket[i];
            oldest = last;
        }
    }
    if (atomic_load_explicit(&mine->name, memory_order_relaxed) != name) {
        atomic_store_explicit(&mine->name, name, memory_order_relaxed);
        atomic_store_explicit(&mine->hits, fresh ? 0 : 1, memory_order_relaxed);
    } else if (fresh) {
        atomic_store_explicit(&mine->hits, 0, memory_order_relaxed);
    } else {
        (void)atomic_fetch_add_explicit(&mine->hits, 1, memory_order_relaxed);
    }
    atomic_store_explicit(&mine->last, (uint32_t)now.tv_sec, memory_order_relaxed);
}

bool uses_recall(struct uses *uses, const shoal_key *key, int64_t *last, uint64_t *hits)
{
    if (uses == NULL)
        return false;
    struct record *bucket;
    uint64_t name = name_of(key, &bucket, uses);
    if (!is_there(uses, bucket))
        return false;
    for (uint32_t i = 0; i < IN_BUCKET; i++) {
        if (atomic_load_explicit(&bucket[i].name, memory_order_relaxed) != name)
            continue;
        *last = atomic_load_explicit(&bucket[i].last, memory_order_relaxed);
        *hits = atomic_load_explicit(&bucket[i].hits, memory_order_relaxed);
        return true;
    }
    return false;
}
