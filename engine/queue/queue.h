/* queue/queue.h: the handle on a queue, shared by the files of this room. */
#ifndef SHOAL_QUEUE_QUEUE_H
#define SHOAL_QUEUE_QUEUE_H

#include <stdbool.h>

#include "queue/layout.h"
#include "sync/spin.h"

/* See passed.c. Positions in their order. */
#define PASSED_WRITTEN 8u
struct passed {
    uint64_t until;
    uint32_t count;
    uint64_t written[PASSED_WRITTEN];
};
struct passed_shared {
    _Atomic uint32_t version, count;
    _Atomic uint64_t until; /* 0: nothing is known */
    _Atomic uint64_t written[PASSED_WRITTEN];
};

struct shoal_queue {
    shoal_region *region;
    int watch_fd; /* an eventfd; see watch.c */
    shoal_heap *heap;
    struct queue_header *header;
    struct participant *participants;
    _Atomic uint64_t *directory;
    _Atomic uint32_t *next_free;
    struct queue_segment *segments;
    uint64_t capacity;
    _Atomic uint64_t self; /* fork generation << 32 | participant index + 1; 0: not registered */
    /* when a get, and a put, that does not wait last asked whether an owner lives */
    _Atomic int64_t get_asked_at, put_asked_at;
    _Atomic uint64_t scanned; /* positions before it were seen DONE or being read: see scan_from() */
    struct passed_shared passed;
    struct spin_budget item_spin, space_spin;
};

/* participant.c */

/* This process's index among the queue's users, registering it first if need be. -EUSERS: 4096 live processes use it.
 */
int participant_self(shoal_queue *queue, uint32_t *index);
/* Whether the process with this index still runs. Asks the kernel: for slow paths. */
bool participant_alive(const shoal_queue *queue, uint32_t index);
/* Sweep the heap of what dead users owned, and free their places. */
void participants_sweep(shoal_queue *queue);

/* watch.c */

/* Make the queue's eventfd, or duplicate one that was handed over. */
int watch_open(shoal_queue *queue, int handed_over);
/* A slot is claimed and about to be FULL: who polls wakes. */
void watch_tell(shoal_queue *queue);
/* The queue may be empty now: who polls sleeps. */
void watch_settle(shoal_queue *queue);

/* passed.c */

/* What is known; `until` is 0 where nothing is, or another thread is about to change it. */
void passed_load(const shoal_queue *queue, struct passed *out);
/* Keep this instead, unless another thread is about to. */
void passed_store(shoal_queue *queue, const struct passed *passed);
/* The first position from `at` on that a search looks at. */
uint64_t passed_next(const struct passed *passed, uint64_t at);
/* A slot that is being written was passed. */
void passed_add(struct passed *passed, uint64_t at);

/* segment.c */

/* Whether the head has passed the position. A slot that is claimed, or in somebody's hands, at such a position lies in
 * a segment that came too late, and holds nothing. */
bool position_is_passed(const shoal_queue *queue, uint64_t position);
/* The slot of a position, NULL where its segment is not there (not yet, or no more). */
struct queue_slot *slot_find(shoal_queue *queue, uint64_t position);
/* Make sure that the position's segment is there. -ENOMEM: 16.7 million items, or no memory. */
int segment_provide(shoal_queue *queue, uint64_t position);
/* The head has passed the last slot of this segment. Called by the one process that moved it over the border. */
void segment_retire(shoal_queue *queue, uint64_t last_position);

#endif
