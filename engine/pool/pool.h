/* pool/pool.h: the owner's side of a pool, shared by pool.c (handing out), collect.c and supervise.c (deaths).
 *
 * `lock` guards everything here that is not said to be otherwise. It is held for some hundred instructions on the way
 * of a task, for a walk over the slots where a worker died (and a look into /proc) or a time limit is enforced; never
 * across a wait, and never taken by a worker: a worker that dies cannot leave it locked.
 */
#ifndef SHOAL_POOL_POOL_H
#define SHOAL_POOL_POOL_H

#include <pthread.h>
#include <stdbool.h>

#include "pool/item.h"
#include "pool/layout.h"
#include "sync/spin.h"

/* Make an eventfd readable. */
void pool_signal(int eventfd);

/* What the epoll set knows, besides places by their number. */
#define EPOLL_ATTENTION UINT32_MAX
#define EPOLL_DEATH (UINT32_MAX - 1)

enum place_state { PLACE_EMPTY, PLACE_ENLISTED, PLACE_WATCHED, PLACE_ENDED };

struct place {
    enum place_state state;
    int pidfd; /* a duplicate, in the epoll set; -1 */
    pid_t pid;
    uint32_t owner;     /* the worker's number; the record's copy is for the worker, who may have overwritten it */
    uint64_t collected; /* tail of the worker's completion ring */
    bool dying, told;   /* its end was seen to come, and the supervisor told of it */
    shoal_exit exit;    /* how, then */
    uint32_t held;      /* tasks that it held, as far as they were settled */
    /* Where the pool itself had the worker killed: for which item of which slot, and the outcome that this item gets.
     * It may have been done in the last instant; what the worker holds then is held by no fault of its own. */
    int32_t condemned_for; /* SHOAL_ETASKTIMEOUT, SHOAL_ECANCELLED, or 0 */
    uint32_t condemned_slot, condemned_item;
    bool doomed; /* ENLISTED, and to be killed as soon as the pool knows its process */
};

/* What the owner knows of a slot that is not FREE, in its own memory: the slot's copy is for workers, and any of them
 * may have overwritten it. */
struct slot_order {
    uint64_t tag, group;
    uint32_t shared, flags;
    uint32_t items, first;
    shoal_block args_block;
    uint64_t args_size;
    int64_t time_limit;
};

struct slot_note {
    bool listed;     /* in `done`, or handed to a collector */
    bool blameless;  /* that worker was killed for another item's sake */
    int32_t outcome; /* where it is not what the rest tells */
    pid_t pid;       /* of the worker that died with it, or 0 */
    shoal_exit exit;
};

struct shoal_pool {
    struct table table;
    shoal_heap *heap;
    pid_t owner_process;
    pthread_mutex_t lock;

    uint32_t *free_slots; /* a stack: the slot used last is warm */
    uint32_t free_count;
    struct slot_note *notes;
    struct slot_order *orders;
    uint32_t *done; /* a ring of slots found done and not yet handed out */
    uint64_t done_head, done_tail;
    uint64_t ready_tail; /* what the header's says; only the owner writes it */
    _Atomic uint32_t outstanding;
    uint32_t limited;   /* of those, tasks whose items have a time limit */
    int64_t next_check; /* when the supervising thread looks at them again; SHOAL_FOREVER: when it is told to */

    struct place *places;
    uint32_t next_owner;
    uint32_t next_share;
    int epoll;
    int attention;         /* eventfd that workers write */
    int death;             /* eventfd that the thread of deaths.c writes */
    struct deaths *deaths; /* NULL until the pool has lived for a while */
    int64_t deaths_from;   /* when it is to begin; 0: it was tried */

    struct spin_budget spin;
    _Atomic uint64_t nudges;
    uint32_t waiting_for_any, waiting_for_low, low_water; /* who sleeps, and the largest mark of those that want one */

    /* map.c's, NULL where the caller supervises */
    struct crew *crew;
};

/* Put a slot whose contents are complete into the ready ring. Locked. */
void pool_publish(shoal_pool *pool, uint32_t slot);
/* The ring has room for twice the slots, and entries that are taken are passed by workers only when they look. Locked.
 */
bool pool_ring_has_room(shoal_pool *pool);
/* Whether the supervising thread would look for overdue items too late for one of this limit (0: none) that is handed
 * out now: then it is to be called, by shoal_pool_request_attention. Locked. */
bool pool_looks_too_late(const shoal_pool *pool, int64_t time_limit);
/* Where this process runs: a worker on the same core does not look for work but leaves the core to it. */
void pool_note_owner_cpu(shoal_pool *pool);
/* Move the slots that the workers pushed to their completion rings to `done`. Locked. */
void pool_drain(shoal_pool *pool, uint32_t place);
/* Note that a slot is done. Locked. */
void pool_list(shoal_pool *pool, uint32_t slot);
/* The results of items [first, finished) of a slot that is DONE; false: malformed. */
bool pool_results(shoal_pool *pool, const struct slot *slot, struct item_reader *out);
/* Whether this item of the task can be given out again: its blocks, if it has any, are still the task's. */
bool pool_keeps_item(shoal_pool *pool, uint32_t slot, uint32_t item);
/* A dead worker may have been making an item's blocks its own: they become so, to be swept with the rest. Locked. */
void pool_finish_handing(shoal_pool *pool, uint32_t slot, uint32_t worker);
/* The blocks of a done slot's results go from its worker to owner 0. Locked. */
void pool_take_over(shoal_pool *pool, uint32_t slot);
/* Kill the worker of this place; one whose process is not known yet, once it is. Locked. */
void pool_kill(struct place *entry);
/* Kill this worker for an item that it holds of this slot, which then has that outcome. Locked. */
void pool_condemn(shoal_pool *pool, uint32_t owner, uint32_t slot, uint32_t item, int32_t outcome);
/* The worker's word says that it dies (deaths.c): settle what it holds, or have the supervisor do so, who is to be
 * called if this returns true. */
bool pool_see_dying(shoal_pool *pool, uint32_t place);
/* Whether the caller's process made the pool. */
bool pool_is_owner(const shoal_pool *pool);

#endif
