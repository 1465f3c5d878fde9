/* test_barrier_steps.c: a process that is stopped before any one instruction of a wait at a barrier, or of breaking it,
 * while others go on for some rounds (steps.h).
 *
 * It finds another round than it left. An arrival must be one of a round that is under way, and end well with it; a
 * barrier that was broken must be broken, whichever round it is by then.
 */
#define LIMIT 30
#include "steps.h"

#include <pthread.h>

enum { PARTIES = 2, TURNS = 3 };

struct stage {
    shoal_barrier *barrier;
    _Atomic uint32_t turns, stop;
    int (*call)(struct stage *); /* the child's: 0, or how its wait ended */
};

/* Arrive; what is stepped through ends where the wait for the others would begin. */
static int arrive(struct stage *stage)
{
    shoal_barrier_turn turn = {.patience = 1};
    step_mark(true);
    int result = shoal_barrier_wait(stage->barrier, SHOAL_FOREVER, &turn);
    step_mark(false);
    turn.patience = 0;
    while (result == -EINTR)
        result = shoal_barrier_wait(stage->barrier, 20 * SHOAL_SECOND, &turn);
    return result;
}

static int break_it(struct stage *stage)
{
    step_mark(true);
    shoal_barrier_abort(stage->barrier, NULL);
    step_mark(false);
    return 0;
}

/* How a wait of another party went: only on purpose may it end otherwise than well. */
static intptr_t judge(struct stage *stage, int result)
{
    if (result == 0)
        atomic_fetch_add(&stage->turns, 1);
    return result == -EPIPE && stage->call == break_it ? 0 : result;
}

static void *come_some_times(void *context)
{
    struct stage *stage = context;
    intptr_t result = 0;
    for (int i = 0; i < TURNS && result == 0; i++)
        result = judge(stage, shoal_barrier_wait(stage->barrier, 20 * SHOAL_SECOND, NULL));
    return (void *)result;
}

/* So that nobody is left alone. */
static void *come_until_stopped(void *context)
{
    struct stage *stage = context;
    intptr_t result = 0;
    while (!atomic_load(&stage->stop) && result == 0)
        result = judge(stage, shoal_barrier_wait(stage->barrier, 20 * SHOAL_SECOND, NULL));
    return (void *)(atomic_load(&stage->stop) ? 0 : result);
}

static pid_t begin(struct stage *stage)
{
    CHECK(shoal_barrier_create(PARTIES, &stage->barrier) == 0);
    atomic_store(&stage->turns, 0);
    atomic_store(&stage->stop, 0);
    pid_t child = fork_child("a call that is stopped");
    if (child == 0) {
        shoal_barrier *warm; /* what a process does only once comes before */
        CHECK(shoal_barrier_create(1, &warm) == 0);
        CHECK(shoal_barrier_wait(warm, 0, NULL) == 0);
        shoal_barrier_abort(warm, NULL);
        _exit(stage->call(stage) == 0 ? 0 : 1);
    }
    CHECK(child > 0);
    return child;
}

static int try_stop(void *context, int count, int number)
{
    struct stage *stage = context;
    (void)number;
    pid_t child = begin(stage);
    const int came = step_lead(child, count);
    pthread_t parties[PARTIES], last;
    for (int i = 0; i < PARTIES; i++)
        CHECK(pthread_create(&parties[i], NULL, come_some_times, stage) == 0);
    /* They come no further than the first round where the child is in it: then a moment is enough. */
    const int64_t until = shoal_clock_now() + 2 * SHOAL_MILLISECOND;
    while (atomic_load(&stage->turns) < PARTIES * TURNS && shoal_clock_now() < until)
        sched_yield();
    CHECK(pthread_create(&last, NULL, come_until_stopped, stage) == 0);
    step_release(child);
    const bool broken = shoal_barrier_broken(stage->barrier) == 1;
    bool well = broken == (stage->call == break_it);
    void *result;
    for (int i = 0; i < PARTIES; i++) {
        CHECK(pthread_join(parties[i], &result) == 0);
        well = well && result == NULL;
    }
    atomic_store(&stage->stop, 1);
    shoal_barrier_abort(stage->barrier, NULL);
    CHECK(pthread_join(last, &result) == 0);
    if (!well || result != NULL)
        fail_msg("stopped after %d instructions: the barrier is %s", came, broken ? "broken" : "whole");
    shoal_barrier_close(stage->barrier);
    return came;
}

static void try_all(int (*call)(struct stage *))
{
    struct stage *stage = shared_memory(sizeof *stage);
    stage->call = call;
    step_from_first(try_stop, stage);
    munmap(stage, sizeof *stage);
}

static void who_arrives_may_be_stopped_anywhere(void **state)
{
    (void)state;
    try_all(arrive);
}

static void who_breaks_it_may_be_stopped_anywhere(void **state)
{
    (void)state;
    try_all(break_it);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(who_arrives_may_be_stopped_anywhere, start_clock),
        cmocka_unit_test_setup(who_breaks_it_may_be_stopped_anywhere, start_clock),
    };
    return cmocka_run_group_tests_name("barrier, step by step", tests, NULL, NULL);
}
