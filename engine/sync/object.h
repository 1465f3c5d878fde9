/* sync/object.h: what lock, semaphore, condition, event and barrier have in common: the first bytes of their region, an
 * owner's name in one word, and sleeping in slices.
 */
#ifndef SHOAL_SYNC_OBJECT_H
#define SHOAL_SYNC_OBJECT_H

#include <assert.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/identity.h"
#include "shoal.h"
#include "sync/eventcount.h"

#define SYNC_MAGIC UINT64_C(0x31434e5953484c53) /* "SLHSYNC1" */
#define SYNC_VERSION 1u

enum sync_kind {
    SYNC_LOCK = 1,
    SYNC_SEMAPHORE = 2,
    SYNC_CONDITION = 3,
    SYNC_EVENT = 4,
    SYNC_BARRIER = 5,
    SYNC_GROUP = 6
};

/* Written once, by the maker. */
struct sync_header {
    uint64_t magic;
    uint32_t version, kind;
    uint64_t size;  /* of what is used of the region */
    uint32_t flags; /* of the options */
    uint32_t count; /* units, slots or parties */
    uint64_t other; /* condition: which lock it is over */
};
static_assert(sizeof(struct sync_header) == 40 && offsetof(struct sync_header, other) == 32, "no padding");

/* A region that begins with `header` (magic and version are filled in). */
int sync_create(const char *name, struct sync_header header, shoal_region **region);
/* Map what should be of this kind. Out: a copy of the header, of which magic, version, kind and size against the region
 * are checked; flags, count and the size that follows from them are the caller's to check. SHOAL_ECORRUPT. */
int sync_attach(int fd, enum sync_kind kind, struct sync_header *header, shoal_region **region);

void sync_write_header(void *base, struct sync_header header);
/* Whether a header that was read is of this kind, and no larger than the `room` that it lies in. */
bool sync_header_is(const struct sync_header *header, enum sync_kind kind, uint64_t room);

/* -- where an object lies: in a region of its own, or in a place of a group's (group.c) -- */

struct sync_home {
    shoal_region *region;    /* its own, or NULL */
    shoal_sync_group *group; /* or NULL */
    uint32_t place;          /* in the group; 0: a region of its own */
    void *base;
};

/* `group` NULL: a region of its own, called `name`. Errors also: -ENOSPC (the group is full), -EMSGSIZE (too large for
 * a group). */
int sync_home_create(shoal_sync_group *group, const char *name, struct sync_header header, struct sync_home *home);
/* As sync_attach. */
int sync_home_attach(int fd, enum sync_kind kind, struct sync_header *header, struct sync_home *home);
/* The same, in a group. -EINVAL: no such place. */
int sync_home_find(shoal_sync_group *group, uint32_t place, enum sync_kind kind, struct sync_header *header,
                   struct sync_home *home);
void sync_home_close(const struct sync_home *home);
int sync_home_fd(const struct sync_home *home);

/* -- an owner's name: identity_of_thread(), so bits 42-63 pid, 22-41 start time, 0-21 thread; 0: nobody. Thread 0: the
 * owner is known to have died. -- */

static inline uint64_t owner_process(uint64_t word)
{
    return word >> IDENTITY_THREAD_BITS; /* as identity_compact */
}
static inline bool owner_died(uint64_t word)
{
    return word != 0 && (word & IDENTITY_THREAD_MASK) == 0;
}
/* Ask whether the owner that `word` names lives, and mark the place if it does not. Returns whether it was marked by
 * this call. The mark cannot hit a later owner: a dead process's name does not come back. */
static inline bool owner_mark_if_dead(_Atomic uint64_t *place, uint64_t word)
{
    if (word == 0 || owner_died(word) || identity_lives_compact(owner_process(word)))
        return false;
    /* acq_rel: what the dead process wrote before is passed on to who finds the mark */
    return atomic_compare_exchange_strong_explicit(place, &word, word & ~IDENTITY_THREAD_MASK, memory_order_acq_rel,
                                                   memory_order_relaxed);
}

/* -- sleeping in slices: after each the sleeper looks whether those that it waits for still live, and whether a wake
 * was lost with its waker. Short at first, so that a death is noticed soon; long later, so that it costs nothing. -- */

#define SLICE_FIRST (10 * SHOAL_MILLISECOND)
#define SLICE_LAST EVENTCOUNT_SLICE

struct slices {
    int64_t next; /* ns */
};
#define SLICES_BEGIN                                                                                                   \
    {                                                                                                                  \
        SLICE_FIRST                                                                                                    \
    }

/* Sleep a slice, at most until `deadline`; the next will be longer. As eventcount_wait, but -ETIMEDOUT says only that
 * the slice is over. */
int sync_sleep(struct eventcount *ec, uint32_t seen, struct slices *slices, int64_t deadline);
bool sync_is_over(int64_t deadline);
/* When the patience of a turn that is `interruptible` ends, which is 0 where it has no end. */
int64_t sync_patience_ends(bool interruptible, int64_t patience);

#endif
