/* sync/spin.c: bounded looking before sleeping. The why is in the header.
 *
 * The budget follows success: a look that found its condition lengthens the next ones, one that did not shortens them,
 * down to SPIN_LEAST. As a short look cannot find out that a longer one would succeed, one look in some sixty is as
 * long as any may be, whatever the budget says: two sides that both sleep before each answer take that long to wake,
 * and only a look that outlasts the other's waking gets both out of it.
 */
#include "sync/spin.h"

#include <sched.h>
#include <stdatomic.h>

#include "shoal.h"

#define TURNS_BETWEEN_CLOCKS 16u
#define PROBE_MASK INT64_C(63)

void spin_pause(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__) || defined(__arm__)
    __asm__ volatile("yield" ::: "memory");
#else
    atomic_signal_fence(memory_order_seq_cst);
#endif
}

uint32_t spin_cpu_count(int64_t now)
{
    static _Atomic int64_t asked_at;
    static _Atomic uint32_t answer;
    int64_t last = atomic_load_explicit(&asked_at, memory_order_acquire);
    if (last == 0 || now - last > SHOAL_SECOND) {
        atomic_store_explicit(&answer, shoal_cpu_count(), memory_order_relaxed);
        /* release: who sees the time sees an answer */
        atomic_store_explicit(&asked_at, now, memory_order_release);
    }
    return atomic_load_explicit(&answer, memory_order_relaxed);
}

struct spin spin_begin(struct spin_budget *budget, uint32_t peer_cpu)
{
    int64_t now = shoal_clock_now();
    struct spin spin = {.budget = budget, .started = now, .deadline = now};
    if (peer_cpu == SPIN_UNKNOWN_CPU ? spin_cpu_count(now) == 1 : peer_cpu == spin_current_cpu())
        return spin;
    int64_t limit = atomic_load_explicit(&budget->limit, memory_order_relaxed);
    if (limit < SPIN_LEAST) /* a budget of zeros is one that was never used */
        limit = SPIN_FIRST;
    if (limit < SPIN_FIRST && ((now >> 4) & PROBE_MASK) == 0)
        limit = SPIN_MOST;
    spin.deadline = now + limit;
    return spin;
}

bool spin_again(struct spin *spin)
{
    if (spin->deadline == spin->started)
        return false;
    spin_pause();
    if (++spin->turns % TURNS_BETWEEN_CLOCKS != 0)
        return true;
    return shoal_clock_now() < spin->deadline;
}

void spin_end(struct spin *spin, bool succeeded)
{
    if (spin->turns == 0)
        return; /* nothing was tried, or the first look succeeded: nothing is learnt */
    int64_t limit = atomic_load_explicit(&spin->budget->limit, memory_order_relaxed);
    int64_t next = succeeded ? limit + limit / 8 : limit - limit / 4;
    if (next < SPIN_LEAST)
        next = SPIN_LEAST;
    if (next > SPIN_MOST)
        next = SPIN_MOST;
    /* Threads that race here lose each other's step, no more. */
    if (next != limit)
        atomic_store_explicit(&spin->budget->limit, next, memory_order_relaxed);
}

uint32_t spin_ask_for_cpu(void)
{
    int cpu = sched_getcpu();
    return cpu >= 0 ? (uint32_t)cpu : SPIN_UNKNOWN_CPU;
}
