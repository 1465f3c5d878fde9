/* sync/semaphore.c: a number of units that are taken and given back.
 *
 * Plain: one number; units have no owners, as a semaphore may be used to count or to signal.
 * Owned: a word a unit, 0 where it is free, else its owner's name (object.h). Taking one is one compare-and-swap, so
 * that a process may be killed at any instruction and the words tell what it held; the number of free units is never
 * written down. A unit whose owner was found dead is marked, as lock.c does with its word.
 *
 * A release wakes as many as it gave units; who was woken and finds more than it takes passes the wake on, as a burst
 * of releases makes one system call. A process that is killed between the number and the wake, or woken and killed,
 * costs the sleepers the rest of their slice. Called by the binding and users.
 */
#include <errno.h>
#include <stdlib.h>

#include "base/clock.h"
#include "sync/object.h"
#include "sync/spin.h"

/* So often an owned one is looked through before a release is refused. */
#define RELEASE_LOOKS 16u

struct semaphore_shared {
    struct sync_header header; /* count: the maximum */
    uint8_t unused0[128 - 40];
    _Atomic uint32_t value; /* plain: free units */
    _Atomic uint32_t cpu;   /* where units were released last: whether looking may help */
    struct eventcount freed;
    uint8_t unused1[128 - 12];
    _Atomic uint64_t units[]; /* owned: `count` words */
};
static_assert(sizeof(struct semaphore_shared) == 256 && offsetof(struct semaphore_shared, value) == 128,
              "what is written lies apart from what is read only");

struct shoal_semaphore {
    struct sync_home home;
    struct semaphore_shared *shared;
    uint32_t maximum;
    bool owned, robust;
    struct spin_budget spin;
    _Atomic int64_t asked_at; /* when a call that does not wait last asked whether the owners live */
};

/* ------------------------------------------------------------- construction ---- */

static bool is_sound(uint32_t flags, uint32_t maximum)
{
    if ((flags & ~(SHOAL_SEMAPHORE_BOUNDED | SHOAL_SEMAPHORE_OWNED | SHOAL_SEMAPHORE_ROBUST)) != 0)
        return false;
    if ((flags & SHOAL_SEMAPHORE_OWNED) != 0)
        return maximum >= 1 && maximum <= SHOAL_SEMAPHORE_OWNED_MOST;
    return (flags & SHOAL_SEMAPHORE_ROBUST) == 0 && maximum <= SHOAL_SEMAPHORE_MOST;
}

static uint64_t size_of(uint32_t flags, uint32_t maximum)
{
    const uint64_t words = (flags & SHOAL_SEMAPHORE_OWNED) != 0 ? maximum : 0;
    return sizeof(struct semaphore_shared) + words * sizeof(uint64_t);
}

static void point_into(shoal_semaphore *semaphore, uint32_t flags, uint32_t maximum)
{
    semaphore->shared = semaphore->home.base;
    semaphore->maximum = maximum;
    semaphore->owned = (flags & SHOAL_SEMAPHORE_OWNED) != 0;
    semaphore->robust = (flags & SHOAL_SEMAPHORE_ROBUST) != 0;
    semaphore->spin = (struct spin_budget)SPIN_INITIALIZER;
}

int shoal_semaphore_create_in(shoal_sync_group *group, const shoal_semaphore_options *options, shoal_semaphore **out)
{
    const bool owned = (options->flags & SHOAL_SEMAPHORE_OWNED) != 0;
    uint32_t maximum = SHOAL_SEMAPHORE_MOST;
    if (owned)
        maximum = options->value;
    else if ((options->flags & SHOAL_SEMAPHORE_BOUNDED) != 0)
        maximum = options->maximum;
    if (!is_sound(options->flags, maximum) || options->value > maximum)
        return -EINVAL;
    shoal_semaphore *semaphore = calloc(1, sizeof *semaphore);
    if (semaphore == NULL)
        return -ENOMEM;
    const struct sync_header header = {
        .kind = SYNC_SEMAPHORE,
        .size = size_of(options->flags, maximum),
        .flags = options->flags,
        .count = maximum,
    };
    int error = sync_home_create(group, "shoal-semaphore", header, &semaphore->home);
    if (error != 0) {
        free(semaphore);
        return error;
    }
    point_into(semaphore, options->flags, maximum);
    atomic_store_explicit(&semaphore->shared->value, owned ? 0 : options->value, memory_order_relaxed);
    atomic_store_explicit(&semaphore->shared->cpu, SPIN_UNKNOWN_CPU, memory_order_relaxed);
    *out = semaphore;
    return 0;
}

int shoal_semaphore_create(const shoal_semaphore_options *options, shoal_semaphore **out)
{
    return shoal_semaphore_create_in(NULL, options, out);
}

/* As lock.c's. */
static int finish_attach(shoal_semaphore *semaphore, int error, const struct sync_header *header, shoal_semaphore **out)
{
    if (error != 0)
        goto free_semaphore;
    error = SHOAL_ECORRUPT;
    if (!is_sound(header->flags, header->count) || header->size != size_of(header->flags, header->count))
        goto close_home;
    point_into(semaphore, header->flags, header->count);
    *out = semaphore;
    return 0;

close_home:
    sync_home_close(&semaphore->home);
free_semaphore:
    free(semaphore);
    return error;
}

int shoal_semaphore_attach(int fd, shoal_semaphore **out)
{
    struct sync_header header;
    shoal_semaphore *semaphore = calloc(1, sizeof *semaphore);
    if (semaphore == NULL)
        return -ENOMEM;
    const int error = sync_home_attach(fd, SYNC_SEMAPHORE, &header, &semaphore->home);
    return finish_attach(semaphore, error, &header, out);
}

int shoal_semaphore_attach_in(shoal_sync_group *group, uint32_t place, shoal_semaphore **out)
{
    struct sync_header header;
    shoal_semaphore *semaphore = calloc(1, sizeof *semaphore);
    if (semaphore == NULL)
        return -ENOMEM;
    const int error = sync_home_find(group, place, SYNC_SEMAPHORE, &header, &semaphore->home);
    return finish_attach(semaphore, error, &header, out);
}

uint32_t shoal_semaphore_place(const shoal_semaphore *semaphore)
{
    return semaphore->home.place;
}

int shoal_semaphore_fd(const shoal_semaphore *semaphore)
{
    return sync_home_fd(&semaphore->home);
}

void shoal_semaphore_close(shoal_semaphore *semaphore)
{
    if (semaphore == NULL)
        return;
    sync_home_close(&semaphore->home);
    free(semaphore);
}

uint32_t shoal_semaphore_maximum(const shoal_semaphore *semaphore)
{
    return semaphore->maximum;
}

uint32_t shoal_semaphore_value(const shoal_semaphore *semaphore)
{
    if (!semaphore->owned)
        return atomic_load_explicit(&semaphore->shared->value, memory_order_relaxed);
    uint32_t value = 0;
    for (uint32_t i = 0; i < semaphore->maximum; i++)
        if (atomic_load_explicit(&semaphore->shared->units[i], memory_order_relaxed) == 0)
            value++;
    return value;
}

/* ------------------------------------------------------------------ acquiring ---- */

static int attempt_plain(shoal_semaphore *semaphore)
{
    uint32_t value = atomic_load_explicit(&semaphore->shared->value, memory_order_relaxed);
    do {
        if (value == 0)
            return -EBUSY;
        /* acquire: pairs with the release in release_plain(); what was written before the release is seen */
    } while (!atomic_compare_exchange_weak_explicit(&semaphore->shared->value, &value, value - 1, memory_order_acquire,
                                                    memory_order_relaxed));
    return 0;
}

static int attempt_owned(shoal_semaphore *semaphore, uint64_t self)
{
    bool died;
    do {
        died = false;
        for (uint32_t i = 0; i < semaphore->maximum; i++) {
            _Atomic uint64_t *unit = &semaphore->shared->units[i];
            uint64_t word = atomic_load_explicit(unit, memory_order_relaxed);
            if (word == 0) {
                /* acquire: pairs with the release in release_owned() */
                if (atomic_compare_exchange_strong_explicit(unit, &word, self, memory_order_acquire,
                                                            memory_order_relaxed))
                    return 0;
            } else if (owner_died(word)) {
                died = true;
            }
        }
        if (!died)
            return -EBUSY;
        if (!semaphore->robust)
            return SHOAL_EOWNERDIED;
        for (uint32_t i = 0; i < semaphore->maximum; i++) {
            _Atomic uint64_t *unit = &semaphore->shared->units[i];
            uint64_t word = atomic_load_explicit(unit, memory_order_relaxed);
            /* acquire: what the dead owner wrote, as far as its marker saw it */
            if (owner_died(word) &&
                atomic_compare_exchange_strong_explicit(unit, &word, self, memory_order_acquire, memory_order_relaxed))
                return SHOAL_INHERITED;
        }
    } while (died); /* others were faster */
    return -EBUSY;
}

static int attempt(shoal_semaphore *semaphore, uint64_t self)
{
    return semaphore->owned ? attempt_owned(semaphore, self) : attempt_plain(semaphore);
}

/* Mark the units of the dead. */
static void look_after(shoal_semaphore *semaphore)
{
    if (!semaphore->owned)
        return;
    bool marked = false;
    uint64_t lives = 0; /* a process often holds several, one after the other */
    for (uint32_t i = 0; i < semaphore->maximum; i++) {
        const uint64_t word = atomic_load_explicit(&semaphore->shared->units[i], memory_order_relaxed);
        if (word == 0 || owner_died(word) || owner_process(word) == lives)
            continue;
        if (owner_mark_if_dead(&semaphore->shared->units[i], word))
            marked = true;
        else
            lives = owner_process(word);
    }
    if (marked)
        (void)eventcount_notify_all(&semaphore->shared->freed);
}

static int acquire_slowly(shoal_semaphore *semaphore, uint64_t self, int64_t deadline)
{
    struct semaphore_shared *shared = semaphore->shared;
    int result;
    struct spin spin = spin_begin(&semaphore->spin, atomic_load_explicit(&shared->cpu, memory_order_relaxed));
    while ((result = attempt(semaphore, self)) == -EBUSY && spin_again(&spin)) {
    }
    spin_end(&spin, result != -EBUSY);
    bool slept = false;
    struct slices slices = {semaphore->owned ? SLICE_FIRST : SLICE_LAST};
    while (result == -EBUSY) {
        const uint32_t seen = eventcount_prepare(&shared->freed);
        result = attempt(semaphore, self);
        if (result != -EBUSY)
            break;
        const int error = sync_sleep(&shared->freed, seen, &slices, deadline);
        slept = true;
        if (error == -EINTR)
            return error;
        if (error != -ETIMEDOUT)
            continue;
        look_after(semaphore);
        if (sync_is_over(deadline)) {
            result = attempt(semaphore, self);
            if (result == -EBUSY)
                return -ETIMEDOUT;
        }
    }
    if (slept && result >= 0 && shoal_semaphore_value(semaphore) > 0)
        (void)eventcount_notify_one(&shared->freed); /* pass the wake on */
    return result;
}

int shoal_semaphore_acquire(shoal_semaphore *semaphore, int64_t timeout)
{
    const uint64_t self = semaphore->owned ? identity_of_thread() : 0;
    if (semaphore->owned && self == 0)
        return -ENOSYS;
    int result = attempt(semaphore, self);
    if (result != -EBUSY)
        return result;
    if (timeout > 0)
        return acquire_slowly(semaphore, self, clock_deadline(timeout));
    /* As in lock.c: the dead must not look busy for good to who never waits. */
    if (semaphore->owned) {
        const int64_t now = shoal_clock_now();
        if (now - atomic_load_explicit(&semaphore->asked_at, memory_order_relaxed) >= SLICE_FIRST) {
            atomic_store_explicit(&semaphore->asked_at, now, memory_order_relaxed);
            look_after(semaphore);
            result = attempt(semaphore, self);
        }
    }
    return result == -EBUSY ? -ETIMEDOUT : result;
}

/* ------------------------------------------------------------------ releasing ---- */

static int release_plain(shoal_semaphore *semaphore, uint32_t count)
{
    uint32_t value = atomic_load_explicit(&semaphore->shared->value, memory_order_relaxed);
    do {
        if (value > semaphore->maximum || count > semaphore->maximum - value)
            return -EOVERFLOW;
        /* seq_cst: a release that pairs with the acquire in attempt_plain(); and as eventcount_has_sleepers_after()
         * asks */
    } while (!atomic_compare_exchange_weak_explicit(&semaphore->shared->value, &value, value + count,
                                                    memory_order_seq_cst, memory_order_relaxed));
    return 0;
}

/* Free up to `count` units of a process. How many. */
static uint32_t free_units(shoal_semaphore *semaphore, uint64_t process, uint32_t count)
{
    uint32_t freed = 0;
    for (uint32_t i = 0; i < semaphore->maximum && freed < count; i++) {
        _Atomic uint64_t *unit = &semaphore->shared->units[i];
        uint64_t word = atomic_load_explicit(unit, memory_order_relaxed);
        /* seq_cst: as in release_plain() */
        if (owner_process(word) == process &&
            atomic_compare_exchange_strong_explicit(unit, &word, 0, memory_order_seq_cst, memory_order_relaxed))
            freed++;
    }
    return freed;
}

static uint32_t count_units(const shoal_semaphore *semaphore, uint64_t process)
{
    uint32_t held = 0;
    for (uint32_t i = 0; i < semaphore->maximum; i++) {
        const uint64_t word = atomic_load_explicit(&semaphore->shared->units[i], memory_order_relaxed);
        held += owner_process(word) == process;
    }
    return held;
}

/* Free `count` units of this process. Its other threads may free one that this call comes to, and take one that it has
 * passed: what was missed is looked for again. Threads that together release more than their process holds may leave
 * one of them with fewer than it asked for; it gets -EPERM all the same. */
static int release_owned(shoal_semaphore *semaphore, uint32_t count)
{
    const uint64_t self = identity_of_thread();
    if (self == 0)
        return -ENOSYS;
    const uint64_t process = owner_process(self);
    uint32_t looks = 0;
    while (count_units(semaphore, process) < count)
        if (++looks == RELEASE_LOOKS)
            return -EPERM;
    while ((count -= free_units(semaphore, process, count)) > 0)
        if (++looks == RELEASE_LOOKS)
            return -EPERM;
    return 0;
}

int shoal_semaphore_release(shoal_semaphore *semaphore, uint32_t count)
{
    struct semaphore_shared *shared = semaphore->shared;
    if (count == 0)
        return -EINVAL;
    int error = semaphore->owned ? release_owned(semaphore, count) : release_plain(semaphore, count);
    if (error != 0)
        return error;
    const uint32_t cpu = spin_current_cpu();
    if (atomic_load_explicit(&shared->cpu, memory_order_relaxed) != cpu)
        atomic_store_explicit(&shared->cpu, cpu, memory_order_relaxed);
    if (eventcount_has_sleepers_after(&shared->freed))
        (void)eventcount_notify(&shared->freed, count);
    return 0;
}

int shoal_semaphore_reset(shoal_semaphore *semaphore, uint32_t *freed)
{
    if (!semaphore->owned)
        return -EINVAL;
    look_after(semaphore);
    uint32_t count = 0;
    for (uint32_t i = 0; i < semaphore->maximum; i++) {
        _Atomic uint64_t *unit = &semaphore->shared->units[i];
        uint64_t word = atomic_load_explicit(unit, memory_order_relaxed);
        /* acq_rel: what the dead owner wrote is passed on */
        if (owner_died(word) &&
            atomic_compare_exchange_strong_explicit(unit, &word, 0, memory_order_acq_rel, memory_order_relaxed))
            count++;
    }
    if (count > 0)
        (void)eventcount_notify(&semaphore->shared->freed, count);
    if (freed != NULL)
        *freed = count;
    return 0;
}
