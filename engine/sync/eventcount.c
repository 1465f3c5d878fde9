/* sync/eventcount.c: sleep until something changed. The protocol is in the header.
 *
 * No wake is lost between two live processes: the waiter sets bit 0 and then looks at its condition, the notifier makes
 * the condition true and then looks at bit 0, with a full barrier between the two steps on either side. One of them
 * sees the other. If it is the notifier, it changes the word before it wakes, so that a waiter on its way into the
 * kernel does not fall asleep (the kernel compares the word under its own lock).
 */
#include "sync/eventcount.h"

#include <limits.h>

#include "sync/futex.h"

#define SLEEPERS EVENTCOUNT_SLEEPERS
#define NOTIFICATION 2u

uint32_t eventcount_prepare(struct eventcount *ec)
{
    /* seq_cst: pairs with the fence in has_sleepers(). On some machines the operation alone does not keep later loads
     * behind it, hence the fence. */
    uint32_t seen = atomic_fetch_or_explicit(&ec->word, SLEEPERS, memory_order_seq_cst) | SLEEPERS;
    atomic_thread_fence(memory_order_seq_cst);
    return seen;
}

int eventcount_wait(struct eventcount *ec, uint32_t seen, int64_t deadline)
{
    int result = futex_wait(&ec->word, seen, deadline);
    /* Who woke us cleared the bit and woke nobody else: those who sleep on need it for the next notification. */
    if ((atomic_load_explicit(&ec->word, memory_order_relaxed) & SLEEPERS) == 0)
        eventcount_prepare(ec);
    return result;
}

bool eventcount_has_sleepers(struct eventcount *ec)
{
    /* seq_cst: what the caller published is seen by a waiter that sets the bit after this look */
    atomic_thread_fence(memory_order_seq_cst);
    return (atomic_load_explicit(&ec->word, memory_order_relaxed) & SLEEPERS) != 0;
}

bool eventcount_notify(struct eventcount *ec, uint32_t count)
{
    atomic_thread_fence(memory_order_seq_cst); /* as in has_sleepers() */
    uint32_t word = atomic_load_explicit(&ec->word, memory_order_relaxed);
    do {
        if ((word & SLEEPERS) == 0)
            return false;
        /* release: a waiter that reads the new word also sees what was published before */
    } while (!atomic_compare_exchange_weak_explicit(&ec->word, &word, (word & ~SLEEPERS) + NOTIFICATION,
                                                    memory_order_release, memory_order_relaxed));
    futex_wake(&ec->word, count < INT_MAX ? (int)count : INT_MAX);
    return true;
}

bool eventcount_notify_one(struct eventcount *ec)
{
    return eventcount_notify(ec, 1);
}

bool eventcount_notify_all(struct eventcount *ec)
{
    return eventcount_notify(ec, UINT32_MAX);
}
