/* memory/slab.c: small blocks: slabs of equal blocks, each slab an extent.
 *
 * Block sizes go up in steps of 64 bytes to 256, then four to a doubling, so a block wastes a fifth at the most. A slab
 * begins with a word a block that says whether it is in use and whose it is, or which block is free next; the word is
 * all that counts, the free list is made again from it. Called by heap.c with the heap's lock, but for slab_word.
 */
#include "memory/heap.h"

#include <errno.h>

#define SLAB_LEAST_PAGES 16u
#define SLAB_LEAST_BLOCKS 8u
#define BLOCK_ALIGNMENT 64u
#define CLASSES_IN_USE 37u

/* Classes 0 to 3: 64, 128, 192, 256; then 320, 384, 448, 512, 640 … up to 65536. */
size_t slab_block_size(uint32_t class)
{
    if (class < 4)
        return ((size_t) class + 1) * 64;
    uint32_t doubling = (class - 4) / 4, step = (class - 4) % 4 + 1;
    return ((size_t)256 << doubling) + ((size_t)64 << doubling) * step;
}
static_assert(CLASSES_IN_USE <= HEAP_CLASSES, "each class has its list");

static uint32_t class_of(size_t size)
{
    if (size <= 256)
        return (uint32_t)((size + 63) / 64) - 1;
    uint32_t log = 63u - (uint32_t)__builtin_clzll((unsigned long long)(size - 1));
    uint32_t doubling = log - 8;
    size_t above = size - ((size_t)256 << doubling);
    return 4 + doubling * 4 + (uint32_t)((above - 1) / ((size_t)64 << doubling));
}

static uint32_t slab_pages(uint32_t class)
{
    size_t bytes = SLAB_LEAST_BLOCKS * (slab_block_size(class) + sizeof(uint64_t)) + BLOCK_ALIGNMENT;
    uint32_t pages = (uint32_t)((bytes + HEAP_PAGE - 1) / HEAP_PAGE);
    return pages < SLAB_LEAST_PAGES ? SLAB_LEAST_PAGES : pages;
}

uint32_t slab_blocks(uint32_t class)
{
    size_t bytes = (size_t)slab_pages(class) * HEAP_PAGE - BLOCK_ALIGNMENT;
    return (uint32_t)(bytes / (slab_block_size(class) + sizeof(uint64_t)));
}

/* Where the first block lies, from the slab's start. */
static size_t blocks_at(uint32_t class)
{
    size_t words = (size_t)slab_blocks(class) * sizeof(uint64_t);
    return (words + BLOCK_ALIGNMENT - 1) / BLOCK_ALIGNMENT * BLOCK_ALIGNMENT;
}

static uint32_t class_of_slab(const shoal_heap *heap, uint32_t start)
{
    return extent_class_of(atomic_load_explicit(&heap->records[start].word, memory_order_relaxed));
}

static void list_insert(shoal_heap *heap, uint32_t class, uint32_t start)
{
    struct page_record *record = &heap->records[start];
    record->previous = HEAP_NO_PAGE;
    record->next = heap->header->slabs[class];
    if (record->next < heap->pages)
        heap->records[record->next].previous = start;
    heap->header->slabs[class] = start;
}

static void list_remove(shoal_heap *heap, uint32_t class, uint32_t start)
{
    const struct page_record *record = &heap->records[start];
    if (record->previous < heap->pages)
        heap->records[record->previous].next = record->next;
    else
        heap->header->slabs[class] = record->next;
    if (record->next < heap->pages)
        heap->records[record->next].previous = record->previous;
}

/* Make the free list of a slab from its words. */
static void thread_words(shoal_heap *heap, uint32_t start, uint32_t class)
{
    struct page_record *record = &heap->records[start];
    _Atomic uint64_t *words = slab_words(heap, start);
    record->free_first = HEAP_NO_PAGE;
    record->used = 0;
    for (uint32_t i = slab_blocks(class); i-- > 0;) {
        if ((atomic_load_explicit(&words[i], memory_order_relaxed) & SMALL_USED) != 0) {
            record->used++;
        } else {
            atomic_store_explicit(&words[i], record->free_first, memory_order_relaxed);
            record->free_first = i;
        }
    }
}

static int add_slab(shoal_heap *heap, uint32_t class)
{
    uint32_t start, pages = slab_pages(class);
    /* Taken as a used block of nobody first: its words must be set before the walk may take it for a slab. */
    int error = extent_take(heap, pages, EXTENT_USED, 0, HEAP_NOBODY, &start);
    if (error != 0)
        return error;
    _Atomic uint64_t *words = slab_words(heap, start);
    for (uint32_t i = 0; i < slab_blocks(class); i++)
        atomic_store_explicit(&words[i], 0, memory_order_relaxed);
    for (uint32_t i = 0; i < pages; i++)
        atomic_store_explicit(&heap->records[start + i].start, start, memory_order_relaxed);
    thread_words(heap, start, class);
    /* release: words and back pointers come before the kind that makes others read them */
    atomic_store_explicit(&heap->records[start].word, extent_word(EXTENT_SLAB, EXTENT_WARM, class, pages),
                          memory_order_release);
    list_insert(heap, class, start);
    return 0;
}

int slab_take(shoal_heap *heap, size_t size, uint32_t owner, shoal_block *out)
{
    uint32_t class = class_of(size);
    if (heap->header->slabs[class] >= heap->pages) {
        int error = add_slab(heap, class);
        if (error != 0)
            return error;
    }
    uint32_t start = heap->header->slabs[class];
    struct page_record *record = &heap->records[start];
    _Atomic uint64_t *words = slab_words(heap, start);
    uint32_t index = record->free_first;
    if (index >= slab_blocks(class))
        return SHOAL_ECORRUPT;
    record->free_first = (uint32_t)atomic_load_explicit(&words[index], memory_order_relaxed);
    atomic_store_explicit(&words[index], SMALL_USED | owner, memory_order_relaxed);
    if (++record->used == slab_blocks(class) || record->free_first == HEAP_NO_PAGE)
        list_remove(heap, class, start);
    heap->header->used_bytes += slab_block_size(class);
    heap->header->blocks++;
    *out = (uint64_t)start * HEAP_PAGE + blocks_at(class) + (uint64_t)index * slab_block_size(class) +
           heap->header->data_at;
    return 0;
}

void slab_give(shoal_heap *heap, uint32_t start, uint32_t index)
{
    uint32_t class = class_of_slab(heap, start);
    struct page_record *record = &heap->records[start];
    _Atomic uint64_t *words = slab_words(heap, start);
    bool was_full = record->free_first == HEAP_NO_PAGE;
    atomic_store_explicit(&words[index], record->free_first, memory_order_relaxed);
    record->free_first = index;
    record->used--;
    heap->header->used_bytes -= slab_block_size(class);
    heap->header->blocks--;
    if (was_full) {
        list_insert(heap, class, start);
    } else if (record->used == 0 && (record->previous < heap->pages || record->next < heap->pages)) {
        /* Empty, and another of its class has room: its pages can serve others. */
        list_remove(heap, class, start);
        extent_give(heap, start);
    }
}

bool slab_reclaim(shoal_heap *heap)
{
    bool any = false;
    for (uint32_t class = 0; class < CLASSES_IN_USE; class ++) {
        uint32_t at = heap->header->slabs[class];
        /* No more steps than there can be slabs: a list that was overwritten may lead in a circle. */
        for (uint32_t steps = 0; at < heap->pages && steps < heap->pages / SLAB_LEAST_PAGES; steps++) {
            uint32_t next = heap->records[at].next;
            if (heap->records[at].used == 0) {
                list_remove(heap, class, at);
                extent_give(heap, at);
                any = true;
            }
            at = next;
        }
    }
    return any;
}

void slab_repair(shoal_heap *heap, uint32_t start, uint64_t word)
{
    uint32_t class = extent_class_of(word);
    if (class >= CLASSES_IN_USE || extent_pages_of(word) < slab_pages(class))
        return; /* overwritten memory: left alone */
    thread_words(heap, start, class);
    heap->header->used_bytes += (uint64_t)heap->records[start].used * slab_block_size(class);
    heap->header->blocks += heap->records[start].used;
    if (heap->records[start].free_first != HEAP_NO_PAGE)
        list_insert(heap, class, start);
}

_Atomic uint64_t *slab_word(const shoal_heap *heap, uint64_t offset, uint32_t *start, uint32_t *index, size_t *size)
{
    uint64_t page = offset / HEAP_PAGE;
    if (page >= heap->pages)
        return NULL;
    uint32_t first = atomic_load_explicit(&heap->records[page].start, memory_order_relaxed);
    if (first > page)
        return NULL;
    /* acquire: pairs with the release in add_slab */
    uint64_t word = atomic_load_explicit(&heap->records[first].word, memory_order_acquire);
    uint32_t class = extent_class_of(word), pages = extent_pages_of(word);
    if (extent_kind_of(word) != EXTENT_SLAB || class >= CLASSES_IN_USE || page - first >= pages ||
        pages > heap->pages - first || pages < slab_pages(class))
        return NULL;
    uint64_t inside = offset - (uint64_t)first * HEAP_PAGE;
    size_t each = slab_block_size(class);
    if (inside < blocks_at(class) || (inside - blocks_at(class)) % each != 0)
        return NULL;
    uint64_t number = (inside - blocks_at(class)) / each;
    if (number >= slab_blocks(class))
        return NULL;
    *start = first;
    *index = (uint32_t)number;
    *size = each;
    return &slab_words(heap, first)[number];
}
