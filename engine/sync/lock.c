/* sync/lock.c: the lock, recursive and robust if so wished.
 *
 * Its state is one word, which changes by one atomic step at a time:
 *
 *     0 (free) -> owner -> 0
 *                  \-> owner, marked dead -> 0            (reset, or released by somebody)
 *                                        \-> new owner    (robust)
 *
 * The owner's name (object.h) is process and thread, so a process may be killed at any instruction and the word tells
 * whether it held the lock. Invariant: `depth` is written by the owner only, and means nothing while the word is 0; all
 * else is a hint.
 *
 * Who waits sleeps on `freed` in slices. After a slice behind one and the same owner it asks whether that one lives,
 * and marks the word if not; the mark is what all others see. A release that is cut short between the word and the
 * wake costs the sleepers the rest of their slice. Called by condition.c, the binding and users.
 */
#include "sync/lock.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "base/clock.h"
#include "sync/object.h"
#include "sync/spin.h"

struct lock_shared {
    struct sync_header header;
    uint8_t unused0[128 - 40];
    _Atomic uint64_t word;
    _Atomic uint32_t depth; /* recursive: how many times the owner holds it */
    _Atomic uint32_t cpu;   /* where it was taken last: whether looking may help */
    struct eventcount freed;
    uint8_t unused1[128 - 20];
};
static_assert(sizeof(struct lock_shared) == 256 && offsetof(struct lock_shared, word) == 128,
              "what is written lies apart from what is read only");

struct shoal_lock {
    struct sync_home home;
    struct lock_shared *shared;
    bool recursive, robust;
    struct spin_budget spin;
    _Atomic int64_t asked_at; /* when a call that does not wait last asked whether the owner lives */
};

#define ALL_FLAGS (SHOAL_LOCK_RECURSIVE | SHOAL_LOCK_ROBUST)

/* ------------------------------------------------------------- construction ---- */

static void point_into(shoal_lock *lock, uint32_t flags)
{
    lock->shared = lock->home.base;
    lock->recursive = (flags & SHOAL_LOCK_RECURSIVE) != 0;
    lock->robust = (flags & SHOAL_LOCK_ROBUST) != 0;
    lock->spin = (struct spin_budget)SPIN_INITIALIZER;
}

int shoal_lock_create_in(shoal_sync_group *group, const shoal_lock_options *options, shoal_lock **out)
{
    const uint32_t flags = options == NULL ? 0 : options->flags;
    if ((flags & ~ALL_FLAGS) != 0)
        return -EINVAL;
    shoal_lock *lock = calloc(1, sizeof *lock);
    if (lock == NULL)
        return -ENOMEM;
    const struct sync_header header = {.kind = SYNC_LOCK, .size = sizeof(struct lock_shared), .flags = flags};
    int error = sync_home_create(group, "shoal-lock", header, &lock->home);
    if (error != 0) {
        free(lock);
        return error;
    }
    point_into(lock, flags);
    atomic_store_explicit(&lock->shared->cpu, SPIN_UNKNOWN_CPU, memory_order_relaxed);
    *out = lock;
    return 0;
}

int shoal_lock_create(const shoal_lock_options *options, shoal_lock **out)
{
    return shoal_lock_create_in(NULL, options, out);
}

/* Take over what lies at `lock->home`, which `error` tells whether it was found. Frees the lock on failure. */
static int finish_attach(shoal_lock *lock, int error, const struct sync_header *header, shoal_lock **out)
{
    if (error != 0)
        goto free_lock;
    error = SHOAL_ECORRUPT;
    if (header->size != sizeof(struct lock_shared) || (header->flags & ~ALL_FLAGS) != 0)
        goto close_home;
    point_into(lock, header->flags);
    *out = lock;
    return 0;

close_home:
    sync_home_close(&lock->home);
free_lock:
    free(lock);
    return error;
}

int shoal_lock_attach(int fd, shoal_lock **out)
{
    struct sync_header header;
    shoal_lock *lock = calloc(1, sizeof *lock);
    if (lock == NULL)
        return -ENOMEM;
    const int error = sync_home_attach(fd, SYNC_LOCK, &header, &lock->home);
    return finish_attach(lock, error, &header, out);
}

int shoal_lock_attach_in(shoal_sync_group *group, uint32_t place, shoal_lock **out)
{
    struct sync_header header;
    shoal_lock *lock = calloc(1, sizeof *lock);
    if (lock == NULL)
        return -ENOMEM;
    const int error = sync_home_find(group, place, SYNC_LOCK, &header, &lock->home);
    return finish_attach(lock, error, &header, out);
}

uint32_t shoal_lock_place(const shoal_lock *lock)
{
    return lock->home.place;
}

int shoal_lock_fd(const shoal_lock *lock)
{
    return sync_home_fd(&lock->home);
}

void shoal_lock_close(shoal_lock *lock)
{
    if (lock == NULL)
        return;
    sync_home_close(&lock->home);
    free(lock);
}

/* ------------------------------------------------------------------ acquiring ---- */

/* The lock was just taken by the caller. */
static void taken(shoal_lock *lock)
{
    if (lock->recursive)
        atomic_store_explicit(&lock->shared->depth, 1, memory_order_relaxed);
    const uint32_t cpu = spin_current_cpu();
    if (atomic_load_explicit(&lock->shared->cpu, memory_order_relaxed) != cpu)
        atomic_store_explicit(&lock->shared->cpu, cpu, memory_order_relaxed);
}

/* Take the lock if that is possible now. -EBUSY: *owner, who lives as far as is known, has it. */
static int attempt(shoal_lock *lock, uint64_t self, uint64_t *owner)
{
    uint64_t word = atomic_load_explicit(&lock->shared->word, memory_order_relaxed);
    for (;;) {
        if (word != 0 && !owner_died(word)) {
            *owner = word;
            return -EBUSY;
        }
        if (word != 0 && !lock->robust)
            return SHOAL_EOWNERDIED;
        /* acquire: pairs with the release in release_wholly(); what the last owner wrote is seen. Of a dead one that is
         * what its marker saw. */
        if (atomic_compare_exchange_weak_explicit(&lock->shared->word, &word, self, memory_order_acquire,
                                                  memory_order_relaxed)) {
            taken(lock);
            return word == 0 ? 0 : SHOAL_INHERITED;
        }
    }
}

static void look_after(shoal_lock *lock, uint64_t owner)
{
    /* All: the others need not find out by themselves, and without `robust` none of them gets it. */
    if (owner_mark_if_dead(&lock->shared->word, owner))
        (void)eventcount_notify_all(&lock->shared->freed);
}

/* For who does not wait: a dead owner must not look busy for good, but to ask costs too much for each of a thousand
 * tries. */
static int attempt_again(shoal_lock *lock, uint64_t self, uint64_t owner)
{
    const int64_t now = shoal_clock_now();
    if (now - atomic_load_explicit(&lock->asked_at, memory_order_relaxed) < SLICE_FIRST)
        return -EBUSY;
    atomic_store_explicit(&lock->asked_at, now, memory_order_relaxed);
    look_after(lock, owner);
    return attempt(lock, self, &owner);
}

static int acquire_slowly(shoal_lock *lock, uint64_t self, int64_t deadline)
{
    struct lock_shared *shared = lock->shared;
    uint64_t owner = 0, behind = 0;
    int result;
    struct spin spin = spin_begin(&lock->spin, atomic_load_explicit(&shared->cpu, memory_order_relaxed));
    while ((result = attempt(lock, self, &owner)) == -EBUSY && spin_again(&spin)) {
    }
    spin_end(&spin, result != -EBUSY);
    struct slices slices = SLICES_BEGIN;
    while (result == -EBUSY) {
        const uint32_t seen = eventcount_prepare(&shared->freed);
        result = attempt(lock, self, &owner);
        if (result != -EBUSY)
            break;
        if (owner != behind)
            slices = (struct slices)SLICES_BEGIN;
        behind = owner;
        const int error = sync_sleep(&shared->freed, seen, &slices, deadline);
        if (error == -EINTR)
            return error;
        if (error != -ETIMEDOUT)
            continue;
        if (atomic_load_explicit(&shared->word, memory_order_relaxed) == behind)
            look_after(lock, behind);
        if (sync_is_over(deadline)) {
            result = attempt(lock, self, &owner);
            return result == -EBUSY ? -ETIMEDOUT : result;
        }
    }
    return result;
}

static int deepen(shoal_lock *lock, uint32_t by)
{
    const uint32_t depth = atomic_load_explicit(&lock->shared->depth, memory_order_relaxed);
    if (depth > UINT32_MAX - by)
        return -EOVERFLOW;
    atomic_store_explicit(&lock->shared->depth, depth + by, memory_order_relaxed);
    return 0;
}

/* All but the usual case, kept out of its way. */
__attribute__((noinline)) static int acquire_otherwise(shoal_lock *lock, uint64_t self, int64_t timeout)
{
    if (self == 0)
        return -ENOSYS;
    uint64_t owner = 0;
    int result = attempt(lock, self, &owner);
    if (result != -EBUSY)
        return result;
    if (lock->recursive && owner == self)
        return deepen(lock, 1);
    if (timeout > 0)
        return acquire_slowly(lock, self, clock_deadline(timeout));
    result = attempt_again(lock, self, owner);
    return result == -EBUSY ? -ETIMEDOUT : result;
}

int shoal_lock_acquire(shoal_lock *lock, int64_t timeout)
{
    const uint64_t self = identity_of_thread();
    uint64_t word = atomic_load_explicit(&lock->shared->word, memory_order_relaxed);
    /* acquire: as in attempt() */
    if (word != 0 || self == 0 ||
        !atomic_compare_exchange_strong_explicit(&lock->shared->word, &word, self, memory_order_acquire,
                                                 memory_order_relaxed))
        return acquire_otherwise(lock, self, timeout);
    taken(lock);
    return 0;
}

/* ------------------------------------------------------------------ releasing ---- */

static int release_wholly(shoal_lock *lock)
{
    /* seq_cst: a release that pairs with the acquire in attempt(), and what eventcount_has_sleepers_after() asks for.
     * An exchange, as any thread may release: of two, one finds 0. */
    if (atomic_exchange_explicit(&lock->shared->word, 0, memory_order_seq_cst) == 0)
        return -EINVAL;
    if (eventcount_has_sleepers_after(&lock->shared->freed))
        (void)eventcount_notify_one(&lock->shared->freed);
    return 0;
}

int shoal_lock_release(shoal_lock *lock)
{
    if (!lock->recursive)
        return release_wholly(lock);
    const uint64_t word = atomic_load_explicit(&lock->shared->word, memory_order_relaxed);
    if (word == 0 || word != identity_of_thread())
        return -EPERM;
    const uint32_t depth = atomic_load_explicit(&lock->shared->depth, memory_order_relaxed);
    if (depth <= 1)
        return release_wholly(lock);
    atomic_store_explicit(&lock->shared->depth, depth - 1, memory_order_relaxed);
    return 0;
}

int shoal_lock_reset(shoal_lock *lock)
{
    uint64_t word = atomic_load_explicit(&lock->shared->word, memory_order_relaxed);
    (void)owner_mark_if_dead(&lock->shared->word, word);
    word = atomic_load_explicit(&lock->shared->word, memory_order_relaxed);
    if (word == 0)
        return 0;
    if (!owner_died(word))
        return -EBUSY;
    /* acq_rel: what the dead owner wrote is passed on. If it fails, somebody else has just reset it, or taken it. */
    if (atomic_compare_exchange_strong_explicit(&lock->shared->word, &word, 0, memory_order_acq_rel,
                                                memory_order_relaxed))
        (void)eventcount_notify_one(&lock->shared->freed);
    return 0;
}

void shoal_lock_look(const shoal_lock *lock, shoal_lock_holder *out)
{
    const uint64_t word = atomic_load_explicit(&lock->shared->word, memory_order_relaxed);
    const uint32_t depth = atomic_load_explicit(&lock->shared->depth, memory_order_relaxed);
    *out = (shoal_lock_holder){
        .pid = identity_pid_compact(owner_process(word)),
        .thread = (pid_t)(word & IDENTITY_THREAD_MASK),
        .is_mine = word != 0 && word == identity_of_thread(),
        .died = owner_died(word),
    };
    if (word != 0)
        out->count = lock->recursive && depth > 1 ? depth : 1;
}

/* ------------------------------------------------------------ for conditions ---- */

int lock_is_mine(const shoal_lock *lock)
{
    const uint64_t self = identity_of_thread();
    if (self == 0)
        return -ENOSYS;
    return atomic_load_explicit(&lock->shared->word, memory_order_relaxed) == self;
}

uint32_t lock_leave(shoal_lock *lock)
{
    const uint32_t depth = lock->recursive ? atomic_load_explicit(&lock->shared->depth, memory_order_relaxed) : 1;
    (void)release_wholly(lock);
    return depth;
}

int lock_return(shoal_lock *lock, uint32_t depth, int64_t timeout)
{
    const int result = shoal_lock_acquire(lock, timeout);
    if (result >= 0 && lock->recursive && depth > 1)
        (void)deepen(lock, depth - 1); /* it was as deep before */
    return result;
}

bool lock_owner_has_died(shoal_lock *lock)
{
    const uint64_t word = atomic_load_explicit(&lock->shared->word, memory_order_relaxed);
    look_after(lock, word);
    return owner_died(atomic_load_explicit(&lock->shared->word, memory_order_relaxed));
}

int lock_number(const shoal_lock *lock, uint64_t *number)
{
    struct stat status;
    if (fstat(shoal_lock_fd(lock), &status) != 0)
        return -errno;
    /* A memfd's own while it lives, and the place in it: 7 bits. */
    *number = (uint64_t)status.st_ino << 7 | lock->home.place;
    return 0;
}
