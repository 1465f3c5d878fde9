/* test_queue_steps.c: a process that is stopped before any one instruction of a put or a get, while others go on.
 *
 * Where a segment begins and ends, a put and a get take several steps, of which each must bear that the queue is
 * another one when it is done. A campaign of random stops hits the few instructions between two of them once in hours;
 * here a child is led by ptrace to each in turn, from the last one back, as the steps lie behind the setting up of 256
 * slots; of that, each hundredth instruction is tried.
 */
#include "helpers.h"

#include <sys/ptrace.h>

#define SLOTS 256u /* of a segment */
#define ALL_OF_THE_LAST 240
#define STRIDE 97
#define ENOUGH (20 * SHOAL_SECOND) /* of one call's stops: each instruction on the way takes some microseconds */
#define ITEMS 1200

struct stage {
    shoal_queue *queue;
    _Atomic uint32_t taken[ITEMS];
    uint64_t made; /* by the parent; with the child's, if it puts one */
};

static void put(struct stage *stage, uint64_t number)
{
    CHECK(number < ITEMS);
    CHECK(shoal_queue_put(stage->queue, &number, sizeof number, 0) == 0);
}

static bool take_next(struct stage *stage)
{
    uint64_t number;
    size_t size;
    const int result = shoal_queue_get(stage->queue, &number, sizeof number, 0, &size);
    if (result == -ETIMEDOUT)
        return false;
    CHECK(result == 0 && size == sizeof number && number < ITEMS);
    atomic_fetch_add(&stage->taken[number], 1);
    return true;
}

static void put_number_0(struct stage *stage)
{
    put(stage, 0);
}

static void take_one(struct stage *stage)
{
    CHECK(take_next(stage));
}

/* Stops before and after the call. */
static int call_in_child(struct stage *stage, void (*call)(struct stage *))
{
    uint32_t owner;
    CHECK(shoal_queue_owner(stage->queue, &owner) == 0); /* what a process does once is no part of it */
    CHECK(ptrace(PTRACE_TRACEME, 0, NULL, NULL) == 0);
    raise(SIGSTOP);
    call(stage);
    raise(SIGSTOP);
    return 0;
}

/* Let the child run to `count` instructions after its first stop. Out: how many it came. */
static int lead(pid_t child, int count)
{
    int status, steps = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP);
    while (steps < count) {
        assert_int_equal(ptrace(PTRACE_SINGLESTEP, child, NULL, NULL), 0);
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_true(WIFSTOPPED(status));
        if (WSTOPSIG(status) == SIGSTOP)
            break; /* behind the call */
        assert_int_equal(WSTOPSIG(status), SIGTRAP);
        steps++;
    }
    return steps;
}

/* One call that is stopped after `count` instructions, while this process puts `others` items and takes all but one. */
static int try_stop(struct stage *stage, void (*call)(struct stage *), uint32_t before, int count, int others)
{
    const shoal_queue_options options = {.capacity = 0};
    assert_int_equal(shoal_queue_create(&options, &stage->queue), 0);
    stage->made = call == put_number_0;
    memset((void *)stage->taken, 0, sizeof stage->taken);
    for (uint32_t i = 0; i < before; i++)
        put(stage, stage->made++);
    for (uint32_t i = 0; i + 1 < before; i++)
        assert_true(take_next(stage));
    pid_t child = fork_child("a call that is stopped");
    if (child == 0)
        _exit(call_in_child(stage, call));
    assert_true(child > 0);
    const int came = lead(child, count);
    for (int i = 0; i < others; i++) {
        put(stage, stage->made++);
        if (i > 0)
            (void)take_next(stage);
    }
    assert_int_equal(ptrace(PTRACE_DETACH, child, NULL, NULL), 0);
    int status;
    while (waitpid(child, &status, WUNTRACED) == child && WIFSTOPPED(status))
        kill(child, SIGCONT);
    assert_int_equal(status, 0);
    while (take_next(stage)) {
    }
    for (uint64_t i = 0; i < stage->made; i++)
        if (stage->taken[i] != 1)
            fail_msg("stopped after %d instructions, %d others: item %d was taken %u times", came, others, (int)i,
                     stage->taken[i]);
    assert_int_equal(shoal_queue_count(stage->queue), 0);
    shoal_queue_close(stage->queue);
    return came;
}

static void try_stops(void (*call)(struct stage *), uint32_t before)
{
    static const int others[] = {2, 300}; /* within the segment, and past it */
    struct stage *stage = shared_memory(sizeof *stage);
    const int64_t end = shoal_clock_now() + ENOUGH;
    /* The first call of all has the functions of the C library looked up, which is a thousand instructions. */
    (void)try_stop(stage, call, before, 0, 2);
    const int length = try_stop(stage, call, before, INT32_MAX, 0);
    int tried = 0, count;
    for (count = length; count >= 0 && shoal_clock_now() < end; count -= tried < ALL_OF_THE_LAST ? 1 : STRIDE)
        (void)try_stop(stage, call, before, count, others[tried++ % 2]);
    printf("             %d instructions, %d stops, back to number %d\n", length, tried, count > 0 ? count : 0);
    assert_true(tried > 10);
    munmap(stage, sizeof *stage);
}

static void a_put_that_begins_a_segment_may_be_stopped_anywhere(void **state)
{
    (void)state;
    try_stops(put_number_0, 0);
}

static void a_get_that_ends_a_segment_may_be_stopped_anywhere(void **state)
{
    (void)state;
    try_stops(take_one, SLOTS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(a_put_that_begins_a_segment_may_be_stopped_anywhere, start_clock),
        cmocka_unit_test_setup(a_get_that_ends_a_segment_may_be_stopped_anywhere, start_clock),
    };
    return cmocka_run_group_tests_name("queue, step by step", tests, NULL, NULL);
}
