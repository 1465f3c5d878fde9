/* queue/layout.h: what a queue's processes share.
 *
 * Items have positions 0, 1, 2, …; producers claim them at the tail, consumers take them from the head on. A position's
 * slot has one state word, which names state, owner and position, and changes by compare-and-swap only:
 *
 *     FREE -> WRITING(owner) -> FULL -> READING(owner) -> DONE
 *               |                ^----- owner died ----/    ^
 *               \--- owner died --> DROPPING(who found it) -/
 *
 * So a claim and its owner's name are one atomic step: a slot that a dead process left is recognised by its word alone.
 * A dead producer's unfinished slot is skipped; what a dead consumer was reading is delivered to another.
 *
 * An item's heap blocks are the producer's while it writes, the queue's (owner 0) once the item is FULL, and the
 * consumer's before it is DONE: so at each instant somebody is known to own them, and a death leaks none.
 *
 * Slots lie in segments of 256, which come from a free list when the tail reaches them and go back when the head has
 * passed them, so that a queue uses as much memory as it holds items, and warm memory where it holds few. A recycled
 * slot's word names another position: a process that was stopped over the change cannot mistake one for the other.
 *
 * `head` and `tail` are hints that anybody helps forward; they never pass a slot whose word does not allow it.
 */
#ifndef SHOAL_QUEUE_LAYOUT_H
#define SHOAL_QUEUE_LAYOUT_H

#include <assert.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "shoal.h"
#include "sync/eventcount.h"

#define QUEUE_MAGIC UINT64_C(0x3145554551484c53) /* "SLHQEUE1" */
#define QUEUE_VERSION 1u

#define SEGMENT_SLOTS 256u
#define SEGMENTS (1u << 16) /* 16.7 million items at a time */
#define PARTICIPANTS 4096u

enum queue_slot_state {
    QSLOT_FREE = 0,
    QSLOT_WRITING = 1,
    QSLOT_FULL = 2,
    QSLOT_READING = 3,
    QSLOT_DONE = 4,
    QSLOT_DROPPING = 5
};

/* The word: bits 0-2 state, 3 turn, 4-15 owner (a participant's index), 16-63 position. An item has another turn each
 * time that it comes back from a dead consumer: the dead one's index may be another process's by then, which reads the
 * same item, and who was about to settle the slot of the dead one must not take it for that. */
#define QSLOT_TURN UINT64_C(8)
static inline uint64_t qslot_word(uint64_t position, uint32_t owner, enum queue_slot_state state)
{
    return position << 16 | (uint64_t)(owner & 0xfffu) << 4 | (uint64_t)state;
}
static inline enum queue_slot_state qslot_state(uint64_t word)
{
    return (enum queue_slot_state)(word & 0x7u);
}
static inline uint32_t qslot_owner(uint64_t word)
{
    return (uint32_t)(word >> 4) & 0xfffu;
}
static inline uint64_t qslot_position(uint64_t word)
{
    return word >> 16;
}
/* The same position and turn in another's hands, or another state. */
static inline uint64_t qslot_next(uint64_t word, uint32_t owner, enum queue_slot_state state)
{
    return qslot_word(qslot_position(word), owner, state) | (word & QSLOT_TURN);
}
/* Whether the slot is in the hands of its owner, who may be dead. */
static inline bool qslot_is_held(uint64_t word)
{
    enum queue_slot_state state = qslot_state(word);
    return state == QSLOT_WRITING || state == QSLOT_READING || state == QSLOT_DROPPING;
}
static_assert(PARTICIPANTS <= 0x1000, "an index fits into the word");

#define QSLOT_KIND_SHIFT 24
static_assert(SHOAL_ITEM_BLOCKS < 1u << QSLOT_KIND_SHIFT && SHOAL_ITEM_KINDS <= 256, "they fit into one word");

struct queue_slot {
    _Atomic uint64_t state;
    uint32_t size;  /* of the item's data */
    uint32_t form;  /* bits 0-23: blocks that go with it, not 0 only when their references are all there; then kind */
    uint64_t block; /* 0: data and block references lie in `bytes`; else in this block, in the same form */
    uint8_t bytes[SHOAL_RECEIVED_INLINE];
};
static_assert(sizeof(struct queue_slot) == 128, "two cache lines");

struct queue_segment {
    struct queue_slot slots[SEGMENT_SLOTS];
};
static_assert(sizeof(struct queue_segment) == 32768, "whole pages");

/* Who uses the queue: a process, told apart from a later one of the same pid by its start time. */
struct participant {
    _Atomic uint64_t identity; /* 0: free */
};

struct queue_header {
    uint64_t magic;
    uint32_t version, slot_size;
    uint64_t capacity; /* items; 0: bounded by memory only */
    uint64_t size;     /* of the region */
    uint64_t participants_at, directory_at, next_free_at, segments_at;
    uint8_t unused0[128 - 64];

    _Atomic uint64_t tail; /* producers */
    _Atomic uint32_t producer_cpu;
    uint8_t unused1[128 - 12];
    _Atomic uint64_t head; /* consumers */
    _Atomic uint32_t consumer_cpu;
    uint8_t unused2[128 - 12];

    struct eventcount items;  /* consumers sleep here */
    _Atomic uint32_t watched; /* somebody polls for items: set once, never cleared; see watch.c */
    uint8_t unused3[128 - 8];
    struct eventcount space; /* producers sleep here */
    uint8_t unused4[128 - 4];

    /* segments that hold nothing: a stack; upper half counts changes, lower half is an index + 1 */
    _Atomic uint64_t free_segments;
    _Atomic uint32_t fresh_segments; /* how many were ever used */
    _Atomic uint32_t spare_segments; /* about how many are on the stack */
    uint8_t unused5[128 - 16];
};
static_assert(sizeof(struct queue_header) == 768, "pairs of cache lines");

/* The directory: entry (position / SEGMENT_SLOTS) % SEGMENTS is that number's low half << 32 | segment index + 1, or an
 * older one. */

#endif
