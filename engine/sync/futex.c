/* sync/futex.c: the system calls behind all waiting.
 *
 * Words lie in regions that several processes map, so the private variants are never used. Deadlines are absolute
 * monotonic times (FUTEX_WAIT_BITSET takes them as such), so that a call that is repeated after a signal needs no
 * arithmetic.
 */
#include "sync/futex.h"

#include <assert.h>
#include <errno.h>
#include <linux/futex.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "shoal.h"

static_assert(sizeof(_Atomic uint32_t) == sizeof(uint32_t), "the kernel reads the word as a plain 32-bit number");

int futex_wait(_Atomic uint32_t *word, uint32_t expected, int64_t deadline)
{
    struct timespec until = {0};
    const struct timespec *limit = NULL;
    if (deadline != SHOAL_FOREVER) {
        if (deadline < 0)
            deadline = 0; /* the kernel refuses a negative time; 0 is long past */
        until.tv_sec = (time_t)(deadline / SHOAL_SECOND);
        until.tv_nsec = (long)(deadline % SHOAL_SECOND);
        limit = &until;
    }
    if (syscall(SYS_futex, word, FUTEX_WAIT_BITSET, expected, limit, NULL, FUTEX_BITSET_MATCH_ANY) == 0)
        return 0;
    if (errno == ETIMEDOUT || errno == EINTR)
        return -errno;
    return 0; /* EAGAIN: the word differs */
}

static_assert(FUTEX_WORDS_MOST == FUTEX_WAITV_MAX, "the kernel's limit");

bool futex_wait_any(_Atomic uint32_t *const words[], const uint32_t expected[], uint32_t count)
{
    struct futex_waitv waiters[FUTEX_WAITV_MAX];
    for (uint32_t i = 0; i < count; i++)
        waiters[i] = (struct futex_waitv){.val = expected[i], .uaddr = (uintptr_t)words[i], .flags = FUTEX_32};
    return syscall(SYS_futex_waitv, waiters, count, 0, NULL, 0) >= 0 || errno == EAGAIN || errno == EINTR;
}

int futex_wake(_Atomic uint32_t *word, int count)
{
    long woken = syscall(SYS_futex, word, FUTEX_WAKE, count, NULL, NULL, 0);
    return woken > 0 ? (int)woken : 0;
}
