/* test_pool_kills.c: workers that the pool itself has to kill, at instants at which that is easily forgotten: before
 * the pool was told of a worker's process (shoal_pool_watch), as whoever started it may have been held up between the
 * two; and when a task is given out again while the supervisor sleeps, or after it was cancelled.
 */
#include "helpers.h"

#include <pthread.h>

#include "pool/crew.h"
#include "pool/pool.h"

#define SOON (10 * SHOAL_SECOND)
#define GROUP 3u

/* -- pools that nobody but the test supervises -- */

static void submit(shoal_pool *pool, const void *data, size_t size, shoal_task_options options)
{
    shoal_batch *batch;
    assert_int_equal(shoal_batch_create(&batch), 0);
    assert_int_equal(shoal_batch_add(batch, &(shoal_item){.data = data, .size = size}), 0);
    options.group = GROUP;
    assert_int_equal(shoal_pool_submit(pool, batch, &options), 0);
    shoal_batch_close(batch);
    shoal_pool_wake(pool);
}

/* A worker that takes an item and never answers it. */
static pid_t fork_worker(shoal_pool *pool, uint32_t place, _Atomic int *begun)
{
    uint32_t owner;
    assert_int_equal(shoal_pool_enlist(pool, place, &owner), 0);
    const pid_t child = fork_child("a worker");
    if (child == 0) {
        shoal_worker *worker;
        shoal_task *task;
        shoal_item item;
        CHECK(shoal_worker_open(pool, place, owner, &worker) == 0);
        CHECK(shoal_worker_claim(worker, SHOAL_FOREVER, &task) == 0);
        CHECK(shoal_task_next(task, &item) == 0);
        atomic_store(begun, 1);
        for (;;)
            pause();
    }
    assert_true(child > 0);
    return child;
}

/* The same, with an item that it began when this returns. */
static pid_t start_worker(shoal_pool *pool, int64_t time_limit)
{
    _Atomic int *begun = shared_memory(sizeof *begun);
    submit(pool, "item", 4, (shoal_task_options){.time_limit = time_limit});
    const pid_t child = fork_worker(pool, 0, begun);
    while (atomic_load(begun) == 0)
        sleep_for(SHOAL_MILLISECOND);
    munmap((void *)(uintptr_t)begun, sizeof *begun);
    return child;
}

struct supervision {
    shoal_pool *pool;
    shoal_pool_event event;
    int result;
};

static void *supervise(void *argument)
{
    struct supervision *supervision = argument;
    uint32_t count;
    do
        supervision->result = shoal_pool_supervise(supervision->pool, SOON, &supervision->event, 1, &count);
    while (supervision->result == 0 && supervision->event.kind != SHOAL_POOL_WORKER_ENDED);
    return NULL;
}

/* Only now, while the supervisor sleeps, the pool is told of the process, which ends by that; and the item fails for
 * the reason that it was killed for. */
static void is_killed_when_watched(shoal_pool *pool, pid_t child, int outcome)
{
    struct supervision supervision = {.pool = pool};
    shoal_completion completion;
    pthread_t thread;
    uint32_t held;
    int status;
    const int descriptor = pidfd_open(child, 0);
    assert_true(descriptor >= 0);
    assert_int_equal(pthread_create(&thread, NULL, supervise, &supervision), 0);
    sleep_for(50 * SHOAL_MILLISECOND);
    assert_int_equal(shoal_pool_watch(pool, 0, child, descriptor), 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_int_equal(supervision.result, 0);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    assert_int_equal(shoal_pool_bury(pool, 0, NULL, &held), 0);
    assert_int_equal(held, 1);
    assert_int_equal(shoal_pool_collect(pool, &completion), 0);
    assert_int_equal(completion.outcome, outcome);
    shoal_pool_release(pool, &completion);
    close(descriptor);
}

static void a_task_that_is_cancelled_with_force(void **state)
{
    (void)state;
    shoal_pool *pool;
    assert_int_equal(shoal_pool_create(&(shoal_pool_options){.workers = 1, .slots = 8}, &pool), 0);
    for (int round = 0; round < 2; round++) { /* and what was meant for one worker does not hit the next */
        const pid_t child = start_worker(pool, 0);
        assert_int_equal(shoal_pool_cancel(pool, GROUP, 1), 1);
        is_killed_when_watched(pool, child, SHOAL_ECANCELLED);
    }
    const pid_t child = start_worker(pool, 0);
    const int descriptor = pidfd_open(child, 0);
    shoal_pool_event event;
    uint32_t count, held;
    assert_int_equal(shoal_pool_watch(pool, 0, child, descriptor), 0);
    assert_int_equal(shoal_pool_supervise(pool, 50 * SHOAL_MILLISECOND, &event, 1, &count), -ETIMEDOUT);
    kill_and_reap(child);
    assert_int_equal(shoal_pool_bury(pool, 0, NULL, &held), 0);
    close(descriptor);
    shoal_pool_close(pool);
}

static void an_item_that_takes_too_long(void **state)
{
    (void)state;
    shoal_pool *pool;
    assert_int_equal(shoal_pool_create(&(shoal_pool_options){.workers = 1, .slots = 8}, &pool), 0);
    const pid_t child = start_worker(pool, SHOAL_MILLISECOND);
    is_killed_when_watched(pool, child, SHOAL_ETASKTIMEOUT);
    shoal_pool_close(pool);
}

static void watch(shoal_pool *pool, uint32_t place, pid_t child)
{
    const int descriptor = pidfd_open(child, 0);
    assert_true(descriptor >= 0);
    assert_int_equal(shoal_pool_watch(pool, place, child, descriptor), 0);
    close(descriptor);
}

static void a_task_with_a_limit_that_is_given_out_again(void **state)
{
    (void)state;
    struct supervision supervision;
    shoal_completion completion;
    pthread_t thread;
    uint32_t held;
    int status;
    _Atomic int *begun = shared_memory(sizeof *begun);
    assert_int_equal(shoal_pool_create(&(shoal_pool_options){.workers = 2, .slots = 8}, &supervision.pool), 0);
    shoal_pool *pool = supervision.pool;
    const int64_t limit = 300 * SHOAL_MILLISECOND;
    const pid_t first = start_worker(pool, limit);
    watch(pool, 0, first);
    kill_and_reap(first);
    supervise(&supervision);
    assert_int_equal(supervision.event.place, 0);
    assert_int_equal(shoal_pool_bury(pool, 0, NULL, &held), 0);
    assert_int_equal(shoal_pool_collect(pool, &completion), 0);
    const pid_t second = fork_worker(pool, 1, begun);
    watch(pool, 1, second);
    assert_int_equal(pthread_create(&thread, NULL, supervise, &supervision), 0);
    sleep_for(50 * SHOAL_MILLISECOND); /* it sleeps, as nothing with a limit is at hand */
    assert_int_equal(shoal_pool_resume(pool, &completion, 0), 0);
    shoal_pool_wake(pool);
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_int_equal(supervision.result, 0);
    assert_int_equal(waitpid(second, &status, 0), second);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    assert_int_equal(shoal_pool_bury(pool, 1, NULL, &held), 0);
    assert_int_equal(shoal_pool_collect(pool, &completion), 0);
    assert_int_equal(completion.outcome, SHOAL_ETASKTIMEOUT);
    shoal_pool_release(pool, &completion);
    shoal_pool_close(pool);
    munmap((void *)(uintptr_t)begun, sizeof *begun);
}

static void a_task_that_is_cancelled_before_it_is_given_out_again(void **state)
{
    (void)state;
    shoal_pool *pool;
    shoal_completion completion;
    shoal_worker *worker;
    shoal_task *task;
    shoal_item item;
    uint32_t owner, held;
    assert_int_equal(shoal_pool_create(&(shoal_pool_options){.workers = 1, .slots = 8}, &pool), 0);
    const pid_t child = start_worker(pool, 0);
    kill_and_reap(child);
    assert_int_equal(shoal_pool_bury(pool, 0, NULL, &held), 0);
    assert_int_equal(shoal_pool_collect(pool, &completion), 0);
    assert_int_equal(completion.outcome, SHOAL_EWORKERDIED);
    (void)shoal_pool_cancel(pool, GROUP, 1); /* by another thread, in between */
    assert_int_equal(shoal_pool_resume(pool, &completion, 0), 0);
    assert_int_equal(shoal_pool_enlist(pool, 0, &owner), 0);
    assert_int_equal(shoal_worker_open(pool, 0, owner, &worker), 0);
    assert_int_equal(shoal_worker_claim(worker, 0, &task), 0);
    assert_int_equal(shoal_task_next(task, &item), -ENODATA);
    shoal_task_finish(task);
    assert_int_equal(shoal_pool_collect(pool, &completion), 0);
    assert_int_equal(completion.outcome, SHOAL_ECANCELLED);
    shoal_pool_release(pool, &completion);
    shoal_worker_close(worker);
    assert_int_equal(shoal_pool_bury(pool, 0, NULL, &held), 0);
    submit(pool, "item", 4, (shoal_task_options){0}); /* the next one in the same place is not meant */
    assert_int_equal(shoal_pool_enlist(pool, 0, &owner), 0);
    assert_int_equal(shoal_worker_open(pool, 0, owner, &worker), 0);
    assert_int_equal(shoal_worker_claim(worker, 0, &task), 0);
    assert_int_equal(shoal_task_next(task, &item), 0);
    shoal_worker_close(worker);
    shoal_pool_close(pool);
}

/* -- a pool that supervises itself: who starts a worker is held up in the fork -- */

static _Atomic bool armed, go;

static void hold_up(void)
{
    while (atomic_load(&armed) && !atomic_load(&go))
        sleep_for(SHOAL_MILLISECOND);
}

static int never_end(const void *input, size_t input_size, void *output, size_t output_size, void *context)
{
    (void)input_size, (void)output, (void)output_size, (void)context;
    _Atomic int *begun;
    memcpy(&begun, input, sizeof begun);
    atomic_store(begun, 1);
    while (pause() != 0) {
    }
    return 0;
}

static void *stop_with_force(void *pool)
{
    shoal_pool_stop(pool, 1);
    return NULL;
}

static void stopping_a_pool_with_force(void **state)
{
    (void)state;
    shoal_pool *pool;
    uint32_t shared;
    pthread_t thread;
    shoal_worker_numbers numbers;
    _Atomic int *begun = shared_memory(sizeof *begun);
    const struct map_order order = {.function = never_end};
    assert_int_equal(pthread_atfork(NULL, hold_up, NULL), 0);
    assert_int_equal(shoal_pool_start(&(shoal_start_options){.workers = 1}, &pool), 0);
    do
        assert_int_equal(shoal_pool_worker_numbers(pool, 0, &numbers), 0);
    while (numbers.since == 0 || numbers.pid == 0); /* it may serve before the pool is told of its process */
    atomic_store(&armed, true);
    assert_int_equal(kill(numbers.pid, SIGKILL), 0);
    assert_int_equal(shoal_pool_share(pool, &(shoal_item){.data = &order, .size = sizeof order}, &shared), 0);
    submit(pool, (void *)&begun, sizeof begun, (shoal_task_options){.shared = shared});
    while (atomic_load(begun) == 0)
        sleep_for(SHOAL_MILLISECOND);
    assert_int_equal(pthread_create(&thread, NULL, stop_with_force, pool), 0);
    while (atomic_load(&pool->table.header->shut) == 0)
        sleep_for(SHOAL_MILLISECOND);
    sleep_for(50 * SHOAL_MILLISECOND); /* all that can be killed is, by now */
    atomic_store(&go, true);
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += SOON / SHOAL_SECOND;
    assert_int_equal(pthread_timedjoin_np(thread, NULL, &until), 0);
    atomic_store(&armed, false);
    munmap((void *)(uintptr_t)begun, sizeof *begun);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(a_task_that_is_cancelled_with_force, start_clock),
        cmocka_unit_test_setup(an_item_that_takes_too_long, start_clock),
        cmocka_unit_test_setup(a_task_with_a_limit_that_is_given_out_again, start_clock),
        cmocka_unit_test_setup(a_task_that_is_cancelled_before_it_is_given_out_again, start_clock),
        cmocka_unit_test_setup(stopping_a_pool_with_force, start_clock),
    };
    return cmocka_run_group_tests_name("pool, kills of its own", tests, NULL, NULL);
}
