/* base/clock.c: the one clock that Shoal uses, CLOCK_MONOTONIC.
 *
 * It is the same for all processes of a machine, so that a deadline may be handed from one to another, and nobody sets
 * it back. Reading it is a call into the vDSO, some 20 ns, no system call. Called by everyone.
 */
#include "base/clock.h"

#include <time.h>

#include "shoal.h"

int64_t shoal_clock_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now); /* cannot fail: the clock exists and the address is ours */
    return (int64_t)now.tv_sec * SHOAL_SECOND + (int64_t)now.tv_nsec;
}

int64_t clock_deadline(int64_t timeout)
{
    if (timeout == SHOAL_FOREVER)
        return SHOAL_FOREVER;
    int64_t now = shoal_clock_now();
    if (timeout <= 0)
        return now;
    return timeout > SHOAL_FOREVER - now ? SHOAL_FOREVER : now + timeout;
}
