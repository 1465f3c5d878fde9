/* base/cpu.c: how many cpus this process may use.
 *
 * The affinity mask is asked each time, as it may be changed at any moment from outside (taskset, a batch system). The
 * mask grows until the kernel's fits: a machine may have more cpus than the C library's fixed set holds. Called by
 * whoever chooses a number of workers or threads.
 */
#include <errno.h>
#include <sched.h>
#include <stdlib.h>

#include "shoal.h"

#define MOST_CPUS (1u << 20) /* far above any kernel's limit: ends the loop below */

uint32_t shoal_cpu_count(void)
{
    cpu_set_t fixed;
    if (sched_getaffinity(0, sizeof fixed, &fixed) == 0) {
        int count = CPU_COUNT(&fixed);
        return count > 0 ? (uint32_t)count : 1;
    }
    for (unsigned cpus = 2 * CPU_SETSIZE; errno == EINVAL && cpus <= MOST_CPUS; cpus *= 2) {
        cpu_set_t *set = CPU_ALLOC(cpus);
        if (set == NULL)
            return 1;
        int count = 0;
        int result = sched_getaffinity(0, CPU_ALLOC_SIZE(cpus), set);
        int error = errno;
        if (result == 0)
            count = CPU_COUNT_S(CPU_ALLOC_SIZE(cpus), set);
        CPU_FREE(set);
        errno = error;
        if (result == 0)
            return count > 0 ? (uint32_t)count : 1;
    }
    return 1;
}
