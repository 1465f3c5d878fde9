/* base/clock.h: points in time, for everything that waits. */
#ifndef SHOAL_BASE_CLOCK_H
#define SHOAL_BASE_CLOCK_H

#include <stdint.h>

/* The monotonic time at which a timeout that begins now is over: SHOAL_FOREVER stays SHOAL_FOREVER, a sum that would
 * not fit becomes it, and a negative timeout counts as 0. */
int64_t clock_deadline(int64_t timeout);

#endif
