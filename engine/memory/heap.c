/* memory/heap.c: blocks in a region: the public calls, the lock, and repair after a death.
 *
 * A reference is the block's offset in the region. Looking one up takes no lock: it is checked against the records
 * alone, so garbage is refused whatever lies there. The lock is a robust mutex: who takes it after its holder died
 * makes the derived state again first.
 */
#include "memory/heap.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#define LEAST_LIMIT ((size_t)64 << 20)
#define WRITE_THROUGH ((size_t)65536) /* from here on a fresh block is filled through the descriptor */

/* ------------------------------------------------------------- construction ---- */

static size_t physical_memory(void)
{
    long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    return pages > 0 && page > 0 ? (size_t)pages * (size_t)page : (size_t)4 << 30;
}

static uint64_t lay_out(struct heap_header *header)
{
    uint64_t at = (sizeof *header + 127) & ~UINT64_C(127);
    header->records_at = at;
    at += (uint64_t)header->pages * sizeof(struct page_record);
    at = (at + HEAP_PAGE - 1) & ~(uint64_t)(HEAP_PAGE - 1);
    header->data_at = at;
    return at + (uint64_t)header->pages * HEAP_PAGE;
}

static void point_into(shoal_heap *heap, const struct heap_header *checked)
{
    uint8_t *base = shoal_region_base(heap->region);
    heap->header = (struct heap_header *)(void *)base;
    heap->records = (struct page_record *)(void *)(base + checked->records_at);
    heap->data = base + checked->data_at;
    heap->pages = checked->pages;
    atomic_init(&heap->holders, 1);
}

static int init_lock(struct heap_header *header)
{
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    int error = -pthread_mutex_init(&header->lock.mutex, &attributes);
    pthread_mutexattr_destroy(&attributes);
    return error;
}

static int create(shoal_heap *heap, size_t limit)
{
    uint64_t pages = (limit + HEAP_PAGE - 1) / HEAP_PAGE;
    if (pages == 0 || pages >= HEAP_NO_PAGE)
        return -EINVAL;
    struct heap_header header = {
        .magic = HEAP_MAGIC,
        .version = HEAP_VERSION,
        .record_size = sizeof(struct page_record),
        .pages = (uint32_t)pages,
    };
    header.size = lay_out(&header);
    int error = shoal_region_create("shoal-heap", header.size, &heap->region);
    if (error != 0)
        return error;
    memcpy(shoal_region_base(heap->region), &header, offsetof(struct heap_header, lock));
    point_into(heap, &header);
    error = init_lock(heap->header);
    if (error != 0) {
        shoal_region_close(heap->region);
        return error;
    }
    extent_repair(heap); /* sets up the empty lists */
    return 0;
}

int shoal_heap_create(size_t limit, shoal_heap **out)
{
    shoal_heap *heap = calloc(1, sizeof *heap);
    if (heap == NULL)
        return -ENOMEM;
    size_t size = limit != 0 ? limit : physical_memory();
    int error = create(heap, size);
    /* A process may be allowed less address space, or shorter files, than the machine has memory. */
    while (limit == 0 && (error == -ENOMEM || error == -EFBIG) && size / 2 >= LEAST_LIMIT)
        error = create(heap, size /= 2);
    if (error != 0) {
        free(heap);
        return error;
    }
    *out = heap;
    return 0;
}

int shoal_heap_attach(int fd, shoal_heap **out)
{
    shoal_heap *heap = calloc(1, sizeof *heap);
    if (heap == NULL)
        return -ENOMEM;
    int error = shoal_region_attach(fd, &heap->region);
    if (error != 0)
        goto free_heap;
    struct heap_header header, expected;
    error = SHOAL_ECORRUPT;
    if (shoal_region_size(heap->region) < sizeof header)
        goto close_region;
    memcpy(&header, shoal_region_base(heap->region), offsetof(struct heap_header, lock));
    expected = header;
    if (header.magic != HEAP_MAGIC || header.version != HEAP_VERSION ||
        header.record_size != sizeof(struct page_record) || header.pages == 0 || header.pages == HEAP_NO_PAGE ||
        lay_out(&expected) != header.size || header.size > shoal_region_size(heap->region) ||
        memcmp(&expected, &header, offsetof(struct heap_header, lock)) != 0)
        goto close_region;
    point_into(heap, &header);
    *out = heap;
    return 0;

close_region:
    shoal_region_close(heap->region);
free_heap:
    free(heap);
    return error;
}

int shoal_heap_fd(const shoal_heap *heap)
{
    return shoal_region_fd(heap->region);
}

void shoal_heap_retain(shoal_heap *heap)
{
    atomic_fetch_add_explicit(&heap->holders, 1, memory_order_relaxed);
}

void shoal_heap_release(shoal_heap *heap)
{
    /* acq_rel: whoever unmaps does so after every other holder's last use */
    if (atomic_fetch_sub_explicit(&heap->holders, 1, memory_order_acq_rel) != 1)
        return;
    loan_forget_heap(heap);
    shoal_region_close(heap->region);
    free(heap);
}

/* ---------------------------------------------------------------------- the lock ---- */

void heap_lock(shoal_heap *heap)
{
    pthread_mutex_t *mutex = &heap->header->lock.mutex;
    if (pthread_mutex_lock(mutex) == EOWNERDEAD) {
        extent_repair(heap);
        pthread_mutex_consistent(mutex);
    }
}

void heap_unlock(shoal_heap *heap)
{
    pthread_mutex_unlock(&heap->header->lock.mutex);
}

/* ------------------------------------------------------------------------ blocks ---- */

/* The first page of the large block that starts at this offset of the data area; false: none does. */
static bool large_at(const shoal_heap *heap, uint64_t offset, uint32_t *start, uint64_t *word)
{
    if (offset % HEAP_PAGE != 0 || offset / HEAP_PAGE >= heap->pages)
        return false;
    uint32_t page = (uint32_t)(offset / HEAP_PAGE);
    if (page >= atomic_load_explicit(&heap->header->top, memory_order_acquire))
        return false;
    /* acquire: pairs with the release in extent.c; the owner comes with it */
    *word = atomic_load_explicit(&heap->records[page].word, memory_order_acquire);
    enum extent_kind kind = extent_kind_of(*word);
    if ((kind != EXTENT_USED && kind != EXTENT_RETIRED) || extent_pages_of(*word) > heap->pages - page)
        return false;
    if (kind == EXTENT_USED && atomic_load_explicit(&heap->records[page].owner, memory_order_relaxed) == HEAP_NOBODY)
        return false; /* a slab in the making */
    *start = page;
    return true;
}

/* What a reference names. */
struct found {
    bool large;
    uint32_t start, index;
    uint64_t word; /* of the extent, if large */
    _Atomic uint64_t *small;
    size_t size;
};

static bool find(const shoal_heap *heap, shoal_block block, struct found *out)
{
    uint64_t data_at = (uint64_t)(heap->data - (uint8_t *)heap->header);
    if (block < data_at || block - data_at >= (uint64_t)heap->pages * HEAP_PAGE || block % 64 != 0)
        return false;
    uint64_t offset = block - data_at;
    if (large_at(heap, offset, &out->start, &out->word)) {
        out->large = true;
        out->size = (size_t)extent_pages_of(out->word) * HEAP_PAGE;
        return true;
    }
    out->large = false;
    out->small = slab_word(heap, offset, &out->start, &out->index, &out->size);
    return out->small != NULL && (atomic_load_explicit(out->small, memory_order_relaxed) & SMALL_USED) != 0;
}

/* Locked. */
static int take(shoal_heap *heap, size_t size, uint32_t owner, shoal_block *out)
{
    if (size < SHOAL_VIEW_MINIMUM)
        return slab_take(heap, size, owner, out);
    uint32_t start, pages = (uint32_t)((size + HEAP_PAGE - 1) / HEAP_PAGE);
    int error = extent_take(heap, pages, EXTENT_USED, 0, owner, &start);
    if (error != 0)
        return error;
    heap->header->used_bytes += (uint64_t)pages * HEAP_PAGE;
    heap->header->blocks++;
    *out = (uint64_t)start * HEAP_PAGE + heap->header->data_at;
    return 0;
}

int shoal_heap_allocate(shoal_heap *heap, size_t size, uint32_t owner, shoal_block *out)
{
    if (size == 0 || owner == HEAP_NOBODY)
        return -EINVAL;
    uint64_t pages = ((uint64_t)size + HEAP_PAGE - 1) / HEAP_PAGE;
    if (size > SIZE_MAX - HEAP_PAGE || pages > heap->pages)
        return -ENOMEM;
    heap_lock(heap);
    int error = take(heap, size, owner, out);
    /* Each class keeps a slab that holds nothing, for its next block; here others need the memory more. */
    if (error == -ENOMEM && slab_reclaim(heap))
        error = take(heap, size, owner, out);
    heap_unlock(heap);
    return error;
}

/* Locked. */
static void give_large(shoal_heap *heap, uint32_t start, uint64_t word)
{
    heap->header->used_bytes -= (uint64_t)extent_pages_of(word) * HEAP_PAGE;
    heap->header->blocks--;
    extent_give(heap, start);
}

int shoal_heap_free(shoal_heap *heap, shoal_block block)
{
    struct found found;
    int error = -EINVAL;
    heap_lock(heap);
    if (find(heap, block, &found)) {
        error = 0;
        if (!found.large)
            slab_give(heap, found.start, found.index);
        else if (extent_kind_of(found.word) == EXTENT_USED)
            give_large(heap, found.start, found.word);
        else
            error = -EINVAL; /* retired: somebody's private memory rests on it */
    }
    heap_unlock(heap);
    return error;
}

void heap_retire(shoal_heap *heap, uint32_t start)
{
    heap_lock(heap);
    const uint32_t pages = extent_pages_of(atomic_load_explicit(&heap->records[start].word, memory_order_relaxed));
    atomic_store_explicit(&heap->records[start].word, extent_word(EXTENT_RETIRED, EXTENT_WARM, 0, pages),
                          memory_order_relaxed);
    heap->header->used_bytes -= (uint64_t)pages * HEAP_PAGE;
    heap->header->blocks--;
    heap_unlock(heap);
}

void heap_take_back(shoal_heap *heap, uint32_t start)
{
    heap_lock(heap);
    if (extent_kind_of(atomic_load_explicit(&heap->records[start].word, memory_order_relaxed)) == EXTENT_RETIRED)
        extent_give(heap, start);
    heap_unlock(heap);
}

void *shoal_heap_pointer(shoal_heap *heap, shoal_block block, size_t *size)
{
    struct found found;
    if (!find(heap, block, &found))
        return NULL;
    if (size != NULL)
        *size = found.size;
    return (uint8_t *)heap->header + block;
}

static int write_through(const shoal_heap *heap, uint64_t at, const uint8_t *data, size_t size)
{
    /* As in region.c: over the limit the kernel would end the process. */
    struct rlimit limit;
    if (getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY && at + size > limit.rlim_cur)
        return -EFBIG;
    while (size > 0) {
        ssize_t written = pwrite(shoal_region_fd(heap->region), data, size, (off_t)at);
        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0)
            return written < 0 ? -errno : -ENOSPC;
        at += (uint64_t)written;
        data += written;
        size -= (size_t)written;
    }
    return 0;
}

int shoal_heap_write(shoal_heap *heap, shoal_block block, size_t offset, const void *data, size_t size)
{
    struct found found;
    if (!find(heap, block, &found) || offset > found.size || size > found.size - offset)
        return -EINVAL;
    /* A retired block is private memory by now: only the mapping reaches it. */
    if (found.large && size >= WRITE_THROUGH && (found.word & EXTENT_WARM) == 0 &&
        extent_kind_of(found.word) == EXTENT_USED)
        return write_through(heap, block + offset, data, size);
    memcpy((uint8_t *)heap->header + block + offset, data, size);
    return 0;
}

int shoal_heap_owner(shoal_heap *heap, shoal_block block, uint32_t *owner)
{
    struct found found;
    if (!find(heap, block, &found))
        return -EINVAL;
    *owner = found.large ? atomic_load_explicit(&heap->records[found.start].owner, memory_order_relaxed)
                         : (uint32_t)atomic_load_explicit(found.small, memory_order_relaxed);
    return 0;
}

int shoal_heap_give(shoal_heap *heap, shoal_block block, uint32_t from, uint32_t to)
{
    struct found found;
    if (!find(heap, block, &found) || to == HEAP_NOBODY)
        return -EINVAL;
    /* acq_rel: the old owner's writes come before, the new one's after */
    bool given;
    if (found.large) {
        given = atomic_compare_exchange_strong_explicit(&heap->records[found.start].owner, &from, to,
                                                        memory_order_acq_rel, memory_order_relaxed);
    } else {
        uint64_t expected = SMALL_USED | from;
        given = atomic_compare_exchange_strong_explicit(found.small, &expected, SMALL_USED | to, memory_order_acq_rel,
                                                        memory_order_relaxed);
    }
    return given ? 0 : -EPERM;
}

/* ------------------------------------------------------------------ whole heap ---- */

static size_t sweep_slab(shoal_heap *heap, uint32_t start, uint32_t owner)
{
    uint32_t class = extent_class_of(atomic_load_explicit(&heap->records[start].word, memory_order_relaxed));
    size_t freed = 0;
    for (uint32_t i = 0; i < slab_blocks(class); i++) {
        /* The slab itself may be given back with its last block; then there is nothing left to look at. */
        if (extent_kind_of(atomic_load_explicit(&heap->records[start].word, memory_order_relaxed)) != EXTENT_SLAB)
            break;
        if (atomic_load_explicit(&slab_words(heap, start)[i], memory_order_relaxed) == (SMALL_USED | owner)) {
            slab_give(heap, start, i);
            freed++;
        }
    }
    return freed;
}

int shoal_heap_sweep(shoal_heap *heap, uint32_t owner, size_t *freed)
{
    size_t count = 0;
    heap_lock(heap);
    uint32_t top = atomic_load_explicit(&heap->header->top, memory_order_relaxed);
    for (uint32_t page = 0; page < top;) {
        /* Freeing joins extents, never past the next one that is in use: it is still where it was. */
        uint32_t next = extent_next(heap, page);
        uint64_t word = atomic_load_explicit(&heap->records[page].word, memory_order_relaxed);
        if (extent_kind_of(word) == EXTENT_USED &&
            atomic_load_explicit(&heap->records[page].owner, memory_order_relaxed) == owner) {
            give_large(heap, page, word);
            count++;
        } else if (extent_kind_of(word) == EXTENT_SLAB) {
            count += sweep_slab(heap, page, owner);
        }
        page = next;
    }
    heap_unlock(heap);
    if (freed != NULL)
        *freed = count;
    return 0;
}

int shoal_heap_trim(shoal_heap *heap)
{
    int error = 0;
    heap_lock(heap);
    (void)slab_reclaim(heap);
    uint32_t top = atomic_load_explicit(&heap->header->top, memory_order_relaxed);
    for (uint32_t page = 0; page < top && error == 0; page = extent_next(heap, page)) {
        uint64_t word = atomic_load_explicit(&heap->records[page].word, memory_order_relaxed);
        if (extent_kind_of(word) != EXTENT_FREE || (word & EXTENT_TOUCHED) == 0)
            continue;
        off_t at = (off_t)(heap->header->data_at + (uint64_t)page * HEAP_PAGE);
        if (fallocate(shoal_region_fd(heap->region), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at,
                      (off_t)extent_pages_of(word) * (off_t)HEAP_PAGE) != 0)
            error = -errno;
        else
            atomic_store_explicit(&heap->records[page].word, word & ~EXTENT_HEAT, memory_order_relaxed);
    }
    heap_unlock(heap);
    return error;
}

int shoal_heap_count(shoal_heap *heap, struct shoal_heap_numbers *out)
{
    struct shoal_heap_numbers numbers = {0};
    heap_lock(heap);
    numbers.limit = (uint64_t)heap->pages * HEAP_PAGE;
    numbers.used = heap->header->used_bytes;
    numbers.blocks = heap->header->blocks;
    uint32_t top = atomic_load_explicit(&heap->header->top, memory_order_relaxed);
    for (uint32_t page = 0; page < top; page = extent_next(heap, page)) {
        uint64_t word = atomic_load_explicit(&heap->records[page].word, memory_order_relaxed);
        uint64_t bytes = (uint64_t)extent_pages_of(word) * HEAP_PAGE;
        if (extent_kind_of(word) == EXTENT_FREE)
            numbers.free += bytes;
        if (extent_kind_of(word) != EXTENT_FREE || (word & EXTENT_TOUCHED) != 0)
            numbers.touched += bytes;
    }
    heap_unlock(heap);
    *out = numbers;
    return 0;
}
