/* base/stat.h: what the kernel tells of any process, in /proc/PID/stat. */
#ifndef SHOAL_BASE_STAT_H
#define SHOAL_BASE_STAT_H

#include <stdint.h>
#include <sys/types.h>

#define STAT_EXITING 0x4u /* in `flags`: the process is ending, or has ended (the kernel's PF_EXITING) */

struct process_stat {
    char state; /* R, S, D; T, t: stopped; Z: ended, but for its count of threads; X */
    uint64_t flags;
    uint64_t threads;
    uint64_t started;     /* clock ticks since boot */
    uint64_t exit_status; /* as waitpid has it; 0 also where it has not ended, or we may not see it */
};

/* 0; -ESRCH: there is certainly no such process; another code: that cannot be told (no descriptor left, /proc hidden).
 * Asks the kernel, some 20 us. Any thread. */
int process_stat(pid_t pid, struct process_stat *out);

#endif
