/* test_lock_steps.c: a process that is stopped, or killed, before any one instruction of taking a lock or a unit of a
 * semaphore and giving it back, while others take them in turns (steps.h).
 *
 * Never do more hold it than may, and the others go on: past one that has stopped, once it goes on itself; past one
 * that was killed, at once, and whoever comes into what it held is told.
 */
#define LIMIT 30
#include "steps.h"

#include <pthread.h>

enum { OTHERS = 2, ENOUGH = 8 };

struct stage {
    shoal_lock *lock; /* or NULL: the semaphore */
    shoal_semaphore *semaphore;
    bool contended;                 /* whether the others come before it is stopped, too */
    uint32_t flags, most;           /* how many may hold it */
    _Atomic uint32_t inside, child; /* who do: of the others, and whether the child does */
    _Atomic uint32_t turns, inherited, stop;
};

static int acquire(struct stage *stage)
{
    return stage->lock != NULL ? shoal_lock_acquire(stage->lock, 10 * SHOAL_SECOND)
                               : shoal_semaphore_acquire(stage->semaphore, 10 * SHOAL_SECOND);
}

static int release(struct stage *stage)
{
    return stage->lock != NULL ? shoal_lock_release(stage->lock) : shoal_semaphore_release(stage->semaphore, 1);
}

static void *take_turns(void *context)
{
    struct stage *stage = context;
    while (!atomic_load(&stage->stop)) {
        const int result = acquire(stage);
        if (result == SHOAL_INHERITED) {
            atomic_fetch_add(&stage->inherited, 1);
            atomic_store(&stage->child, 0);
        }
        if (result == SHOAL_EOWNERDIED) {
            atomic_store(&stage->child, 0);
            const int freed = stage->lock != NULL ? shoal_lock_reset(stage->lock) : -1;
            CHECK(freed == 0 || freed == -EBUSY); /* the other one was faster, and holds it */
            continue;
        }
        CHECK(result == 0 || result == SHOAL_INHERITED);
        const uint32_t inside = atomic_fetch_add(&stage->inside, 1) + 1;
        CHECK(inside + atomic_load(&stage->child) <= stage->most);
        atomic_fetch_sub(&stage->inside, 1);
        CHECK(release(stage) == 0);
        atomic_fetch_add(&stage->turns, 1);
    }
    return NULL;
}

static pid_t begin(struct stage *stage)
{
    const shoal_lock_options lock = {.flags = stage->flags};
    const shoal_semaphore_options semaphore = {.value = stage->most, .flags = stage->flags};
    if (stage->most == 1)
        CHECK(shoal_lock_create(&lock, &stage->lock) == 0);
    else
        CHECK(shoal_semaphore_create(&semaphore, &stage->semaphore) == 0);
    atomic_store(&stage->child, 0);
    atomic_store(&stage->inherited, 0);
    atomic_store(&stage->turns, 0);
    atomic_store(&stage->stop, 0);
    pid_t child = fork_child("a call that is stopped");
    if (child == 0) {
        CHECK(acquire(stage) == 0 && release(stage) == 0); /* what a process does only once comes before */
        step_mark(true);
        CHECK(acquire(stage) == 0);
        atomic_store(&stage->child, 1);
        CHECK(atomic_load(&stage->inside) < stage->most);
        atomic_store(&stage->child, 0);
        CHECK(release(stage) == 0);
        step_mark(false);
        _exit(0);
    }
    CHECK(child > 0);
    return child;
}

static void wait_for_turns(const struct stage *stage, uint32_t more)
{
    const uint32_t before = atomic_load(&stage->turns);
    while (atomic_load(&stage->turns) - before < more)
        sched_yield();
}

static int try_once(struct stage *stage, int count, bool kill)
{
    const pid_t child = begin(stage);
    int came = 0;
    if (!stage->contended)
        came = step_lead(child, count);
    pthread_t others[OTHERS];
    for (int i = 0; i < OTHERS; i++)
        CHECK(pthread_create(&others[i], NULL, take_turns, stage) == 0);
    if (stage->contended)
        came = step_lead(child, count);
    atomic_store(&stage->turns, 0);
    const int64_t until = shoal_clock_now() + SHOAL_MILLISECOND; /* where it holds the lock they come no further */
    while (atomic_load(&stage->turns) < ENOUGH && shoal_clock_now() < until)
        sched_yield();
    if (kill)
        kill_and_reap(child);
    else
        step_release(child);
    wait_for_turns(stage, ENOUGH);
    atomic_store(&stage->stop, 1);
    for (int i = 0; i < OTHERS; i++)
        CHECK(pthread_join(others[i], NULL) == 0);
    uint32_t freed = 0;
    if (stage->semaphore != NULL) {
        /* What the child held is given to others only where there is nothing else. */
        if (stage->flags & SHOAL_SEMAPHORE_OWNED)
            CHECK(shoal_semaphore_reset(stage->semaphore, &freed) == 0);
        CHECK(shoal_semaphore_value(stage->semaphore) == stage->most);
    }
    CHECK(atomic_load(&stage->child) <= freed);
    CHECK(atomic_load(&stage->inherited) + freed <= (kill ? 1 : 0));
    shoal_lock_close(stage->lock);
    shoal_semaphore_close(stage->semaphore);
    stage->lock = NULL;
    stage->semaphore = NULL;
    return came;
}

static int try_stop(void *context, int count, int number)
{
    (void)number;
    return try_once(context, count, false);
}

static int try_kill(void *context, int count, int number)
{
    (void)number;
    return try_once(context, count, true);
}

static void try_all(int (*trial)(void *, int, int), uint32_t flags, uint32_t most, bool contended)
{
    struct stage *stage = shared_memory(sizeof *stage);
    stage->contended = contended;
    stage->flags = flags;
    stage->most = most;
    step_through(trial, stage, true);
    munmap(stage, sizeof *stage);
}

static void who_takes_a_lock_may_be_stopped_anywhere(void **state)
{
    (void)state;
    try_all(try_stop, 0, 1, false);
}

static void who_takes_a_lock_may_be_killed_anywhere(void **state)
{
    (void)state;
    try_all(try_kill, 0, 1, false);
    try_all(try_kill, SHOAL_LOCK_ROBUST, 1, false);
}

static void who_waits_for_a_lock_may_be_killed_anywhere(void **state)
{
    (void)state;
    try_all(try_kill, SHOAL_LOCK_ROBUST, 1, true);
}

static void who_takes_a_unit_may_be_stopped_anywhere(void **state)
{
    (void)state;
    try_all(try_stop, 0, 2, false);
}

static void who_takes_a_unit_of_its_own_may_be_killed_anywhere(void **state)
{
    (void)state;
    try_all(try_kill, SHOAL_SEMAPHORE_OWNED | SHOAL_SEMAPHORE_ROBUST, 2, false);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(who_takes_a_lock_may_be_stopped_anywhere, start_clock),
        cmocka_unit_test_setup(who_takes_a_lock_may_be_killed_anywhere, start_clock),
        cmocka_unit_test_setup(who_waits_for_a_lock_may_be_killed_anywhere, start_clock),
        cmocka_unit_test_setup(who_takes_a_unit_may_be_stopped_anywhere, start_clock),
        cmocka_unit_test_setup(who_takes_a_unit_of_its_own_may_be_killed_anywhere, start_clock),
    };
    return cmocka_run_group_tests_name("lock and semaphore, step by step", tests, NULL, NULL);
}
