/* memory/heap.h: what a heap's processes share, and the handle, for the files of this room.
 *
 * The data area is divided into extents of whole pages, which follow each other without gaps up to `top`. What is known
 * of them lies outside of them, in a table with a record a page, so that a block's pages hold nothing but the block,
 * and a reference can be checked without trusting a byte of user data. Three kinds: free, used (one large block), slab
 * (many small blocks of one size).
 *
 * Invariant, after every single store: walking from page 0 by the lengths in the records reaches `top`, and each extent
 * met is of one kind. Free lists, counts and back pointers are derived, and are made again (heap_repair) when a process
 * died while it held the lock.
 */
#ifndef SHOAL_MEMORY_HEAP_H
#define SHOAL_MEMORY_HEAP_H

#include <assert.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "shoal.h"

#define HEAP_MAGIC UINT64_C(0x3150414548484c53) /* "SLHHEAP1" */
#define HEAP_VERSION 1u
#define HEAP_PAGE ((size_t)4096)
#define HEAP_BINS 128u   /* free extents by size, four to a doubling */
#define HEAP_CLASSES 48u /* slab block sizes, four to a doubling from 256 on */
#define HEAP_NO_PAGE UINT32_MAX
#define HEAP_NOBODY UINT32_MAX /* owner of a slab in the making */

enum extent_kind { EXTENT_NONE = 0, EXTENT_FREE = 1, EXTENT_USED = 2, EXTENT_SLAB = 3, EXTENT_RETIRED = 4 };

/* An extent's word: bits 0-7 kind, 8-9 heat, 16-23 slab class, 32-63 pages. Heat is what is known of the extent's
 * pages: all were touched (it is as fast to write to them as it gets), or some may have been (there is memory to give
 * back). */
#define EXTENT_WARM (UINT64_C(1) << 8)
#define EXTENT_TOUCHED (UINT64_C(1) << 9)
#define EXTENT_HEAT (EXTENT_WARM | EXTENT_TOUCHED)

static inline uint64_t extent_word(enum extent_kind kind, uint64_t heat, uint32_t class, uint32_t pages)
{
    return (uint64_t)pages << 32 | (uint64_t) class << 16 | heat | (uint64_t)kind;
}
/* What is known of two extents that become one. */
static inline uint64_t extent_joined_heat(uint64_t word, uint64_t other)
{
    return (word & other & EXTENT_WARM) | ((word | other) & EXTENT_TOUCHED);
}
static inline enum extent_kind extent_kind_of(uint64_t word)
{
    return (enum extent_kind)(word & 0xffu);
}
static inline uint32_t extent_pages_of(uint64_t word)
{
    return (uint32_t)(word >> 32);
}
static inline uint32_t extent_class_of(uint64_t word)
{
    return (uint32_t)(word >> 16) & 0xffu;
}

/* One a page; only those of an extent's first page (and `start` of its others, as far as they are filled in) mean
 * something. */
struct page_record {
    _Atomic uint64_t word;  /* changes under the lock */
    _Atomic uint32_t owner; /* of a used extent; by compare-and-swap, without the lock */
    _Atomic uint32_t
        start; /* the first page of the extent that this page is in: slabs' pages, and a free extent's last */
    uint32_t previous, next; /* in a bin, or in a class's list of slabs with room */
    uint32_t free_first;     /* slab: index of its first free block, HEAP_NO_PAGE for none */
    uint32_t used;           /* slab: blocks in use */
};
static_assert(sizeof(struct page_record) == 32, "two to a cache line");

/* A slab's small blocks: a word each, at its start: bit 63: in use, by the owner in the low half; else the index of the
 * next free block. */
#define SMALL_USED (UINT64_C(1) << 63)

struct heap_header {
    uint64_t magic;
    uint32_t version, record_size;
    uint64_t size; /* of the region */
    uint64_t records_at, data_at;
    uint32_t pages; /* of the data area */
    uint32_t unused0;
    union {
        pthread_mutex_t mutex;
        uint8_t bytes[64];
    } lock;
    _Atomic uint32_t top; /* pages in extents; changes under the lock */
    uint32_t unused1;
    uint64_t used_bytes, blocks; /* derived */
    uint64_t bins_in_use[HEAP_BINS / 64];
    uint32_t bins[HEAP_BINS];
    uint32_t slabs[HEAP_CLASSES]; /* of each class, those with room */
};
static_assert(sizeof(pthread_mutex_t) <= 64, "the lock has its place");

struct shoal_heap {
    shoal_region *region;
    struct heap_header *header;
    struct page_record *records;
    uint8_t *data;
    uint32_t pages;
    _Atomic uint32_t holders;
};

/* heap.c */
void heap_lock(shoal_heap *heap); /* repairs if the last holder died */
void heap_unlock(shoal_heap *heap);
/* A large block that private memory rests on, and one that it does no more: free. */
void heap_retire(shoal_heap *heap, uint32_t start);
void heap_take_back(shoal_heap *heap, uint32_t start);

/* loan.c: the heap is about to be unmapped; the blocks that wait to be taken back are left as they are */
void loan_forget_heap(const shoal_heap *heap);

/* extent.c: whole pages; locked */
int extent_take(shoal_heap *heap, uint32_t pages, enum extent_kind kind, uint32_t class, uint32_t owner,
                uint32_t *start);
void extent_give(shoal_heap *heap, uint32_t start);
void extent_repair(shoal_heap *heap);
/* The first page of the extent after the one that starts here. */
static inline uint32_t extent_next(const shoal_heap *heap, uint32_t page)
{
    uint64_t word = atomic_load_explicit(&heap->records[page].word, memory_order_relaxed);
    uint32_t pages = extent_pages_of(word);
    /* A length of 0 or past the end is overwritten memory: a walk must end all the same. */
    return pages == 0 || pages > heap->pages - page ? heap->pages : page + pages;
}

/* slab.c: small blocks; locked but for slab_word */
int slab_take(shoal_heap *heap, size_t size, uint32_t owner, shoal_block *out);
void slab_give(shoal_heap *heap, uint32_t start, uint32_t index);
bool slab_reclaim(shoal_heap *heap); /* gives back the slabs that hold no block; whether there were any */
void slab_repair(shoal_heap *heap, uint32_t start, uint64_t word);
/* The word of the small block at this offset of the data area, and where it lies; NULL: no small block starts there. */
_Atomic uint64_t *slab_word(const shoal_heap *heap, uint64_t offset, uint32_t *start, uint32_t *index, size_t *size);
uint32_t slab_blocks(uint32_t class);
size_t slab_block_size(uint32_t class);
static inline _Atomic uint64_t *slab_words(const shoal_heap *heap, uint32_t start)
{
    return (_Atomic uint64_t *)(void *)(heap->data + (size_t)start * HEAP_PAGE);
}

#endif
