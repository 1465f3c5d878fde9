/* What the C pool offers beside mapping: time limits, progress and cancelling, cpus, hooks, memory limits, groups. */
#include "helpers.h"

#include <sched.h>

static shoal_pool *start_pool(const shoal_start_options *options)
{
    shoal_pool *pool;
    assert_int_equal(shoal_pool_start(options, &pool), 0);
    return pool;
}

/* Numbers that parent and workers share. */
static _Atomic int *shared_counters(size_t count)
{
    void *memory = mmap(NULL, count * sizeof(_Atomic int), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(memory != MAP_FAILED);
    return memory;
}

/* Sleeps so many microseconds; the output is the input. */
static int nap(const void *input, size_t input_size, void *output, size_t output_size, void *context)
{
    (void)context;
    int64_t microseconds;
    if (input_size != sizeof microseconds || output_size != input_size)
        return -EINVAL;
    memcpy(&microseconds, input, sizeof microseconds);
    usleep((useconds_t)microseconds);
    memcpy(output, &microseconds, sizeof microseconds);
    return 0;
}

static void an_item_that_takes_too_long_fails_alone(void **state)
{
    (void)state;
    shoal_pool *pool = start_pool(&(shoal_start_options){.workers = 2});
    for (uint32_t chunk = 0; chunk < 4; chunk++) {
        const int64_t inputs[6] = {1000, 2000, 30000000, 3000, 4000, 5000};
        int64_t outputs[6] = {0};
        int codes[6];
        const shoal_map_options options = {.codes = codes, .chunk = chunk, .time_limit = 300 * SHOAL_MILLISECOND};
        assert_int_equal(shoal_pool_map(pool, nap, inputs, 8, outputs, 8, 6, &options), SHOAL_ETASKTIMEOUT);
        for (int i = 0; i < 6; i++) {
            assert_int_equal(codes[i], i == 2 ? SHOAL_ETASKTIMEOUT : 0);
            assert_int_equal(outputs[i], i == 2 ? 0 : inputs[i]);
        }
    }
    shoal_pool_stop(pool, 0);
}

/* Notes when each item began, where the parent sees it. */
struct noted {
    int64_t number, microseconds;
};

static int nap_noted(const void *input, size_t input_size, void *output, size_t output_size, void *context)
{
    struct noted item;
    _Atomic int64_t *began;
    if (input_size != sizeof item || output_size != sizeof item.microseconds)
        return -EINVAL;
    memcpy(&item, input, sizeof item);
    memcpy(&began, context, sizeof began);
    atomic_store(&began[item.number], shoal_clock_now());
    usleep((useconds_t)item.microseconds);
    memcpy(output, &item.microseconds, sizeof item.microseconds);
    return 0;
}

/* Items whose time is about the limit: each either comes right or is said to have taken too long, and only where it
 * has, whichever worker was killed when. */
static void no_item_fails_for_the_time_of_another(void **state)
{
    (void)state;
    const unsigned seed = (unsigned)time(NULL);
    srand(seed);
    printf("seed %u\n", seed);
    enum { COUNT = 400, LIMIT_US = 20000 };
    struct noted inputs[COUNT];
    int64_t outputs[COUNT];
    int codes[COUNT], timeouts = 0, rounds = 0;
    _Atomic int64_t *began = (_Atomic int64_t *)(uintptr_t)shared_counters(COUNT * 2);
    shoal_pool *pool = start_pool(&(shoal_start_options){.workers = 3});
    const int64_t end = shoal_clock_now() + 4 * SHOAL_SECOND;
    while (shoal_clock_now() < end) {
        for (int i = 0; i < COUNT; i++)
            inputs[i] = (struct noted){i, i % 40 == 7 ? LIMIT_US - 500 + rand() % 1000 : rand() % 200};
        memset(outputs, 0xff, sizeof outputs);
        const shoal_map_options options = {.context = &began,
                                           .context_size = sizeof began,
                                           .codes = codes,
                                           .chunk = 1 + (uint32_t)rounds % 5,
                                           .time_limit = LIMIT_US * SHOAL_MICROSECOND};
        (void)shoal_pool_map(pool, nap_noted, inputs, sizeof inputs[0], outputs, 8, COUNT, &options);
        for (int i = 0; i < COUNT; i++) {
            timeouts += codes[i] == SHOAL_ETASKTIMEOUT;
            if (codes[i] == 0) {
                assert_int_equal(outputs[i], inputs[i].microseconds);
            } else {
                assert_int_equal(codes[i], SHOAL_ETASKTIMEOUT);
                assert_true(shoal_clock_now() - atomic_load(&began[i]) >= LIMIT_US * SHOAL_MICROSECOND);
            }
        }
        rounds++;
    }
    printf("%d rounds of %d items, %d took too long\n", rounds, COUNT, timeouts);
    assert_true(timeouts > 0);
    shoal_pool_stop(pool, 0);
}

struct watch {
    size_t last, calls, stop_at;
};

static int look(size_t done, size_t count, void *context)
{
    struct watch *watch = context;
    assert_true(done >= watch->last && done <= count);
    watch->last = done;
    watch->calls++;
    return done >= watch->stop_at;
}

static void progress_grows_up_to_the_end(void **state)
{
    (void)state;
    shoal_pool *pool = start_pool(&(shoal_start_options){.workers = 2});
    enum { COUNT = 100 };
    int64_t inputs[COUNT], outputs[COUNT];
    for (int i = 0; i < COUNT; i++)
        inputs[i] = 10000;
    struct watch watch = {.stop_at = SIZE_MAX};
    const shoal_map_options options = {.progress = look, .progress_context = &watch};
    assert_int_equal(shoal_pool_map(pool, nap, inputs, 8, outputs, 8, COUNT, &options), 0);
    assert_int_equal(watch.last, COUNT);
    assert_true(watch.calls > 2);
    shoal_pool_stop(pool, 0);
}

static void a_progress_function_can_cancel(void **state)
{
    (void)state;
    shoal_pool *pool = start_pool(&(shoal_start_options){.workers = 2});
    enum { COUNT = 5000 };
    int64_t *inputs = calloc(COUNT, 8), *outputs = calloc(COUNT, 8);
    int *codes = calloc(COUNT, sizeof *codes);
    for (int i = 0; i < COUNT; i++)
        inputs[i] = 1000;
    struct watch watch = {.stop_at = 50};
    const shoal_map_options options = {.codes = codes, .progress = look, .progress_context = &watch};
    assert_int_equal(shoal_pool_map(pool, nap, inputs, 8, outputs, 8, COUNT, &options), SHOAL_ECANCELLED);
    int done = 0, cancelled = 0;
    for (int i = 0; i < COUNT; i++) {
        done += codes[i] == 0 && outputs[i] == 1000;
        cancelled += codes[i] == SHOAL_ECANCELLED;
    }
    assert_int_equal(done + cancelled, COUNT);
    assert_true(done >= 50 && cancelled > COUNT / 2);
    assert_int_equal(shoal_pool_map(pool, nap, inputs, 8, outputs, 8, 10, NULL), 0);
    shoal_pool_stop(pool, 0);
    free(inputs);
    free(outputs);
    free(codes);
}

static int which_cpus(const void *input, size_t input_size, void *output, size_t output_size, void *context)
{
    (void)input, (void)input_size, (void)context;
    usleep(10000);
    cpu_set_t set;
    if (output_size != sizeof set || sched_getaffinity(0, sizeof set, &set) != 0)
        return -EINVAL;
    memcpy(output, &set, sizeof set);
    return 0;
}

static void workers_are_pinned_to_their_cpus(void **state)
{
    (void)state;
    cpu_set_t mine, sets[20];
    assert_int_equal(sched_getaffinity(0, sizeof mine, &mine), 0);
    uint32_t last = 0;
    for (uint32_t cpu = 0; cpu < CPU_SETSIZE; cpu++)
        last = CPU_ISSET(cpu, &mine) ? cpu : last;
    shoal_pool *pool = start_pool(&(shoal_start_options){.workers = 2, .cpus = &last, .cpu_count = 1});
    assert_int_equal(shoal_pool_map(pool, which_cpus, sets, 1, sets, sizeof sets[0], 20, NULL), 0);
    for (int i = 0; i < 20; i++)
        assert_true(CPU_COUNT(&sets[i]) == 1 && CPU_ISSET(last, &sets[i]));
    shoal_pool_stop(pool, 0);
    const uint32_t none = CPU_SETSIZE - 1;
    const shoal_start_options wrong = {.workers = 1, .cpus = &none, .cpu_count = 1};
    assert_int_equal(shoal_pool_start(&wrong, &pool), -EINVAL);
}

static int count_start(void *context)
{
    atomic_fetch_add((_Atomic int *)context, 1);
    return 0;
}

static void count_exit(void *context)
{
    atomic_fetch_add((_Atomic int *)context + 1, 1);
}

/* Each page, in a way that the compiler cannot leave out. */
static void touch(char *memory, size_t size)
{
    for (size_t i = 0; i < size; i += 4096)
        ((volatile char *)memory)[i] = 1;
}

static int take_memory(const void *input, size_t input_size, void *output, size_t output_size, void *context)
{
    (void)input, (void)input_size, (void)context;
    size_t size = (size_t)64 << 20;
    char *memory = malloc(size); /* kept, as by a library that leaks */
    if (memory == NULL || output_size != sizeof(pid_t))
        return -ENOMEM;
    touch(memory, size);
    pid_t pid = getpid();
    memcpy(output, &pid, sizeof pid);
    return 0;
}

static void hooks_run_in_each_worker_also_in_one_that_is_replaced_for_its_memory(void **state)
{
    (void)state;
    _Atomic int *counters = shared_counters(2);
    const shoal_start_options options = {
        .workers = 1,
        .worker_start = count_start,
        .worker_exit = count_exit,
        .context = (void *)(uintptr_t)counters,
        .memory_limit = (uint64_t)150 << 20,
    };
    shoal_pool *pool = start_pool(&options);
    pid_t pids[6];
    const shoal_map_options one_by_one = {.chunk = 1};
    assert_int_equal(shoal_pool_map(pool, take_memory, pids, 1, pids, sizeof(pid_t), 6, &one_by_one), 0);
    shoal_pool_stop(pool, 0);
    int workers = 1;
    for (int i = 1; i < 6; i++)
        workers += pids[i] != pids[i - 1];
    assert_true(workers == 2 || workers == 3);
    assert_true(atomic_load(&counters[0]) >= workers);
    assert_int_equal(atomic_load(&counters[0]), atomic_load(&counters[1]));
}

static int refuse(void *context)
{
    (void)context;
    return 3;
}

static void a_pool_whose_workers_will_not_start_does_not_hang(void **state)
{
    (void)state;
    shoal_pool *pool = start_pool(&(shoal_start_options){.workers = 2, .worker_start = refuse});
    int64_t input = 1, output;
    assert_true(shoal_pool_map(pool, nap, &input, 8, &output, 8, 1, NULL) < 0);
    shoal_pool_stop(pool, 0);
}

static void statistics_count_what_a_worker_did(void **state)
{
    (void)state;
    shoal_pool *pool = start_pool(&(shoal_start_options){.workers = 1});
    int64_t inputs[10], outputs[10];
    for (int i = 0; i < 10; i++)
        inputs[i] = 2000;
    const shoal_map_options options = {.chunk = 5};
    assert_int_equal(shoal_pool_map(pool, nap, inputs, 8, outputs, 8, 10, &options), 0);
    shoal_worker_numbers numbers;
    assert_int_equal(shoal_pool_worker_numbers(pool, 0, &numbers), 0);
    assert_int_equal(numbers.tasks, 2);
    assert_int_equal(numbers.items, 10);
    assert_int_equal(numbers.bytes_in, 80);
    assert_true(numbers.bytes_out >= 80);
    assert_true(numbers.busy >= 20 * SHOAL_MILLISECOND && numbers.since != 0);
    shoal_pool_stop(pool, 0);
}

static void private_memory_grows_with_what_is_touched(void **state)
{
    (void)state;
    uint64_t before, after;
    assert_int_equal(shoal_memory_private(&before), 0);
    size_t size = (size_t)32 << 20;
    char *memory = malloc(size);
    touch(memory, size);
    assert_int_equal(shoal_memory_private(&after), 0);
    assert_true(after >= before + size * 3 / 4);
    free(memory);
}

static void only_tasks_that_no_worker_has_begun_can_be_recalled(void **state)
{
    (void)state;
    enum { FIRST = 7, SECOND = 8 };
    shoal_worker *worker;
    shoal_pool *pool = open_pool_with_worker(&worker);
    shoal_batch *batch;
    assert_int_equal(shoal_batch_create(&batch), 0);
    const uint64_t groups[] = {FIRST, SECOND, FIRST, SECOND};
    for (uint64_t tag = 0; tag < 4; tag++) {
        shoal_batch_clear(batch, NULL);
        assert_int_equal(shoal_batch_add(batch, &(shoal_item){.data = "x", .size = 1}), 0);
        assert_int_equal(shoal_pool_submit(pool, batch, &(shoal_task_options){.tag = tag, .group = groups[tag]}), 0);
    }
    assert_false(shoal_pool_begun(pool, FIRST));

    shoal_task *task;
    assert_int_equal(shoal_worker_claim(worker, 0, &task), 0);
    assert_true(shoal_pool_begun(pool, FIRST));
    assert_false(shoal_pool_begun(pool, SECOND));
    assert_int_equal(shoal_pool_recall(pool, FIRST), 1);
    assert_int_equal(shoal_pool_recall(pool, FIRST), 0);

    /* What was at hand is done as if nothing had been said. */
    shoal_item item;
    assert_int_equal(shoal_task_next(task, &item), 0);
    assert_int_equal(shoal_task_answer(task, &item), 0);
    shoal_task_finish(task);
    int32_t outcomes[4] = {1, 1, 1, 1};
    shoal_completion completion;
    while (shoal_pool_collect(pool, &completion) == 0) {
        outcomes[completion.tag] = completion.outcome;
        shoal_pool_release(pool, &completion);
    }
    assert_int_equal(outcomes[0], 0);
    assert_int_equal(outcomes[2], SHOAL_ECANCELLED);
    assert_int_equal(outcomes[1], 1);
    assert_false(shoal_pool_begun(pool, FIRST));
    assert_int_equal(shoal_worker_claim(worker, 0, &task), 0); /* the second group's first */
    assert_true(shoal_pool_begun(pool, SECOND));
    shoal_task_finish(task);
    shoal_worker_close(worker);
    shoal_batch_close(batch);
    shoal_pool_close(pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(an_item_that_takes_too_long_fails_alone, start_clock),
        cmocka_unit_test_setup(no_item_fails_for_the_time_of_another, start_clock),
        cmocka_unit_test_setup(progress_grows_up_to_the_end, start_clock),
        cmocka_unit_test_setup(a_progress_function_can_cancel, start_clock),
        cmocka_unit_test_setup(workers_are_pinned_to_their_cpus, start_clock),
        cmocka_unit_test_setup(hooks_run_in_each_worker_also_in_one_that_is_replaced_for_its_memory, start_clock),
        cmocka_unit_test_setup(a_pool_whose_workers_will_not_start_does_not_hang, start_clock),
        cmocka_unit_test_setup(statistics_count_what_a_worker_did, start_clock),
        cmocka_unit_test_setup(private_memory_grows_with_what_is_touched, start_clock),
        cmocka_unit_test_setup(only_tasks_that_no_worker_has_begun_can_be_recalled, start_clock),
    };
    return cmocka_run_group_tests_name("pool options", tests, NULL, NULL);
}
