/* memory/extent.c: extents of whole pages: taken best fit first, split, given back, joined with free neighbours.
 *
 * Each change of the walk is one store of one word: a split writes the rear part's record first, which nobody reaches
 * yet, then shortens the front part; a join lengthens the front part, after which nobody reaches the rear part. A
 * record that is not, or may not be, reached has the kind NONE, so that no left-over is ever taken for an extent.
 * Called with the heap's lock by slab.c and heap.c.
 */
#include "memory/heap.h"

#include <errno.h>

static uint64_t load_word(const shoal_heap *heap, uint32_t page)
{
    return atomic_load_explicit(&heap->records[page].word, memory_order_relaxed);
}

static void store_word(shoal_heap *heap, uint32_t page, uint64_t word)
{
    /* release: what was written about the extent comes before the word that makes it one */
    atomic_store_explicit(&heap->records[page].word, word, memory_order_release);
}

/* Four bins to a doubling: an extent in a bin has at least bin_floor(bin) pages. */
static uint32_t bin_of(uint32_t pages)
{
    if (pages < 4)
        return pages;
    uint32_t log = 31u - (uint32_t)__builtin_clz(pages);
    uint32_t bin = log * 4 + ((pages >> (log - 2)) & 3u) - 4;
    return bin < HEAP_BINS ? bin : HEAP_BINS - 1;
}

static void bin_insert(shoal_heap *heap, uint32_t start, uint32_t pages)
{
    struct heap_header *header = heap->header;
    struct page_record *record = &heap->records[start];
    uint32_t bin = bin_of(pages);
    record->previous = HEAP_NO_PAGE;
    record->next = header->bins[bin];
    if (record->next < heap->pages)
        heap->records[record->next].previous = start;
    header->bins[bin] = start;
    header->bins_in_use[bin / 64] |= UINT64_C(1) << (bin % 64);
    atomic_store_explicit(&heap->records[start + pages - 1].start, start, memory_order_relaxed);
}

static void bin_remove(shoal_heap *heap, uint32_t start, uint32_t pages)
{
    struct heap_header *header = heap->header;
    const struct page_record *record = &heap->records[start];
    uint32_t bin = bin_of(pages);
    if (record->previous < heap->pages)
        heap->records[record->previous].next = record->next;
    else
        header->bins[bin] = record->next;
    if (record->next < heap->pages)
        heap->records[record->next].previous = record->previous;
    if (header->bins[bin] >= heap->pages)
        header->bins_in_use[bin / 64] &= ~(UINT64_C(1) << (bin % 64));
}

/* A free extent of at least so many pages: the best among the first few of its own bin, else the latest of the next bin
 * that has any. */
static uint32_t find_free(const shoal_heap *heap, uint32_t pages)
{
    const struct heap_header *header = heap->header;
    uint32_t bin = bin_of(pages), best = HEAP_NO_PAGE, best_pages = UINT32_MAX;
    uint32_t looked = 0;
    for (uint32_t at = header->bins[bin]; at < heap->pages && looked < 32; at = heap->records[at].next, looked++) {
        uint32_t here = extent_pages_of(load_word(heap, at));
        if (here >= pages && here < best_pages) {
            best = at;
            best_pages = here;
            if (here == pages)
                break;
        }
    }
    if (best != HEAP_NO_PAGE)
        return best;
    for (uint32_t next = bin + 1; next < HEAP_BINS; next++) {
        if ((header->bins_in_use[next / 64] >> (next % 64) & 1) == 0)
            continue;
        uint32_t at = header->bins[next];
        if (at < heap->pages && extent_pages_of(load_word(heap, at)) >= pages)
            return at;
    }
    /* The rest of its own bin: slow, but before memory is called short. */
    for (uint32_t at = header->bins[bin]; at < heap->pages; at = heap->records[at].next) {
        if (extent_pages_of(load_word(heap, at)) >= pages)
            return at;
    }
    return HEAP_NO_PAGE;
}

static uint32_t grow_top(shoal_heap *heap, uint32_t pages, uint64_t word)
{
    uint32_t top = atomic_load_explicit(&heap->header->top, memory_order_relaxed);
    if (pages > heap->pages - top)
        return HEAP_NO_PAGE;
    store_word(heap, top, word);
    /* release: the record comes before the top that makes it reachable */
    atomic_store_explicit(&heap->header->top, top + pages, memory_order_release);
    return top;
}

/* The free extent that ends where this page begins, or HEAP_NO_PAGE. */
static uint32_t free_before(const shoal_heap *heap, uint32_t page)
{
    if (page == 0)
        return HEAP_NO_PAGE;
    /* A free extent's last page tells where it begins; verified there, as the pointer is left over when extents
     * change. */
    uint32_t before = atomic_load_explicit(&heap->records[page - 1].start, memory_order_relaxed);
    uint64_t word = before < page ? load_word(heap, before) : 0;
    return extent_kind_of(word) == EXTENT_FREE && extent_pages_of(word) == page - before ? before : HEAP_NO_PAGE;
}

/* Lengthen the free extent at the end up to so many pages: else a heap that is free, but was used in smaller blocks
 * once, would not serve a larger one. */
static uint32_t grow_last(shoal_heap *heap, uint32_t pages)
{
    uint32_t top = atomic_load_explicit(&heap->header->top, memory_order_relaxed);
    uint32_t last = free_before(heap, top);
    if (last == HEAP_NO_PAGE || pages <= top - last || pages - (top - last) > heap->pages - top)
        return HEAP_NO_PAGE;
    const uint64_t heat = load_word(heap, last) & EXTENT_TOUCHED; /* what is new is not warm */
    const uint32_t have = top - last;
    bin_remove(heap, last, have);
    grow_top(heap, pages - have, extent_word(EXTENT_NONE, 0, 0, pages - have));
    store_word(heap, last, extent_word(EXTENT_FREE, heat, 0, pages));
    bin_insert(heap, last, pages);
    return last;
}

int extent_take(shoal_heap *heap, uint32_t pages, enum extent_kind kind, uint32_t class, uint32_t owner,
                uint32_t *start)
{
    uint32_t found = find_free(heap, pages);
    if (found == HEAP_NO_PAGE)
        found = grow_last(heap, pages);
    if (found == HEAP_NO_PAGE) {
        uint32_t top = atomic_load_explicit(&heap->header->top, memory_order_relaxed);
        if (pages > heap->pages - top)
            return -ENOMEM;
        atomic_store_explicit(&heap->records[top].owner, owner, memory_order_relaxed);
        found = grow_top(heap, pages, extent_word(kind, 0, class, pages));
    } else {
        uint64_t word = load_word(heap, found);
        uint32_t have = extent_pages_of(word);
        bin_remove(heap, found, have);
        if (have > pages) {
            store_word(heap, found + pages, extent_word(EXTENT_NONE, word & EXTENT_HEAT, 0, have - pages));
            store_word(heap, found, extent_word(EXTENT_FREE, word & EXTENT_HEAT, 0, pages));
            store_word(heap, found + pages, extent_word(EXTENT_FREE, word & EXTENT_HEAT, 0, have - pages));
            bin_insert(heap, found + pages, have - pages);
        }
        atomic_store_explicit(&heap->records[found].owner, owner, memory_order_relaxed);
        store_word(heap, found, extent_word(kind, word & EXTENT_HEAT, class, pages));
    }
    *start = found;
    return 0;
}

void extent_give(shoal_heap *heap, uint32_t start)
{
    uint64_t word = load_word(heap, start);
    uint32_t pages = extent_pages_of(word);
    uint64_t heat = EXTENT_HEAT; /* it was used, so its pages are there */
    store_word(heap, start, extent_word(EXTENT_FREE, heat, 0, pages));

    uint32_t top = atomic_load_explicit(&heap->header->top, memory_order_relaxed);
    uint32_t after = start + pages;
    if (after < top) {
        uint64_t next = load_word(heap, after);
        if (extent_kind_of(next) == EXTENT_FREE) {
            bin_remove(heap, after, extent_pages_of(next));
            pages += extent_pages_of(next);
            heat = extent_joined_heat(heat, next);
            store_word(heap, after, extent_word(EXTENT_NONE, next & EXTENT_HEAT, 0, extent_pages_of(next)));
            store_word(heap, start, extent_word(EXTENT_FREE, heat, 0, pages));
        }
    }
    uint32_t before = free_before(heap, start);
    if (before != HEAP_NO_PAGE) {
        bin_remove(heap, before, start - before);
        store_word(heap, start, extent_word(EXTENT_NONE, heat, 0, pages));
        heat = extent_joined_heat(heat, load_word(heap, before));
        pages += start - before;
        store_word(heap, before, extent_word(EXTENT_FREE, heat, 0, pages));
        start = before;
    }
    bin_insert(heap, start, pages);
}

/* Whether a walk finds memory of nobody at this page. NONE: a process died in the middle of a split or a join; a used
 * block of nobody: of the making of a slab. */
static bool is_vacant(const shoal_heap *heap, uint32_t page)
{
    enum extent_kind kind = extent_kind_of(load_word(heap, page));
    uint32_t owner = atomic_load_explicit(&heap->records[page].owner, memory_order_relaxed);
    return kind == EXTENT_FREE || kind == EXTENT_NONE || (kind == EXTENT_USED && owner == HEAP_NOBODY);
}

/* Make one free extent of this one and the vacant ones behind it: what a death kept apart nobody would join later, as
 * both are free already. Returns its pages. */
static uint32_t join_vacant(shoal_heap *heap, uint32_t page, uint32_t top)
{
    uint64_t heat = load_word(heap, page) & EXTENT_HEAT;
    uint32_t end = extent_next(heap, page);
    if (end > top)
        end = top; /* overwritten memory */
    store_word(heap, page, extent_word(EXTENT_FREE, heat, 0, end - page));
    while (end < top && is_vacant(heap, end)) {
        uint64_t word = load_word(heap, end);
        uint32_t next = extent_next(heap, end);
        if (next > top)
            next = top;
        heat = extent_joined_heat(heat, word);
        store_word(heap, end, extent_word(EXTENT_NONE, word & EXTENT_HEAT, 0, next - end));
        store_word(heap, page, extent_word(EXTENT_FREE, heat, 0, next - page));
        end = next;
    }
    return end - page;
}

void extent_repair(shoal_heap *heap)
{
    struct heap_header *header = heap->header;
    for (uint32_t i = 0; i < HEAP_BINS; i++)
        header->bins[i] = HEAP_NO_PAGE;
    for (uint32_t i = 0; i < HEAP_BINS / 64; i++)
        header->bins_in_use[i] = 0;
    for (uint32_t i = 0; i < HEAP_CLASSES; i++)
        header->slabs[i] = HEAP_NO_PAGE;
    header->used_bytes = header->blocks = 0;
    uint32_t top = atomic_load_explicit(&header->top, memory_order_relaxed);
    for (uint32_t page = 0; page < top; page = extent_next(heap, page)) {
        uint64_t word = load_word(heap, page);
        if (is_vacant(heap, page)) {
            bin_insert(heap, page, join_vacant(heap, page, top));
        } else if (extent_kind_of(word) == EXTENT_USED) {
            header->used_bytes += (uint64_t)extent_pages_of(word) * HEAP_PAGE;
            header->blocks++;
        } else if (extent_kind_of(word) == EXTENT_SLAB) {
            slab_repair(heap, page, word);
        }
    }
}
