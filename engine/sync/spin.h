/* sync/spin.h: how long to look before sleeping.
 *
 * A sleep and a wake cost 65 us between cores; a look that succeeds within some microseconds costs 0.3. So a waiter
 * looks for a bounded time first, but only while the side it waits for runs on another core (on the same core every
 * look is time taken from it), and less and less where looking did not help lately. The budget lies in the process's
 * own memory, one for each handle: the measure of success is the handle's.
 */
#ifndef SHOAL_SYNC_SPIN_H
#define SHOAL_SYNC_SPIN_H

#include <stdbool.h>
#include <stdint.h>

#if defined(__GLIBC_PREREQ)
#if __GLIBC_PREREQ(2, 35)
#include <sys/rseq.h>
#define SPIN_HAS_RSEQ 1
#endif
#endif

#define SPIN_UNKNOWN_CPU UINT32_MAX

/* ns; how long a look may take: at first, after many failures, after many successes */
#define SPIN_FIRST INT64_C(20000)
#define SPIN_LEAST INT64_C(2000)
#define SPIN_MOST INT64_C(40000)

struct spin_budget {
    _Atomic int64_t limit; /* ns; grows on success, shrinks on failure; 0 counts as SPIN_FIRST */
};

#define SPIN_INITIALIZER                                                                                               \
    {                                                                                                                  \
        SPIN_FIRST                                                                                                     \
    }

/* One bounded look. Usage:
 *     struct spin spin = spin_begin(&budget, peer_cpu);
 *     while (!(ready = condition()) && spin_again(&spin)) {}
 *     spin_end(&spin, ready);
 * spin_begin allows no look at all where peer_cpu is the caller's own cpu, or is SPIN_UNKNOWN_CPU while only one cpu
 * may be used. A process that is pinned to one cpu looks for a peer that runs on another. */
struct spin {
    struct spin_budget *budget;
    int64_t started, deadline;
    uint32_t turns;
};
struct spin spin_begin(struct spin_budget *budget, uint32_t peer_cpu);
bool spin_again(struct spin *spin); /* pauses; reads the clock every few turns */
void spin_end(struct spin *spin, bool succeeded);

/* What a loop that looks does between two looks: leaves the core's other thread and the memory alone for a moment. */
void spin_pause(void);

/* How many cpus this process may use: where it is one, the other side cannot run while we look. The mask may change, so
 * it is asked again each second; a stale answer costs time only. `now` is shoal_clock_now(). */
uint32_t spin_cpu_count(int64_t now);

/* The cpu that the caller runs on. Cheap where the C library has restartable sequences: then the kernel writes it into
 * the thread's own memory. */
uint32_t spin_ask_for_cpu(void);

static inline uint32_t spin_current_cpu(void)
{
#if SPIN_HAS_RSEQ
    if (__rseq_size > 0) {
        const struct rseq *area = (const struct rseq *)((const char *)__builtin_thread_pointer() + __rseq_offset);
        return __atomic_load_n(&area->cpu_id_start, __ATOMIC_RELAXED); /* 0 at the worst, before the kernel knows us */
    }
#endif
    return spin_ask_for_cpu();
}

#endif
