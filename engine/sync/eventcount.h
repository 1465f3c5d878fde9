/* sync/eventcount.h: sleep until "something changed" without losing a change, and wake only who sleeps.
 *
 * A waiter that found its condition false:
 *
 *     uint32_t seen = eventcount_prepare(ec);      announces a sleeper
 *     if (condition now true) go on; else eventcount_wait(ec, seen, deadline); look again
 *
 * Who makes the condition true publishes first, then calls eventcount_notify_…: a load when nobody sleeps.
 *
 * The word: bit 0 says that somebody may sleep, the rest counts notifications. The notifier clears bit 0, so that a
 * burst of changes costs one system call, not one each; hence a woken waiter that leaves others asleep must pass the
 * call on (eventcount_notify_one again) when there is work for them too. A waiter that is killed loses at most the wake
 * that was meant for it: users that may lose waiters to SIGKILL sleep in slices (EVENTCOUNT_SLICE) or have a supervisor
 * that notifies after each death.
 */
#ifndef SHOAL_SYNC_EVENTCOUNT_H
#define SHOAL_SYNC_EVENTCOUNT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define EVENTCOUNT_SLICE INT64_C(500000000) /* ns */

#define EVENTCOUNT_SLEEPERS 1u /* bit 0 */

struct eventcount {
    _Atomic uint32_t word; /* all users write it; only when somebody sleeps or is about to */
};

/* Announce that the caller is about to sleep. Full barrier: the caller's next look at its condition comes after it. */
uint32_t eventcount_prepare(struct eventcount *ec);

/* Sleep until notified since `seen`. 0: look again; -ETIMEDOUT, -EINTR. deadline: monotonic ns or SHOAL_FOREVER.
 * On return other sleepers are assumed (bit 0 is set again if it was cleared), so that no notification is spared
 * wrongly. */
int eventcount_wait(struct eventcount *ec, uint32_t seen, int64_t deadline);

/* Whether somebody may sleep. Full barrier before the look: what the caller published comes before it. */
bool eventcount_has_sleepers(struct eventcount *ec);

/* The same for who published with a seq_cst operation that writes, which is barrier enough; for where each ns counts.
 */
static inline bool eventcount_has_sleepers_after(struct eventcount *ec)
{
    /* seq_cst: in the one order of all such operations this comes after the caller's. A waiter that set bit 0 earlier
     * in it is seen; the fence of one that sets it later comes later too, so that one sees what was published. */
    return (atomic_load_explicit(&ec->word, memory_order_seq_cst) & EVENTCOUNT_SLEEPERS) != 0;
}

/* Wake one, all, or `count`, if there may be any. Full barrier first. Returns whether a system call was made. */
bool eventcount_notify_one(struct eventcount *ec);
bool eventcount_notify_all(struct eventcount *ec);
bool eventcount_notify(struct eventcount *ec, uint32_t count);

#endif
