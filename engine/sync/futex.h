/* sync/futex.h: the system calls that all waiting ends in. Shared futexes only: the words lie in regions.
 * Called by the sync room, and by pool/deaths.c; other rooms wait through eventcount.h. */
#ifndef SHOAL_SYNC_FUTEX_H
#define SHOAL_SYNC_FUTEX_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/* Sleep while *word == expected. deadline: monotonic nanoseconds, SHOAL_FOREVER for none.
 * Returns 0 (woken, or the word differs: look again), -ETIMEDOUT or -EINTR. */
int futex_wait(_Atomic uint32_t *word, uint32_t expected, int64_t deadline);

/* Sleep while each of `count` words, FUTEX_WORDS_MOST at the most, is as expected. False: this kernel cannot. */
#define FUTEX_WORDS_MOST 128u
bool futex_wait_any(_Atomic uint32_t *const words[], const uint32_t expected[], uint32_t count);

/* Wake at most `count` sleepers; returns how many there were. */
int futex_wake(_Atomic uint32_t *word, int count);

#endif
