/* sync/futex.h: the three system calls that all waiting ends in. Shared futexes only: the words lie in regions.
 * Called by the sync room alone; other rooms wait through eventcount.h. */
#ifndef SHOAL_SYNC_FUTEX_H
#define SHOAL_SYNC_FUTEX_H

#include <stdatomic.h>
#include <stdint.h>

/* Sleep while *word == expected. deadline: monotonic nanoseconds, SHOAL_FOREVER for none.
 * Returns 0 (woken, or the word differs: look again), -ETIMEDOUT or -EINTR. */
int futex_wait(_Atomic uint32_t *word, uint32_t expected, int64_t deadline);

/* Wake at most `count` sleepers; returns how many there were. */
int futex_wake(_Atomic uint32_t *word, int count);

#endif
