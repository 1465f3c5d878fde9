/* sync/lock.h: what a condition needs of its lock besides the public calls. */
#ifndef SHOAL_SYNC_LOCK_H
#define SHOAL_SYNC_LOCK_H

#include <stdbool.h>
#include <stdint.h>

#include "shoal.h"

/* Whether the calling thread holds it. -ENOSYS, 0 (no), 1 (yes). */
int lock_is_mine(const shoal_lock *lock);
/* Release it wholly; the caller holds it. Returns how many times it was held. */
uint32_t lock_leave(shoal_lock *lock);
/* Take it `depth` times, which counts as once where it is not recursive. As shoal_lock_acquire. */
int lock_return(shoal_lock *lock, uint32_t depth, int64_t timeout);
/* Whether its owner has died. Asks the kernel. */
bool lock_owner_has_died(shoal_lock *lock);
/* A number that tells this lock from others. */
int lock_number(const shoal_lock *lock, uint64_t *number);

#endif
