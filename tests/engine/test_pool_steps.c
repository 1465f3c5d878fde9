/* test_pool_steps.c: a worker that is killed before any one instruction of what it does for a task (steps.h): claim it,
 * take its items, answer them, hand it back. Whatever the instruction: each item has one right result, or it was held
 * by the dead worker and is said to be; at most one a death is; what the worker had not begun another does, who may die
 * over it too; no memory stays. And a worker that is stopped before any one instruction of its way to sleep, and told
 * to end meanwhile: it leaves no task.
 */
#include "steps.h"

#include "pool/pool.h"

#define ITEMS 4u      /* the last two are a run */
#define WITH_BLOCK 1u /* the item that comes with a block, and whose result has one */
#define LARGE 400u

static void do_task(shoal_worker *worker, shoal_task *task)
{
    shoal_item item;
    while (shoal_task_next(task, &item) == 0) {
        uint64_t number;
        CHECK(item.size == sizeof number);
        memcpy(&number, item.data, sizeof number);
        number *= 2;
        shoal_item result = {.data = &number, .size = sizeof number};
        shoal_block block;
        if (item.block_count > 0) {
            CHECK(shoal_heap_free(shoal_worker_heap(worker), item.blocks[0]) == 0);
            CHECK(shoal_heap_allocate(shoal_worker_heap(worker), LARGE, shoal_worker_owner(worker), &block) == 0);
            result.blocks = &block;
            result.block_count = 1;
        }
        CHECK(shoal_task_answer(task, &result) == 0);
    }
    shoal_task_finish(task);
}

static void serve(shoal_worker *worker)
{
    shoal_task *task;
    while (shoal_worker_claim(worker, 0, &task) == 0)
        do_task(worker, task);
}

static pid_t start_worker(shoal_pool *pool, bool marked)
{
    uint32_t owner;
    CHECK(shoal_pool_enlist(pool, 0, &owner) == 0);
    pid_t child = fork_child("a worker");
    if (child == 0) {
        shoal_worker *worker;
        CHECK(shoal_worker_open(pool, 0, owner, &worker) == 0);
        if (marked)
            step_mark(true);
        serve(worker);
        if (marked)
            step_mark(false);
        _exit(0);
    }
    CHECK(child > 0);
    return child;
}

static void submit_items(shoal_pool *pool)
{
    shoal_batch *batch;
    CHECK(shoal_batch_create(&batch) == 0);
    for (uint64_t i = 0; i < ITEMS; i++) {
        shoal_block block;
        if (i == WITH_BLOCK)
            CHECK(shoal_heap_allocate(shoal_pool_heap(pool), LARGE, 0, &block) == 0);
        const shoal_item item = {.data = &i, .size = sizeof i, .blocks = &block, .block_count = i == WITH_BLOCK};
        CHECK(shoal_batch_add(batch, &item) == 0);
    }
    const shoal_task_options options = {.tag = 7};
    CHECK(shoal_pool_submit(pool, batch, &options) == 0);
    shoal_batch_close(batch);
}

struct ledger {
    uint32_t results[ITEMS], died[ITEMS];
};

/* What is done: its results; what is left of it is given out again without the item that was held. */
static void collect(shoal_pool *pool, struct ledger *ledger)
{
    shoal_completion completion;
    while (shoal_pool_collect(pool, &completion) == 0) {
        shoal_item item;
        assert_int_equal(completion.tag, 7);
        for (uint32_t at = completion.first; shoal_completion_next(&completion, &item) == 0; at++) {
            uint64_t number;
            assert_true(at < ITEMS);
            assert_int_equal(item.size, sizeof number);
            memcpy(&number, item.data, sizeof number);
            assert_int_equal(number, 2 * at);
            assert_int_equal(item.block_count, at == WITH_BLOCK);
            if (item.block_count > 0)
                assert_int_equal(shoal_heap_free(shoal_pool_heap(pool), item.blocks[0]), 0);
            ledger->results[at]++;
        }
        if (completion.finished == ITEMS) {
            shoal_pool_release(pool, &completion);
            continue;
        }
        assert_int_equal(completion.outcome, SHOAL_EWORKERDIED);
        ledger->died[completion.finished]++;
        if (completion.finished + 1 < ITEMS)
            assert_int_equal(shoal_pool_resume(pool, &completion, completion.finished + 1), 0);
        else
            shoal_pool_release(pool, &completion);
    }
}

static int try_kill(void *context, int count, int number)
{
    (void)context;
    const shoal_pool_options options = {.workers = 1, .slots = 8};
    shoal_pool *pool;
    struct ledger ledger = {0};
    uint32_t held, died = 0;
    assert_int_equal(shoal_pool_create(&options, &pool), 0);
    pid_t child = start_worker(pool, true);
    submit_items(pool);
    const int came = step_lead(child, count);
    kill_and_reap(child);
    assert_int_equal(shoal_pool_bury(pool, 0, NULL, &held), 0);
    assert_true(held <= 1);
    collect(pool, &ledger);
    if (number % 2 == 1) { /* the next one dies over the rest */
        child = start_worker(pool, true);
        (void)step_lead(child, 300 + count % 300);
        kill_and_reap(child);
        assert_int_equal(shoal_pool_bury(pool, 0, NULL, &held), 0);
        collect(pool, &ledger);
    }
    child = start_worker(pool, false);
    child_ends_well(child);
    assert_int_equal(shoal_pool_bury(pool, 0, NULL, &held), 0);
    collect(pool, &ledger);
    for (uint32_t i = 0; i < ITEMS; i++) {
        died += ledger.died[i];
        if (ledger.results[i] + ledger.died[i] != 1)
            fail_msg("killed after %d instructions: item %u has %u results and died %u times", came, i,
                     ledger.results[i], ledger.died[i]);
    }
    assert_true(died <= (number % 2 == 1 ? 2 : 1));
    struct shoal_heap_numbers numbers;
    assert_int_equal(shoal_heap_count(shoal_pool_heap(pool), &numbers), 0);
    if (numbers.blocks != 0)
        fail_msg("killed after %d instructions: %d blocks are left", came, (int)numbers.blocks);
    shoal_pool_close(pool);
    return came;
}

static void a_worker_may_be_killed_anywhere(void **state)
{
    (void)state;
    step_through(try_kill, NULL, true);
}

/* Let a worker that finds nothing to do come `count` instructions of a claim far, hand a task out meanwhile, and tell
 * the workers to end once nothing is left to take: the task is not left. */
static int try_stop(void *context, int count, int number)
{
    (void)context;
    (void)number;
    const shoal_pool_options options = {.workers = 1, .slots = 8};
    shoal_pool *pool;
    struct ledger ledger = {0};
    uint32_t owner, held;
    assert_int_equal(shoal_pool_create(&options, &pool), 0);
    /* Another looks, as far as anybody knows: so this one does not, and the way to its sleep is the same each time. */
    atomic_store(&pool->table.header->looking, SHOAL_POOL_WORKERS);
    assert_int_equal(shoal_pool_enlist(pool, 0, &owner), 0);
    pid_t child = fork_child("a worker that is told to end");
    if (child == 0) {
        shoal_worker *worker;
        shoal_task *task;
        CHECK(shoal_worker_open(pool, 0, owner, &worker) == 0);
        step_mark(true);
        int error = shoal_worker_claim(worker, SHOAL_MILLISECOND, &task);
        step_mark(false);
        for (; error != -ESHUTDOWN; error = shoal_worker_claim(worker, SHOAL_FOREVER, &task))
            if (error == 0)
                do_task(worker, task);
        _exit(0);
    }
    CHECK(child > 0);
    const int came = step_lead(child, count);
    submit_items(pool);
    shoal_pool_wake(pool);
    shoal_pool_shut(pool, 1);
    step_release(child);
    assert_int_equal(shoal_pool_bury(pool, 0, NULL, &held), 0);
    collect(pool, &ledger);
    for (uint32_t i = 0; i < ITEMS; i++)
        if (ledger.results[i] != 1)
            fail_msg("stopped after %d instructions: item %u has %u results", came, i, ledger.results[i]);
    shoal_pool_close(pool);
    return came;
}

static void a_worker_that_is_to_end_leaves_no_task(void **state)
{
    (void)state;
    step_through(try_stop, NULL, false);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(a_worker_may_be_killed_anywhere, start_clock),
        cmocka_unit_test_setup(a_worker_that_is_to_end_leaves_no_task, start_clock),
    };
    return cmocka_run_group_tests_name("pool, step by step", tests, NULL, NULL);
}
