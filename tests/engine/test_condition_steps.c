/* test_condition_steps.c: a process that is stopped, or killed, before any one instruction of what it does with a
 * condition (steps.h).
 *
 * Stopped as it begins to wait, or as it notifies: nobody who waited before a notification misses it. Killed as it
 * gives up and hands on what it was told: another who waited hears of it.
 */
#define LIMIT 30
#include "steps.h"

#include <pthread.h>

#define SOON (10 * SHOAL_SECOND)

struct stage {
    shoal_lock *lock;
    shoal_condition *condition;
    _Atomic int heard, changed;
    void (*call)(struct stage *); /* the child's */
};

static void wait_until_waiting(const struct stage *stage, uint32_t count)
{
    while (shoal_condition_waiting(stage->condition) != count)
        sleep_for(SHOAL_MILLISECOND / 10);
}

static int wait_for_the_other(void *context)
{
    struct stage *stage = context;
    CHECK(shoal_lock_acquire(stage->lock, SHOAL_FOREVER) == 0);
    CHECK(shoal_condition_wait(stage->condition, SOON, NULL) == 0);
    atomic_store(&stage->heard, 1);
    CHECK(shoal_lock_release(stage->lock) == 0);
    return 0;
}

static int try_kill(void *context, int count, int number)
{
    struct stage *stage = context;
    (void)number;
    atomic_store(&stage->heard, 0);
    CHECK(shoal_lock_create(NULL, &stage->lock) == 0);
    CHECK(shoal_condition_create(stage->lock, &stage->condition) == 0);
    const pid_t child = fork_child("a waiter that gives up");
    if (child == 0) {
        shoal_condition_turn turn = {.patience = SHOAL_MILLISECOND};
        CHECK(shoal_lock_acquire(stage->lock, SHOAL_FOREVER) == 0);
        CHECK(shoal_condition_wait(stage->condition, SHOAL_FOREVER, &turn) == -EINTR);
        step_mark(true);
        shoal_condition_cancel(stage->condition, &turn);
        step_mark(false);
        _exit(0);
    }
    CHECK(child > 0);
    wait_until_waiting(stage, 1);
    const pid_t other = start_child("another waiter", wait_for_the_other, stage);
    wait_until_waiting(stage, 2);
    int status;
    /* Its wait has come back before it is told: it stopped itself. */
    CHECK(waitid(P_PID, (id_t)child, &(siginfo_t){0}, WSTOPPED | WNOWAIT) == 0);
    CHECK(shoal_lock_acquire(stage->lock, SHOAL_FOREVER) == 0);
    CHECK(shoal_condition_notify(stage->condition, 1) == 0);
    CHECK(shoal_lock_release(stage->lock) == 0);
    const int came = step_lead(child, count);
    kill_and_reap(child);
    CHECK(waitpid(other, &status, 0) == other);
    if (status != 0 || atomic_load(&stage->heard) == 0)
        fail_msg("killed after %d instructions: the other heard of nothing", came);
    shoal_condition_close(stage->condition);
    shoal_lock_close(stage->lock);
    return came;
}

static void who_gives_up_may_be_killed_anywhere(void **state)
{
    (void)state;
    struct stage *stage = shared_memory(sizeof *stage);
    step_through(try_kill, stage, true);
    munmap(stage, sizeof *stage);
}

/* ---------------------------------------------------------------------------- stops ---- */

static void wait_for_change(struct stage *stage)
{
    shoal_condition_turn turn = {.patience = 1}; /* what is stepped through ends where it would begin to sleep */
    step_mark(true);
    CHECK(shoal_lock_acquire(stage->lock, SHOAL_FOREVER) == 0);
    int result = atomic_load(&stage->changed) ? 0 : shoal_condition_wait(stage->condition, SHOAL_FOREVER, &turn);
    step_mark(false);
    turn.patience = 0;
    while (result == -EINTR)
        result = shoal_condition_wait(stage->condition, SHOAL_FOREVER, &turn);
    CHECK(result == 0 && atomic_load(&stage->changed));
    CHECK(shoal_lock_release(stage->lock) == 0);
}

static void change(struct stage *stage)
{
    CHECK(shoal_lock_acquire(stage->lock, SHOAL_FOREVER) == 0);
    atomic_store(&stage->changed, 1);
    CHECK(shoal_condition_notify(stage->condition, 1) == 0);
    CHECK(shoal_lock_release(stage->lock) == 0);
}

static void change_step_by_step(struct stage *stage)
{
    step_mark(true);
    change(stage);
    step_mark(false);
}

static void *change_meanwhile(void *context)
{
    change(context);
    return NULL;
}

/* Comes later than the one who is to be notified, and must not take that away; or finds the change. */
static void *wait_a_moment(void *context)
{
    struct stage *stage = context;
    CHECK(shoal_lock_acquire(stage->lock, SHOAL_FOREVER) == 0);
    if (!atomic_load(&stage->changed))
        (void)shoal_condition_wait(stage->condition, SHOAL_MILLISECOND / 2, NULL);
    CHECK(shoal_lock_release(stage->lock) == 0);
    return NULL;
}

/* What a process does only once comes before that which is stepped through. */
static void do_once(void)
{
    shoal_lock *lock;
    shoal_condition *condition;
    CHECK(shoal_lock_create(NULL, &lock) == 0 && shoal_condition_create(lock, &condition) == 0);
    CHECK(shoal_lock_acquire(lock, 0) == 0);
    CHECK(shoal_condition_wait(condition, 0, NULL) == -ETIMEDOUT);
    CHECK(shoal_condition_notify(condition, 1) == 0);
    CHECK(shoal_lock_release(lock) == 0);
}

static int try_stop(void *context, int count, int number)
{
    struct stage *stage = context;
    (void)number;
    atomic_store(&stage->heard, 0);
    atomic_store(&stage->changed, 0);
    CHECK(shoal_lock_create(NULL, &stage->lock) == 0);
    CHECK(shoal_condition_create(stage->lock, &stage->condition) == 0);
    const bool notifies = stage->call == change_step_by_step;
    const pid_t first = notifies ? start_child("the first waiter", wait_for_the_other, stage) : 0;
    if (notifies)
        wait_until_waiting(stage, 1);
    const pid_t child = fork_child("a call that is stopped");
    if (child == 0) {
        do_once();
        stage->call(stage);
        _exit(0);
    }
    CHECK(child > 0);
    const int came = step_lead(child, count);
    pthread_t other;
    CHECK(pthread_create(&other, NULL, notifies ? wait_a_moment : change_meanwhile, stage) == 0);
    sleep_for(SHOAL_MILLISECOND); /* it comes no further where the child holds the lock */
    step_release(child);
    CHECK(pthread_join(other, NULL) == 0);
    if (notifies)
        child_ends_well(first);
    shoal_condition_close(stage->condition);
    shoal_lock_close(stage->lock);
    return came;
}

static void try_stops(void (*call)(struct stage *))
{
    struct stage *stage = shared_memory(sizeof *stage);
    stage->call = call;
    step_from_first(try_stop, stage);
    munmap(stage, sizeof *stage);
}

static void who_begins_to_wait_may_be_stopped_anywhere(void **state)
{
    (void)state;
    try_stops(wait_for_change);
}

static void who_notifies_may_be_stopped_anywhere(void **state)
{
    (void)state;
    try_stops(change_step_by_step);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(who_begins_to_wait_may_be_stopped_anywhere, start_clock),
        cmocka_unit_test_setup(who_notifies_may_be_stopped_anywhere, start_clock),
        cmocka_unit_test_setup(who_gives_up_may_be_killed_anywhere, start_clock),
    };
    return cmocka_run_group_tests_name("condition, step by step", tests, NULL, NULL);
}
