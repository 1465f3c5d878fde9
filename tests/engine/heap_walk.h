/* tests/engine/heap_walk.h: a walk over a heap's records that checks what heap.h calls the invariant, and all that is
 * derived from it. For a heap that no other process uses at the moment. */
#ifndef SHOAL_TESTS_HEAP_WALK_H
#define SHOAL_TESTS_HEAP_WALK_H

#include "helpers.h"

#include "memory/heap.h"

struct heap_walk {
    size_t free_extents, used_extents, slabs, retired;
    size_t largest;     /* pages in a row that are free */
    size_t used_blocks; /* in extents of their own and in slabs */
};

/* How many free extents the bins' lists hold. */
static inline size_t heap_walk_bins(const shoal_heap *heap)
{
    size_t listed = 0;
    for (size_t bin = 0; bin < HEAP_BINS; bin++) {
        uint32_t behind = HEAP_NO_PAGE;
        bool in_use = (heap->header->bins_in_use[bin / 64] >> (bin % 64) & 1) != 0;
        CHECK(in_use == (heap->header->bins[bin] != HEAP_NO_PAGE));
        for (uint32_t at = heap->header->bins[bin]; at != HEAP_NO_PAGE; at = heap->records[at].next) {
            CHECK(at < heap->pages && ++listed <= heap->pages);
            CHECK(extent_kind_of(atomic_load(&heap->records[at].word)) == EXTENT_FREE);
            CHECK(heap->records[at].previous == behind);
            behind = at;
        }
    }
    return listed;
}

/* A slab's words agree with its counts and its free list. */
static inline void heap_walk_slab(const shoal_heap *heap, uint32_t start, uint64_t word, struct heap_walk *walk)
{
    const struct page_record *record = &heap->records[start];
    _Atomic uint64_t *words = slab_words(heap, start);
    uint32_t blocks = slab_blocks(extent_class_of(word)), used = 0, listed = 0;
    for (uint32_t i = 0; i < blocks; i++)
        used += (atomic_load(&words[i]) & SMALL_USED) != 0;
    for (uint32_t i = record->free_first; i != HEAP_NO_PAGE; i = (uint32_t)atomic_load(&words[i])) {
        CHECK(i < blocks && ++listed <= blocks);
        CHECK((atomic_load(&words[i]) & SMALL_USED) == 0);
    }
    CHECK(record->used == used);
    CHECK(listed == blocks - used);
    for (uint32_t i = 0; i < extent_pages_of(word); i++)
        CHECK(atomic_load(&heap->records[start + i].start) == start);
    walk->slabs++;
    walk->used_blocks += used;
}

static UNUSED struct heap_walk walk_heap(const shoal_heap *heap)
{
    struct heap_walk walk = {0};
    uint32_t top = atomic_load(&heap->header->top), page = 0;
    bool free_before = false;
    CHECK(top <= heap->pages);
    while (page < top) {
        uint64_t word = atomic_load(&heap->records[page].word);
        uint32_t pages = extent_pages_of(word);
        CHECK(pages > 0 && pages <= top - page);
        bool is_free = extent_kind_of(word) == EXTENT_FREE;
        CHECK(!(is_free && free_before)); /* two in a row would stay two for good */
        if (is_free) {
            size_t row = page + pages == top ? heap->pages - page : pages;
            walk.largest = row > walk.largest ? row : walk.largest;
            walk.free_extents++;
            CHECK(atomic_load(&heap->records[page + pages - 1].start) == page);
        } else if (extent_kind_of(word) == EXTENT_USED) {
            CHECK(atomic_load(&heap->records[page].owner) != HEAP_NOBODY);
            walk.used_extents++;
            walk.used_blocks++;
        } else if (extent_kind_of(word) == EXTENT_SLAB) {
            heap_walk_slab(heap, page, word, &walk);
        } else {
            CHECK(extent_kind_of(word) == EXTENT_RETIRED);
            walk.retired++;
        }
        free_before = is_free;
        page += pages;
    }
    CHECK(page == top);
    walk.largest = heap->pages - top > walk.largest ? heap->pages - top : walk.largest;
    CHECK(heap_walk_bins(heap) == walk.free_extents);
    CHECK(heap->header->blocks == walk.used_blocks);
    return walk;
}

#endif
