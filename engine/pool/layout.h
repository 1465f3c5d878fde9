/* pool/layout.h: what a pool's processes share: the table of tasks, in one region.
 *
 * A slot's state word holds state, owner and generation, and changes by compare-and-swap only:
 *
 *     FREE -> READY -> RUNNING(owner) -> DONE(owner) -> FREE(generation + 1)
 *               ^          \--- owner died: the supervisor makes it DONE ---/
 *               \----------------------- resumed -----------------------/
 *
 * Invariant: who may write the rest of a slot is told by its state word alone: the submitter in FREE, the owner in
 * RUNNING, the collector in DONE. As the claim and the owner's name are one atomic step, a process may die at any
 * instruction and the supervisor can tell from the word what it left.
 *
 * Everything else is a hint that can be made again from the state words: the ready ring (which slots to try next), the
 * completion rings (which slots to collect next), the counters that decide whether to wake somebody.
 *
 * Used by the files of this room only.
 */
#ifndef SHOAL_POOL_LAYOUT_H
#define SHOAL_POOL_LAYOUT_H

#include <assert.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "shoal.h"
#include "sync/eventcount.h"

#define POOL_MAGIC UINT64_C(0x314c4f4f504c4853) /* "SHLPOOL1" */
#define POOL_VERSION 1u
#define POOL_SHARES 4096u
#define POOL_SLOTS_MOST (1u << 20)

enum slot_state { SLOT_FREE = 0, SLOT_READY = 1, SLOT_RUNNING = 2, SLOT_DONE = 3 };

/* The state word: bits 0-7 state, 8-31 owner, 32-63 generation. */
static inline uint64_t slot_word(uint32_t generation, uint32_t owner, enum slot_state state)
{
    return (uint64_t)generation << 32 | (uint64_t)(owner & 0xffffffu) << 8 | (uint64_t)state;
}
static inline enum slot_state slot_state_of(uint64_t word)
{
    return (enum slot_state)(word & 0xffu);
}
static inline uint32_t slot_owner_of(uint64_t word)
{
    return (uint32_t)(word >> 8) & 0xffffffu;
}
static inline uint32_t slot_generation_of(uint64_t word)
{
    return (uint32_t)(word >> 32);
}

#define SLOT_INLINE 160u

struct slot {
    _Atomic uint64_t state;
    /* the submitter's, who keeps what matters to him in his own memory too (struct slot_order) */
    uint32_t shared, flags;
    uint32_t items, first; /* first: where this round begins; earlier items were done in a round before */
    uint64_t args_block;   /* 0: the items lie in `bytes`, from the start */
    uint64_t args_size;
    uint32_t limited; /* 1: items have a time limit, so the worker tells when it begins one */
    /* the submitter's process's, at any time: 1: no further item of the task is begun */
    _Atomic uint32_t stop;
    uint32_t results_from; /* where results begin in `bytes` (the submitter's, written with the items) */
    /* the owner's */
    _Atomic uint32_t handing;       /* the number, from 1, of the item whose blocks are being made the worker's */
    _Atomic uint32_t finished;      /* items done, counted from 0; its increment publishes the result */
    _Atomic uint32_t taken;         /* up to this number, from 1, blocks of items are the worker's */
    _Atomic uint64_t results_block; /* 0: in `bytes` */
    _Atomic uint64_t results_size;
    int64_t elapsed;       /* ns */
    _Atomic int64_t began; /* when the item at hand was begun, where there is a limit; 0: none is at hand */
    uint8_t bytes[SLOT_INLINE];
};
static_assert(sizeof(struct slot) == 256, "four cache lines");
static_assert(offsetof(struct slot, bytes) % 8 == 0, "item headers lie aligned");

/* A worker's place: written by its worker, but for `owner`, which the supervisor sets before the worker starts. */
struct worker_record {
    _Atomic uint32_t owner;
    _Atomic int32_t pid;
    _Atomic uint32_t awake;       /* counted in table_header.awake */
    _Atomic uint32_t cpu;         /* where it ran last */
    _Atomic uint64_t completions; /* head of its completion ring: how many it ever pushed */
    _Atomic uint64_t tasks, items;
    _Atomic int64_t busy;  /* ns */
    _Atomic int64_t since; /* when it began to serve */
    _Atomic uint64_t bytes_in, bytes_out;
    pthread_mutex_t life; /* held by the worker while it serves (deaths.c) */
    uint8_t unused[128 - 72 - sizeof(pthread_mutex_t)];
};
static_assert(sizeof(struct worker_record) == 128, "no two workers share a line, nor the pair that is prefetched");

struct share_record {
    _Atomic uint32_t id; /* 0: free; else index | generation << 12 */
    uint32_t unused;
    uint64_t block;
    uint64_t size;
};

struct table_header {
    /* written once */
    uint64_t magic;
    uint32_t version, slot_size;
    uint32_t slots, workers;                                            /* slots: a power of 2 */
    uint64_t size;                                                      /* of the region */
    uint64_t workers_at, shares_at, ready_at, completions_at, slots_at; /* offsets */
    uint32_t cpus;                                                      /* that the owner may use */
    uint8_t unused0[128 - 76];

    /* the ready ring: entries slot | generation << 32; positions [ready_head, ready_tail) */
    _Atomic uint64_t ready_tail; /* the submitter's */
    uint8_t unused1[128 - 8];
    _Atomic uint64_t ready_head; /* any worker helps it forward, past entries that are taken */
    uint8_t unused2[128 - 8];

    struct eventcount work;   /* workers sleep here */
    _Atomic uint32_t awake;   /* workers that are not asleep; a hint, set right when a worker is buried */
    _Atomic uint32_t looking; /* owner of the one worker that may look instead of sleeping, or 0 */
    _Atomic uint32_t shut;    /* as shoal_pool_shut */
    uint8_t unused3[128 - 16];

    struct eventcount collect;  /* the owner's threads sleep here for completions */
    _Atomic uint32_t low_water; /* what those sleepers asked for */
    _Atomic uint32_t attention; /* 1: somebody wants the attention descriptor written */
    _Atomic uint32_t attention_low_water;
    _Atomic uint32_t owner_cpu; /* where the owner's waiting thread ran last */
    uint8_t unused4[128 - 20];
};
static_assert(sizeof(struct table_header) == 640, "five pairs of cache lines");

/* The region, with what was checked about it. */
struct table {
    shoal_region *region;
    struct table_header *header;
    struct worker_record *workers;
    struct share_record *shares;
    _Atomic uint64_t *ready;       /* 2 * slots entries */
    _Atomic uint32_t *completions; /* `slots` entries a worker */
    struct slot *slots;
    uint32_t slot_count, worker_count;
};

int table_create(uint32_t slots, uint32_t workers, struct table *out);
/* Maps and checks; SHOAL_ECORRUPT. */
int table_attach(int fd, struct table *out);
void table_close(struct table *table);

static inline uint64_t table_ready_mask(const struct table *table)
{
    return (uint64_t)table->slot_count * 2 - 1;
}

/* Where the bytes of a block lie, if `size` of them fit in it; else NULL. */
static inline uint8_t *block_bytes(shoal_heap *heap, shoal_block block, uint64_t size)
{
    size_t capacity;
    uint8_t *bytes = shoal_heap_pointer(heap, block, &capacity);
    return bytes != NULL && size <= capacity ? bytes : NULL;
}

#endif
