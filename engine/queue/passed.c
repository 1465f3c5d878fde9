/* queue/passed.c: what a process's searches for a FULL slot have passed, and need not look at again.
 *
 * While a slot stays in the hands of its producer (stopped in the middle of a put, say), the head stands still, and any
 * number of items may be taken behind it. Each search must look at that slot again, as its item comes before the same
 * producer's next one, but not at the rest. So a process keeps `until` and the few slots before it that were being
 * written: all others there were seen DONE, which they stay, or being read.
 *
 * Threads share the record under a version that is odd while one of them changes it: nobody waits, who finds it so does
 * without. It is a hint: a search that finds nothing looks at all slots again. In a child that was forked in the middle
 * of a change it stays odd, and each search passes all.
 */
#include "queue/queue.h"

void passed_load(const shoal_queue *queue, struct passed *out)
{
    const struct passed_shared *shared = &queue->passed;
    out->until = 0;
    out->count = 0;
    /* acquire: pairs with the release in passed_store; what is read next is at least as new */
    const uint32_t version = atomic_load_explicit(&shared->version, memory_order_acquire);
    if (version % 2 != 0)
        return;
    struct passed read = {.until = atomic_load_explicit(&shared->until, memory_order_relaxed),
                          .count = atomic_load_explicit(&shared->count, memory_order_relaxed)};
    for (uint32_t i = 0; i < PASSED_WRITTEN; i++)
        read.written[i] = atomic_load_explicit(&shared->written[i], memory_order_relaxed);
    /* acquire: should any of these be newer, so is the version below */
    atomic_thread_fence(memory_order_acquire);
    if (atomic_load_explicit(&shared->version, memory_order_relaxed) == version)
        *out = read;
}

void passed_store(shoal_queue *queue, const struct passed *passed)
{
    struct passed_shared *shared = &queue->passed;
    uint32_t version = atomic_load_explicit(&shared->version, memory_order_relaxed);
    if (version % 2 != 0 || !atomic_compare_exchange_strong_explicit(&shared->version, &version, version + 1,
                                                                     memory_order_relaxed, memory_order_relaxed))
        return;
    /* release: whoever sees one of the stores below sees the odd version */
    atomic_thread_fence(memory_order_release);
    atomic_store_explicit(&shared->until, passed->until, memory_order_relaxed);
    atomic_store_explicit(&shared->count, passed->count, memory_order_relaxed);
    for (uint32_t i = 0; i < passed->count; i++)
        atomic_store_explicit(&shared->written[i], passed->written[i], memory_order_relaxed);
    /* release: the record is whole */
    atomic_store_explicit(&shared->version, version + 2, memory_order_release);
}

uint64_t passed_next(const struct passed *passed, uint64_t at)
{
    if (at >= passed->until)
        return at;
    for (uint32_t i = 0; i < passed->count; i++) {
        if (passed->written[i] >= at)
            return passed->written[i];
    }
    return passed->until;
}

void passed_add(struct passed *passed, uint64_t at)
{
    if (passed->count < PASSED_WRITTEN)
        passed->written[passed->count++] = at;
    else if (passed->until == 0)
        passed->until = at; /* one too many: it and what follows is looked at each time */
}
