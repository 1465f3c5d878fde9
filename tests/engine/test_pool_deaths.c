/* test_pool_deaths.c: that a death shows before the kernel has taken the dead process apart (engine/pool/deaths.c), and
 * that what only looks like one changes nothing. Nobody supervises these pools but the test itself: what has an outcome
 * while the test does not look at pidfds, has it by the worker's life alone.
 */
#include "helpers.h"

#include <pthread.h>

#define AGED (100 * SHOAL_MILLISECOND) /* a pool's thread for deaths begins when it was supervised for 20 ms */
#define SOON (10 * SHOAL_SECOND)

/* As some programs have: each thread's copy lies on its stack. */
static _Thread_local char thread_local_variables[56 << 10];

/* How a worker ends once it has its item. */
enum end { BE_KILLED, ABORT, END_THE_THREAD };

struct worker {
    pid_t pid;
    int pidfd;
};

struct order {
    shoal_pool *pool;
    uint32_t owner;
    enum end end;
    _Atomic int *claimed;
};

static void *serve(void *argument)
{
    struct order *order = argument;
    shoal_worker *worker;
    shoal_task *task;
    shoal_item item;
    CHECK(shoal_worker_open(order->pool, 0, order->owner, &worker) == 0);
    CHECK(shoal_worker_claim(worker, SHOAL_FOREVER, &task) == 0);
    CHECK(shoal_task_next(task, &item) == 0);
    atomic_store(order->claimed, 1);
    if (order->end == ABORT)
        abort();
    while (order->end == BE_KILLED)
        pause();
    return NULL;
}

/* A worker with one item at hand, watched by the pool. */
static struct worker start_worker(shoal_pool *pool, enum end end)
{
    struct worker worker;
    struct order order = {.pool = pool, .end = end, .claimed = shared_memory(sizeof *order.claimed)};
    assert_int_equal(shoal_pool_enlist(pool, 0, &order.owner), 0);
    worker.pid = fork_child("a worker");
    if (worker.pid == 0) {
        signal(SIGABRT, SIG_DFL);
        if (end == END_THE_THREAD) {
            pthread_t thread;
            CHECK(pthread_create(&thread, NULL, serve, &order) == 0);
            CHECK(pthread_join(thread, NULL) == 0);
            for (;;)
                pause();
        }
        (void)serve(&order);
        _exit(0);
    }
    assert_true(worker.pid > 0);
    worker.pidfd = pidfd_open(worker.pid, 0);
    assert_true(worker.pidfd >= 0);
    assert_int_equal(shoal_pool_watch(pool, 0, worker.pid, worker.pidfd), 0);
    shoal_batch *batch;
    const uint64_t number = 5;
    assert_int_equal(shoal_batch_create(&batch), 0);
    assert_int_equal(shoal_batch_add(batch, &(shoal_item){.data = &number, .size = sizeof number}), 0);
    assert_int_equal(shoal_pool_submit(pool, batch, &(shoal_task_options){.tag = 7}), 0);
    shoal_batch_close(batch);
    shoal_pool_wake(pool);
    while (atomic_load(order.claimed) == 0)
        sleep_for(SHOAL_MILLISECOND);
    assert_int_equal(munmap((void *)(uintptr_t)order.claimed, sizeof *order.claimed), 0);
    return worker;
}

static shoal_pool *aged_pool(void)
{
    shoal_pool *pool;
    shoal_pool_event event;
    uint32_t count;
    assert_int_equal(shoal_pool_create(&(shoal_pool_options){.workers = 1, .slots = 8}, &pool), 0);
    assert_int_equal(shoal_pool_supervise(pool, AGED, &event, 1, &count), -ETIMEDOUT);
    return pool;
}

/* The item fails, by this signal. */
static void item_fails(shoal_pool *pool, const struct worker *worker, int signal)
{
    shoal_completion completion;
    const int64_t deadline = shoal_clock_now() + SOON;
    while (shoal_pool_collect(pool, &completion) != 0) {
        assert_true(shoal_clock_now() < deadline);
        (void)shoal_pool_wait(pool, 0, shoal_pool_nudges(pool), 0, 10 * SHOAL_MILLISECOND);
    }
    assert_int_equal(completion.outcome, SHOAL_EWORKERDIED);
    assert_int_equal(completion.worker_pid, worker->pid);
    assert_int_equal(completion.exit.signal, signal);
    assert_int_equal(completion.finished, 0);
    shoal_pool_release(pool, &completion);
}

static void next_event(shoal_pool *pool, shoal_pool_event *event)
{
    uint32_t count = 0;
    assert_int_equal(shoal_pool_supervise(pool, SOON, event, 1, &count), 0);
    assert_int_equal(count, 1);
}

/* The worker's end: its event, and the burial, which says that it held so many tasks. */
static void bury(shoal_pool *pool, const struct worker *worker, uint32_t expected)
{
    shoal_pool_event event;
    uint32_t held;
    do
        next_event(pool, &event);
    while (event.kind != SHOAL_POOL_WORKER_ENDED);
    assert_int_equal(event.pid, worker->pid);
    assert_int_equal(waitpid(worker->pid, NULL, 0), worker->pid);
    assert_int_equal(shoal_pool_bury(pool, 0, NULL, &held), 0);
    assert_int_equal(held, expected);
    close(worker->pidfd);
}

static void what_a_killed_worker_held_fails_before_anybody_looks_at_its_pidfd(void **state)
{
    (void)state;
    shoal_pool *pool = aged_pool();
    for (int round = 0; round < 20; round++) {
        const struct worker worker = start_worker(pool, BE_KILLED);
        assert_int_equal(kill(worker.pid, SIGKILL), 0);
        item_fails(pool, &worker, SIGKILL);
        bury(pool, &worker, 1);
    }
    shoal_pool_close(pool);
}

static void the_supervisor_is_told_of_a_crash_while_the_worker_dies(void **state)
{
    (void)state;
    shoal_pool *pool = aged_pool();
    int told = 0;
    for (int round = 0; round < 50 && told < 3; round++) {
        const struct worker worker = start_worker(pool, ABORT);
        shoal_pool_event event;
        uint32_t held;
        next_event(pool, &event);
        if (event.kind == SHOAL_POOL_WORKER_DYING) {
            assert_int_equal(event.pid, worker.pid);
            assert_int_equal(event.exit.signal, SIGABRT);
            assert_int_equal(shoal_pool_settle(pool, 0, &event.exit, &held), 0);
            assert_int_equal(held, 1);
            item_fails(pool, &worker, SIGABRT);
            bury(pool, &worker, 1);
            told++;
            continue;
        }
        /* this machine was so slow that the end came first */
        assert_int_equal(event.kind, SHOAL_POOL_WORKER_ENDED);
        assert_int_equal(waitpid(worker.pid, NULL, 0), worker.pid);
        assert_int_equal(shoal_pool_bury(pool, 0, &(shoal_exit){.signal = SIGABRT}, &held), 0);
        item_fails(pool, &worker, SIGABRT);
        close(worker.pidfd);
    }
    assert_int_equal(told, 3);
    shoal_pool_close(pool);
}

static void a_thread_that_ends_without_its_process_is_no_death(void **state)
{
    (void)state;
    shoal_pool *pool = aged_pool();
    const struct worker worker = start_worker(pool, END_THE_THREAD);
    shoal_pool_event event;
    shoal_completion completion;
    uint32_t count, held;
    assert_int_equal(shoal_pool_supervise(pool, 3 * AGED, &event, 1, &count), -ETIMEDOUT);
    assert_int_equal(shoal_pool_settle(pool, 0, NULL, &held), -EINVAL);
    assert_int_not_equal(shoal_pool_collect(pool, &completion), 0);
    assert_int_equal(kill(worker.pid, SIGTERM), 0);
    bury(pool, &worker, 1);
    assert_int_equal(shoal_pool_collect(pool, &completion), 0);
    assert_int_equal(completion.outcome, SHOAL_EWORKERDIED);
    shoal_pool_release(pool, &completion);
    shoal_pool_close(pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(what_a_killed_worker_held_fails_before_anybody_looks_at_its_pidfd, start_clock),
        cmocka_unit_test_setup(the_supervisor_is_told_of_a_crash_while_the_worker_dies, start_clock),
        cmocka_unit_test_setup(a_thread_that_ends_without_its_process_is_no_death, start_clock),
    };
    thread_local_variables[0] = 1;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
