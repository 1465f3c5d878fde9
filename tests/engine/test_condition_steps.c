/* test_condition_steps.c: a waiter that was told, gives up, and is killed before any one instruction of handing on what
 * it was told (steps.h): another who waited then hears of it.
 */
#include "steps.h"

#define SOON (10 * SHOAL_SECOND)

struct stage {
    shoal_lock *lock;
    shoal_condition *condition;
    _Atomic int heard;
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(who_gives_up_may_be_killed_anywhere, start_clock),
    };
    return cmocka_run_group_tests_name("condition, step by step", tests, NULL, NULL);
}
