/* sync/event.c: a flag that is waited for.
 *
 * One word: bit 0 is the flag, the rest counts how often it was set. A waiter goes on when the flag is set or the count
 * has changed since it came, so that set and clear in one breath still let all go who waited then. A setter that is
 * killed between the word and the wake costs the sleepers the rest of their slice. Called by the binding and users.
 */
#include <errno.h>
#include <stdlib.h>

#include "base/clock.h"
#include "sync/object.h"
#include "sync/spin.h"

#define SET UINT64_C(1)
#define ONE_TIME UINT64_C(2)

struct event_shared {
    struct sync_header header;
    uint8_t unused0[128 - 40];
    _Atomic uint64_t word;
    _Atomic uint32_t cpu; /* where it was set last: whether looking may help */
    struct eventcount changed;
    uint8_t unused1[128 - 16];
};
static_assert(sizeof(struct event_shared) == 256 && offsetof(struct event_shared, word) == 128,
              "what is written lies apart from what is read only");

struct shoal_event {
    struct sync_home home;
    struct event_shared *shared;
    struct spin_budget spin;
};

int shoal_event_create_in(shoal_sync_group *group, shoal_event **out)
{
    shoal_event *event = calloc(1, sizeof *event);
    if (event == NULL)
        return -ENOMEM;
    const struct sync_header header = {.kind = SYNC_EVENT, .size = sizeof(struct event_shared)};
    int error = sync_home_create(group, "shoal-event", header, &event->home);
    if (error != 0) {
        free(event);
        return error;
    }
    event->shared = event->home.base;
    event->spin = (struct spin_budget)SPIN_INITIALIZER;
    atomic_store_explicit(&event->shared->cpu, SPIN_UNKNOWN_CPU, memory_order_relaxed);
    *out = event;
    return 0;
}

int shoal_event_create(shoal_event **out)
{
    return shoal_event_create_in(NULL, out);
}

/* As lock.c's. */
static int finish_attach(shoal_event *event, int error, const struct sync_header *header, shoal_event **out)
{
    if (error != 0)
        goto free_event;
    error = SHOAL_ECORRUPT;
    if (header->size != sizeof(struct event_shared) || header->flags != 0)
        goto close_home;
    event->shared = event->home.base;
    event->spin = (struct spin_budget)SPIN_INITIALIZER;
    *out = event;
    return 0;

close_home:
    sync_home_close(&event->home);
free_event:
    free(event);
    return error;
}

int shoal_event_attach(int fd, shoal_event **out)
{
    struct sync_header header;
    shoal_event *event = calloc(1, sizeof *event);
    if (event == NULL)
        return -ENOMEM;
    const int error = sync_home_attach(fd, SYNC_EVENT, &header, &event->home);
    return finish_attach(event, error, &header, out);
}

int shoal_event_attach_in(shoal_sync_group *group, uint32_t place, shoal_event **out)
{
    struct sync_header header;
    shoal_event *event = calloc(1, sizeof *event);
    if (event == NULL)
        return -ENOMEM;
    const int error = sync_home_find(group, place, SYNC_EVENT, &header, &event->home);
    return finish_attach(event, error, &header, out);
}

uint32_t shoal_event_place(const shoal_event *event)
{
    return event->home.place;
}

int shoal_event_fd(const shoal_event *event)
{
    return sync_home_fd(&event->home);
}

void shoal_event_close(shoal_event *event)
{
    if (event == NULL)
        return;
    sync_home_close(&event->home);
    free(event);
}

void shoal_event_set(shoal_event *event)
{
    struct event_shared *shared = event->shared;
    const uint32_t cpu = spin_current_cpu();
    if (atomic_load_explicit(&shared->cpu, memory_order_relaxed) != cpu)
        atomic_store_explicit(&shared->cpu, cpu, memory_order_relaxed);
    uint64_t word = atomic_load_explicit(&shared->word, memory_order_relaxed);
    /* seq_cst: a release that pairs with the acquire in is_released(), so what was written before the set is seen after
     * the wait (also where the flag is set already: each setter's writes are seen by who comes after it); and as
     * eventcount_has_sleepers_after() asks. */
    while (!atomic_compare_exchange_weak_explicit(&shared->word, &word, (word & SET) ? word : (word | SET) + ONE_TIME,
                                                  memory_order_seq_cst, memory_order_relaxed)) {
    }
    if (eventcount_has_sleepers_after(&shared->changed))
        (void)eventcount_notify_all(&shared->changed);
}

void shoal_event_clear(shoal_event *event)
{
    /* acq_rel: who clears has seen what came with the set, and who sets next comes after what was done before */
    (void)atomic_fetch_and_explicit(&event->shared->word, ~SET, memory_order_acq_rel);
}

int shoal_event_is_set(const shoal_event *event)
{
    /* acquire: as in is_released() */
    return (atomic_load_explicit(&event->shared->word, memory_order_acquire) & SET) != 0;
}

static bool is_released(const shoal_event *event, uint64_t first)
{
    /* acquire: pairs with the release in shoal_event_set */
    uint64_t word = atomic_load_explicit(&event->shared->word, memory_order_acquire);
    return (word & SET) != 0 || (word | SET) != (first | SET);
}

int shoal_event_wait(shoal_event *event, int64_t timeout)
{
    struct event_shared *shared = event->shared;
    const uint64_t first = atomic_load_explicit(&shared->word, memory_order_relaxed);
    if (is_released(event, first))
        return 0;
    if (timeout <= 0)
        return -ETIMEDOUT;
    const int64_t deadline = clock_deadline(timeout);
    bool released;
    struct spin spin = spin_begin(&event->spin, atomic_load_explicit(&shared->cpu, memory_order_relaxed));
    while (!(released = is_released(event, first)) && spin_again(&spin)) {
    }
    spin_end(&spin, released);
    struct slices slices = {SLICE_LAST}; /* there is no owner to look after */
    while (!released) {
        const uint32_t seen = eventcount_prepare(&shared->changed);
        if (is_released(event, first))
            break;
        const int error = sync_sleep(&shared->changed, seen, &slices, deadline);
        released = is_released(event, first);
        if (released)
            break;
        if (error == -EINTR)
            return error;
        if (error == -ETIMEDOUT && sync_is_over(deadline))
            return -ETIMEDOUT;
    }
    return 0;
}
