/* The pool in C alone: mapping, deaths, retries, a worker's protocol, a campaign of kills. */
#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <pthread.h>
#include <assert.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "shoal.h"

#define LIMIT 120 /* seconds for each test */

static int start_clock(void **state)
{
    (void)state;
    alarm(LIMIT);
    return 0;
}

static int square(const void *input, size_t input_size, void *output, size_t output_size, void *context)
{
    (void)context;
    assert(input_size == sizeof(int64_t) && output_size == sizeof(int64_t));
    int64_t value;
    memcpy(&value, input, sizeof value);
    value *= value;
    memcpy(output, &value, sizeof value);
    return 0;
}

static int64_t *numbers(size_t count)
{
    int64_t *values = calloc(count + 1, sizeof *values);
    for (size_t i = 0; i < count; i++)
        values[i] = (int64_t)i;
    return values;
}

static shoal_pool *start_pool(uint32_t workers)
{
    shoal_pool *pool;
    assert_int_equal(shoal_pool_start(&(shoal_start_options){.workers = workers}, &pool), 0);
    return pool;
}

static void check_map(shoal_pool *pool, size_t count, uint32_t chunk)
{
    int64_t *inputs = numbers(count), *outputs = calloc(count + 1, sizeof *outputs);
    const shoal_map_options options = {.chunk = chunk};
    assert_int_equal(shoal_pool_map(pool, square, inputs, 8, outputs, 8, count, &options), 0);
    for (size_t i = 0; i < count; i++)
        assert_int_equal(outputs[i], inputs[i] * inputs[i]);
    free(inputs);
    free(outputs);
}

static void a_map_gives_each_result_in_its_place(void **state)
{
    (void)state;
    shoal_pool *pool = start_pool(3);
    const size_t counts[] = {0, 1, 2, 3, 10, 1000, 100000};
    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
        check_map(pool, counts[i], 0);
        check_map(pool, counts[i], 1);
        check_map(pool, counts[i], 7);
    }
    shoal_pool_stop(pool, 0);
}

static void many_more_workers_than_cores_work(void **state)
{
    (void)state;
    shoal_pool *pool = start_pool(32);
    check_map(pool, 20000, 1);
    shoal_pool_stop(pool, 0);
}

static int fail_on_multiples_of_ten(const void *input, size_t input_size, void *output, size_t output_size,
                                    void *context)
{
    int64_t value;
    memcpy(&value, input, sizeof value);
    return value % 10 == 0 ? -1000 - (int)value : square(input, input_size, output, output_size, context);
}

static void a_functions_code_is_its_items_and_the_first_in_order_is_returned(void **state)
{
    (void)state;
    shoal_pool *pool = start_pool(2);
    int64_t *inputs = numbers(100), outputs[100];
    int codes[100];
    const shoal_map_options options = {.codes = codes};
    assert_int_equal(shoal_pool_map(pool, fail_on_multiples_of_ten, inputs, 8, outputs, 8, 100, &options), -1000);
    for (int i = 0; i < 100; i++) {
        assert_int_equal(codes[i], i % 10 == 0 ? -1000 - i : 0);
        if (i % 10 != 0)
            assert_int_equal(outputs[i], i * i);
    }
    free(inputs);
    shoal_pool_stop(pool, 0);
}

static int add_context(const void *input, size_t input_size, void *output, size_t output_size, void *context)
{
    (void)input_size;
    (void)output_size;
    *(int64_t *)output = *(const int64_t *)input + ((const int64_t *)context)[99];
    return 0;
}

static void the_context_reaches_every_worker(void **state)
{
    (void)state;
    shoal_pool *pool = start_pool(2);
    int64_t context[100] = {0}, inputs[50], outputs[50];
    context[99] = 5;
    for (int i = 0; i < 50; i++)
        inputs[i] = i;
    const shoal_map_options options = {.context = context, .context_size = sizeof context};
    assert_int_equal(shoal_pool_map(pool, add_context, inputs, 8, outputs, 8, 50, &options), 0);
    for (int i = 0; i < 50; i++)
        assert_int_equal(outputs[i], i + 5);
    shoal_pool_stop(pool, 0);
}

/* Die on some items: always, or the first time (the context is a file name that remembers). */
static int die_on_seven(const void *input, size_t input_size, void *output, size_t output_size, void *context)
{
    int64_t value;
    memcpy(&value, input, sizeof value);
    if (value % 100 == 7)
        raise(SIGKILL);
    return square(input, input_size, output, output_size, context);
}

static void a_killed_worker_fails_only_the_item_it_held(void **state)
{
    (void)state;
    shoal_pool *pool = start_pool(2);
    int64_t *inputs = numbers(1000), *outputs = calloc(1000, 8);
    int *codes = calloc(1000, sizeof *codes);
    const shoal_map_options options = {.codes = codes};
    assert_int_equal(shoal_pool_map(pool, die_on_seven, inputs, 8, outputs, 8, 1000, &options), SHOAL_EWORKERDIED);
    for (int i = 0; i < 1000; i++) {
        assert_int_equal(codes[i], i % 100 == 7 ? SHOAL_EWORKERDIED : 0);
        if (i % 100 != 7)
            assert_int_equal(outputs[i], (int64_t)i * i);
    }
    check_map(pool, 1000, 0); /* and the pool goes on */
    free(inputs);
    free(outputs);
    free(codes);
    shoal_pool_stop(pool, 0);
}

static int die_the_first_time(const void *input, size_t input_size, void *output, size_t output_size, void *context)
{
    int64_t value;
    memcpy(&value, input, sizeof value);
    char path[200];
    snprintf(path, sizeof path, "%s/%d", (const char *)context, (int)value);
    if (value % 100 == 7 && unlink(path) == 0)
        raise(SIGKILL);
    return square(input, input_size, output, output_size, context);
}

static void an_item_whose_worker_died_is_tried_again(void **state)
{
    (void)state;
    char folder[] = "/tmp/shoal-test-XXXXXX", path[64];
    assert_non_null(mkdtemp(folder));
    for (int i = 7; i < 1000; i += 100) {
        snprintf(path, sizeof path, "%s/%d", folder, i);
        FILE *file = fopen(path, "w");
        assert_non_null(file);
        fclose(file);
    }
    shoal_pool *pool = start_pool(2);
    int64_t *inputs = numbers(1000), *outputs = calloc(1000, 8);
    const shoal_map_options options = {.context = folder, .context_size = sizeof folder, .retries = 1};
    assert_int_equal(shoal_pool_map(pool, die_the_first_time, inputs, 8, outputs, 8, 1000, &options), 0);
    for (int i = 0; i < 1000; i++)
        assert_int_equal(outputs[i], (int64_t)i * i);
    free(inputs);
    free(outputs);
    shoal_pool_stop(pool, 0);
    assert_int_equal(rmdir(folder), 0);
}

struct large {
    uint8_t bytes[100000];
};

static int turn_large(const void *input, size_t input_size, void *output, size_t output_size, void *context)
{
    (void)context;
    assert(input_size == output_size);
    for (size_t i = 0; i < input_size; i++)
        ((uint8_t *)output)[i] = (uint8_t) ~((const uint8_t *)input)[i];
    return 0;
}

static void large_items_come_through_and_leave_no_memory_behind(void **state)
{
    (void)state;
    shoal_pool *pool = start_pool(2);
    struct large *inputs = calloc(40, sizeof *inputs), *outputs = calloc(40, sizeof *outputs);
    for (int i = 0; i < 40; i++)
        memset(&inputs[i], i, sizeof inputs[i]);
    for (int round = 0; round < 5; round++) {
        assert_int_equal(shoal_pool_map(pool, turn_large, inputs, sizeof *inputs, outputs, sizeof *outputs, 40, NULL),
                         0);
        for (int i = 0; i < 40; i++) {
            assert_int_equal(outputs[i].bytes[0], (uint8_t)~i);
            assert_int_equal(outputs[i].bytes[sizeof *outputs - 1], (uint8_t)~i);
        }
    }
    struct shoal_heap_numbers numbers_now;
    assert_int_equal(shoal_heap_count(shoal_pool_heap(pool), &numbers_now), 0);
    assert_int_equal(numbers_now.blocks, 0);
    free(inputs);
    free(outputs);
    shoal_pool_stop(pool, 0);
}

static void *map_in_thread(void *pool)
{
    check_map(pool, 5000, 3);
    return NULL;
}

static void threads_that_map_on_one_pool_take_turns(void **state)
{
    (void)state;
    shoal_pool *pool = start_pool(2);
    pthread_t threads[4];
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, map_in_thread, pool), 0);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    shoal_pool_stop(pool, 0);
}

static void stopping_with_force_ends_workers_that_are_stopped(void **state)
{
    (void)state;
    shoal_pool *pool = start_pool(2);
    shoal_worker_numbers worker = {0};
    while (worker.pid == 0) { /* until it has come to the table */
        assert_int_equal(shoal_pool_worker_numbers(pool, 0, &worker), 0);
        usleep(1000);
    }
    pid_t pid = worker.pid;
    assert_int_equal(kill(pid, SIGSTOP), 0);
    int64_t begin = shoal_clock_now();
    shoal_pool_stop(pool, 1);
    assert_true(shoal_clock_now() - begin < 5 * SHOAL_SECOND);
    assert_int_not_equal(kill(pid, 0), 0);
}

static void wrong_arguments_are_refused(void **state)
{
    (void)state;
    shoal_pool *pool;
    shoal_pool_options options = {.workers = 0};
    assert_int_equal(shoal_pool_create(&options, &pool), -EINVAL);
    options.workers = SHOAL_POOL_WORKERS + 1;
    assert_int_equal(shoal_pool_create(&options, &pool), -EINVAL);
    options.workers = 1;
    assert_int_equal(shoal_pool_create(&options, &pool), 0);
    int64_t value = 1;
    assert_int_equal(shoal_pool_map(pool, square, &value, 8, &value, 8, 1, NULL), -EINVAL); /* it has no workers */
    shoal_pool_close(pool);
}

/* -- a campaign: workers are killed at random instants while a map runs -- */

static void maps_come_out_right_while_workers_are_killed(void **state)
{
    (void)state;
    const char *text = getenv("SHOAL_KILLS");
    int kills = text != NULL ? atoi(text) : 200;
    unsigned seed = (unsigned)time(NULL);
    const char *seed_text = getenv("SHOAL_SEED");
    if (seed_text != NULL)
        seed = (unsigned)atoi(seed_text);
    printf("seed %u, %d kills\n", seed, kills);
    srand(seed);
    shoal_pool *pool = start_pool(3);
    pid_t killer = fork();
    if (killer == 0) {
        alarm(LIMIT);
        for (int i = 0; i < kills; i++) {
            usleep((useconds_t)(rand() % 3000));
            shoal_worker_numbers worker;
            if (shoal_pool_worker_numbers(pool, (uint32_t)(rand() % 3), &worker) == 0 && worker.pid > 0)
                kill(worker.pid, SIGKILL);
        }
        _exit(0);
    }
    enum { COUNT = 20000 };
    int64_t *inputs = numbers(COUNT), *outputs = calloc(COUNT, 8);
    int *codes = calloc(COUNT, sizeof *codes);
    int status = 0, maps = 0;
    size_t died = 0;
    while (waitpid(killer, &status, WNOHANG) == 0) {
        const shoal_map_options options = {.codes = codes, .chunk = maps % 2 == 0 ? 0 : 1};
        memset(outputs, 0xff, COUNT * sizeof *outputs);
        (void)shoal_pool_map(pool, square, inputs, 8, outputs, 8, COUNT, &options);
        for (size_t i = 0; i < COUNT; i++) {
            died += codes[i] == SHOAL_EWORKERDIED;
            if (codes[i] == 0)
                assert_int_equal(outputs[i], inputs[i] * inputs[i]);
            else
                assert_int_equal(codes[i], SHOAL_EWORKERDIED);
        }
        maps++;
    }
    printf("%d maps of %d items, %zu items died with their worker\n", maps, COUNT, died);
    assert_int_equal(status, 0);
    assert_true(died <= (size_t)kills);
    const shoal_map_options patient = {.retries = 50};
    assert_int_equal(shoal_pool_map(pool, square, inputs, 8, outputs, 8, COUNT, &patient), 0);
    struct shoal_heap_numbers left;
    assert_int_equal(shoal_heap_count(shoal_pool_heap(pool), &left), 0);
    assert_int_equal(left.blocks, 0);
    free(inputs);
    free(outputs);
    free(codes);
    shoal_pool_stop(pool, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(a_map_gives_each_result_in_its_place, start_clock),
        cmocka_unit_test_setup(many_more_workers_than_cores_work, start_clock),
        cmocka_unit_test_setup(a_functions_code_is_its_items_and_the_first_in_order_is_returned, start_clock),
        cmocka_unit_test_setup(the_context_reaches_every_worker, start_clock),
        cmocka_unit_test_setup(a_killed_worker_fails_only_the_item_it_held, start_clock),
        cmocka_unit_test_setup(an_item_whose_worker_died_is_tried_again, start_clock),
        cmocka_unit_test_setup(large_items_come_through_and_leave_no_memory_behind, start_clock),
        cmocka_unit_test_setup(threads_that_map_on_one_pool_take_turns, start_clock),
        cmocka_unit_test_setup(stopping_with_force_ends_workers_that_are_stopped, start_clock),
        cmocka_unit_test_setup(wrong_arguments_are_refused, start_clock),
        cmocka_unit_test_setup(maps_come_out_right_while_workers_are_killed, start_clock),
    };
    return cmocka_run_group_tests_name("pool", tests, NULL, NULL);
}
