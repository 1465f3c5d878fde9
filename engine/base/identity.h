/* base/identity.h: who a process is, so that others can tell later whether it still lives.
 *
 * A pid alone is used again; pid and start time together are not. A full identity has both: bits 42-63 pid, 0-41 the
 * start time in clock ticks since boot. Where a word must hold more besides, the compact one is used, which keeps 20
 * bits of the start time: bits 20-41 pid, 0-19 time. A stranger that got a dead process's pid passes for it once in a
 * million then, and the cost is a wait, never a false death.
 *
 * The processes must see each other in one /proc (one pid namespace).
 */
#ifndef SHOAL_BASE_IDENTITY_H
#define SHOAL_BASE_IDENTITY_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define IDENTITY_TIME_BITS 42u
#define IDENTITY_COMPACT_TIME_BITS 20u
#define IDENTITY_THREAD_BITS 22u /* the kernel's limit for pids, and so for thread ids */
#define IDENTITY_THREAD_MASK ((UINT64_C(1) << IDENTITY_THREAD_BITS) - 1)

/* This process's; looked up once a process. 0: there is no /proc, so who lives cannot be known. Any thread. */
uint64_t identity_self(void);

/* The calling thread's: compact identity of its process << 22 | thread id. A ns or two; 0 as above. */
static inline uint64_t identity_of_thread(void);

/* Whether the process still runs. False only when it is known for dead: no such process, another one under its pid, or
 * its corpse; what cannot be found out (no descriptor left, /proc hidden) counts as life. Asks the kernel, some 20 us:
 * for slow paths. */
bool identity_lives(uint64_t identity);
bool identity_lives_compact(uint64_t compact);

/* Whether the process of this pid is stopped, by a signal or a debugger: it may go on at any time. */
bool identity_is_stopped(pid_t pid);

/* Counts forks: another value in a child than in its parent, never 0. What a handle remembers about "this process" is
 * true only for the generation that it was found out in. Processes made behind the C library's back (a bare clone) are
 * not counted. */
uint32_t identity_generation(void);

/* -- what identity_of_thread() knows. Each lock that is taken asks it, so it is looked up where it lies: without a
 * call, and without the one that a thread's variables cost in a library that was loaded late. The C library has room
 * for some such variables beforehand; these are 16 bytes. -- */

#if defined(__GLIBC__)
#define IDENTITY_NEAR __attribute__((tls_model("initial-exec")))
#else
#define IDENTITY_NEAR
#endif

struct identity_known {
    uint64_t word;       /* 0: not looked up */
    uint32_t generation; /* that `word` is from */
};
extern _Thread_local struct identity_known identity_known IDENTITY_NEAR;
extern _Atomic uint32_t identity_forks; /* identity_generation(), or 0 where nobody has asked for it */
uint64_t identity_look_up_thread(void);

static inline uint64_t identity_of_thread(void)
{
    if (identity_known.generation == atomic_load_explicit(&identity_forks, memory_order_relaxed) &&
        identity_known.word != 0)
        return identity_known.word;
    return identity_look_up_thread();
}

static inline uint64_t identity_compact(uint64_t identity)
{
    return identity >> IDENTITY_TIME_BITS << IDENTITY_COMPACT_TIME_BITS |
           (identity & ((UINT64_C(1) << IDENTITY_COMPACT_TIME_BITS) - 1));
}
static inline pid_t identity_pid_compact(uint64_t compact)
{
    return (pid_t)(compact >> IDENTITY_COMPACT_TIME_BITS);
}

#endif
