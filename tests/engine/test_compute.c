/* The thread team and the dot product. */
#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "shoal.h"

#define LIMIT 60 /* seconds for each test */

static int start_clock(void **state)
{
    (void)state;
    alarm(LIMIT);
    return 0;
}

static uint64_t random_state = 88172645463325252u;

static double random_double(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (double)(random_state >> 11) / (double)(UINT64_C(1) << 53) - 0.5;
}

static void a_dot_product_is_as_exact_as_long_doubles_allow_on_every_length(void **state)
{
    (void)state;
    const size_t lengths[] = {0, 1, 2, 7, 8, 15, 16, 31, 32, 33, 1000, 16383, 16384, 16385, 70001, 1000003};
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        size_t count = lengths[i];
        double *a = malloc((count + 2) * sizeof *a), *b = malloc((count + 2) * sizeof *b);
        long double expected = 0, magnitude = 1;
        for (size_t j = 0; j < count + 2; j++) {
            a[j] = random_double();
            b[j] = random_double();
        }
        /* From the second element on: nothing may depend on alignment. */
        for (size_t j = 1; j <= count; j++) {
            expected += (long double)a[j] * b[j];
            magnitude += fabsl((long double)a[j] * b[j]);
        }
        double got = -1;
        assert_int_equal(shoal_dot(a + 1, b + 1, count, 0, &got), 0);
        assert_true(fabsl(got - expected) <= magnitude * 1e-15L);
        free(a);
        free(b);
    }
}

static void the_result_does_not_depend_on_the_number_of_threads(void **state)
{
    (void)state;
    const size_t count = 1234567;
    double *a = malloc(count * sizeof *a), *b = malloc(count * sizeof *b);
    for (size_t i = 0; i < count; i++) {
        a[i] = random_double();
        b[i] = random_double();
    }
    double one, many;
    assert_int_equal(shoal_dot(a, b, count, 1, &one), 0);
    for (uint32_t threads = 2; threads < 9; threads++) {
        assert_int_equal(shoal_dot(a, b, count, threads, &many), 0);
        assert_true(one == many);
    }
    free(a);
    free(b);
}

static void not_a_number_and_infinity_come_through(void **state)
{
    (void)state;
    double a[40], b[40], got;
    for (int i = 0; i < 40; i++)
        a[i] = b[i] = 1;
    a[39] = INFINITY;
    assert_int_equal(shoal_dot(a, b, 40, 0, &got), 0);
    assert_true(isinf(got));
    a[3] = NAN;
    assert_int_equal(shoal_dot(a, b, 40, 0, &got), 0);
    assert_true(isnan(got));
}

static void float_vectors_are_summed_in_double(void **state)
{
    (void)state;
    const size_t count = 100001;
    float *a = malloc(count * sizeof *a);
    for (size_t i = 0; i < count; i++)
        a[i] = 0.1f;
    double got;
    assert_int_equal(shoal_dot_float(a, a, count, 0, &got), 0);
    assert_true(fabs(got - (double)count * (double)0.1f * (double)0.1f) < 1e-9 * (double)count);
    free(a);
}

static void mark(size_t begin, size_t end, void *context)
{
    _Atomic uint8_t *marks = context;
    for (size_t i = begin; i < end; i++)
        atomic_fetch_add_explicit(&marks[i], 1, memory_order_relaxed);
}

static void check_marks(uint32_t threads)
{
    enum { COUNT = 10007 };
    static _Atomic uint8_t marks[COUNT];
    for (size_t i = 0; i < COUNT; i++)
        atomic_store(&marks[i], 0);
    shoal_parallel_for(5, COUNT, 13, mark, marks, threads);
    for (size_t i = 0; i < COUNT; i++)
        assert_int_equal(atomic_load(&marks[i]), i >= 5);
}

static void a_loop_does_each_number_once(void **state)
{
    (void)state;
    for (uint32_t threads = 0; threads < 8; threads++)
        check_marks(threads);
    shoal_parallel_for(3, 3, 1, mark, NULL, 4); /* an empty loop calls nothing */
}

static void a_child_of_fork_has_a_team_of_its_own(void **state)
{
    (void)state;
    check_marks(4);
    for (int round = 0; round < 20; round++) {
        pid_t child = fork();
        if (child == 0) {
            alarm(20);
            check_marks(4);
            _exit(0);
        }
        check_marks(4);
        int status;
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_int_equal(status, 0);
    }
}

static void nest(size_t begin, size_t end, void *context)
{
    for (size_t i = begin; i < end; i++)
        shoal_parallel_for(0, 10, 1, mark, (_Atomic uint8_t *)context + i * 10, 4);
}

static void a_loop_inside_a_loop_is_done_all_the_same(void **state)
{
    (void)state;
    static _Atomic uint8_t marks[1000];
    shoal_parallel_for(0, 100, 1, nest, marks, 4);
    for (size_t i = 0; i < 1000; i++)
        assert_int_equal(atomic_load(&marks[i]), 1);
}

static void *loop_thread(void *unused)
{
    for (int i = 0; i < 200; i++) {
        _Atomic uint8_t marks[500] = {0};
        shoal_parallel_for(0, 500, 7, mark, marks, 3);
        for (size_t j = 0; j < 500; j++) {
            if (atomic_load(&marks[j]) != 1)
                return &random_state;
        }
    }
    return unused;
}

static void threads_that_loop_at_once_do_not_wait_for_each_other(void **state)
{
    (void)state;
    pthread_t threads[6];
    for (int i = 0; i < 6; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, loop_thread, NULL), 0);
    for (int i = 0; i < 6; i++) {
        void *wrong = NULL;
        pthread_join(threads[i], &wrong);
        assert_null(wrong);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(a_dot_product_is_as_exact_as_long_doubles_allow_on_every_length, start_clock),
        cmocka_unit_test_setup(the_result_does_not_depend_on_the_number_of_threads, start_clock),
        cmocka_unit_test_setup(not_a_number_and_infinity_come_through, start_clock),
        cmocka_unit_test_setup(float_vectors_are_summed_in_double, start_clock),
        cmocka_unit_test_setup(a_loop_does_each_number_once, start_clock),
        cmocka_unit_test_setup(a_child_of_fork_has_a_team_of_its_own, start_clock),
        cmocka_unit_test_setup(a_loop_inside_a_loop_is_done_all_the_same, start_clock),
        cmocka_unit_test_setup(threads_that_loop_at_once_do_not_wait_for_each_other, start_clock),
    };
    return cmocka_run_group_tests_name("compute", tests, NULL, NULL);
}
