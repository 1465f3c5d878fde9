/* test_queue_steps.c: a process that is stopped, or killed, before any one instruction of a put or a get (steps.h).
 *
 * Stopped: others go on meanwhile, and it finds another queue than it left. At the border of a segment, where slots
 * come from a common store and go back to it, each step must bear that. Killed: what its put had not returned for is
 * there or not, what it had not taken goes to another, and no memory stays behind.
 */
#include "steps.h"

#include "queue/queue.h"

#define ITEMS 1200
#define LARGE 400 /* bytes: an item that lies in a block */

struct stage {
    shoal_queue *queue;
    _Atomic uint32_t taken[ITEMS];
    uint64_t made;                /* by the parent; with the child's, if it puts one */
    void (*call)(struct stage *); /* the child's */
    uint32_t before;              /* items put before it, all but one of which are taken */
    int turned_at;                /* kills: after so many instructions it was as if the call had not been */
};

static void put(struct stage *stage, uint64_t number, size_t size)
{
    uint64_t data[LARGE / 8] = {number};
    CHECK(number < ITEMS);
    CHECK(shoal_queue_put(stage->queue, data, size, 0) == 0);
}

static int take(struct stage *stage, int64_t timeout)
{
    uint64_t data[LARGE / 8];
    size_t size;
    const int result = shoal_queue_get(stage->queue, data, sizeof data, timeout, &size);
    if (result == 0) {
        CHECK(data[0] < ITEMS);
        atomic_fetch_add(&stage->taken[data[0]], 1);
    }
    return result;
}

static void put_number_0(struct stage *stage)
{
    put(stage, 0, 8);
}

static void put_large_number_0(struct stage *stage)
{
    put(stage, 0, LARGE);
}

static void take_one(struct stage *stage)
{
    CHECK(take(stage, 0) == 0);
}

static bool child_puts(const struct stage *stage)
{
    return stage->call != take_one;
}

static pid_t begin(struct stage *stage, size_t size)
{
    CHECK(shoal_queue_create(NULL, &stage->queue) == 0);
    memset((void *)stage->taken, 0, sizeof stage->taken);
    stage->made = child_puts(stage);
    for (uint32_t i = 0; i < stage->before; i++)
        put(stage, stage->made++, size);
    for (uint32_t i = 0; i + 1 < stage->before; i++)
        CHECK(take(stage, 0) == 0);
    pid_t child = fork_child("a call that is stopped");
    if (child == 0) {
        uint32_t owner;
        CHECK(shoal_queue_owner(stage->queue, &owner) == 0);
        step_mark(true);
        stage->call(stage);
        step_mark(false);
        _exit(0);
    }
    CHECK(child > 0);
    return child;
}

/* One call that is stopped after `count` instructions, while this process puts some items and takes all but one. */
static int try_stop(void *context, int count, int number)
{
    struct stage *stage = context;
    pid_t child = begin(stage, 8);
    const int came = step_lead(child, count);
    const int others = number % 2 == 0 ? 2 : 300; /* within the segment, and past it */
    for (int i = 0; i < others; i++) {
        put(stage, stage->made++, 8);
        if (i > 0)
            (void)take(stage, 0);
    }
    step_release(child);
    while (take(stage, 0) == 0) {
    }
    for (uint64_t i = 0; i < stage->made; i++)
        if (stage->taken[i] != 1)
            fail_msg("stopped after %d instructions, %d others: item %d was taken %u times", came, others, (int)i,
                     stage->taken[i]);
    assert_int_equal(shoal_queue_count(stage->queue), 0);
    shoal_queue_close(stage->queue);
    return came;
}

/* One call whose process is killed after `count` instructions. */
static int try_kill(void *context, int count, int number)
{
    struct stage *stage = context;
    (void)number;
    pid_t child = begin(stage, LARGE);
    const int came = step_lead(child, count);
    kill_and_reap(child);
    const uint32_t got = stage->taken[0]; /* by the child, which lived to say so */
    const uint64_t last = stage->made++;
    put(stage, last, 8);
    for (int i = 0; i < 100 && (stage->taken[last] == 0 || shoal_queue_count(stage->queue) > 0); i++)
        (void)take(stage, 20 * SHOAL_MILLISECOND);
    assert_int_equal(stage->taken[last], 1);
    assert_int_equal(shoal_queue_count(stage->queue), 0);
    const bool undone = child_puts(stage) ? stage->taken[0] == 0 : stage->taken[0] > got;
    assert_true(stage->taken[0] <= 1);
    /* From the end back: a call that was too short to count never counts if it is shorter still. */
    if (undone && came > stage->turned_at)
        stage->turned_at = came;
    if (!undone && came < stage->turned_at - 20)
        fail_msg("killed after %d instructions it counts, after %d not", came, stage->turned_at);
    participants_sweep(stage->queue);
    struct shoal_heap_numbers numbers;
    assert_int_equal(shoal_heap_count(shoal_queue_heap(stage->queue), &numbers), 0);
    if (numbers.blocks != 0)
        fail_msg("killed after %d instructions: %d blocks are left", came, (int)numbers.blocks);
    shoal_queue_close(stage->queue);
    return came;
}

static void try_all(int (*trial)(void *, int, int), void (*call)(struct stage *), uint32_t before)
{
    struct stage *stage = shared_memory(sizeof *stage);
    stage->call = call;
    stage->before = before;
    step_through(trial, stage, false);
    munmap(stage, sizeof *stage);
}

static void a_put_that_begins_a_segment_may_be_stopped_anywhere(void **state)
{
    (void)state;
    try_all(try_stop, put_number_0, 0);
}

static void a_get_that_ends_a_segment_may_be_stopped_anywhere(void **state)
{
    (void)state;
    try_all(try_stop, take_one, SEGMENT_SLOTS);
}

static void a_put_may_be_killed_anywhere(void **state)
{
    (void)state;
    try_all(try_kill, put_large_number_0, 2);
}

static void a_get_may_be_killed_anywhere(void **state)
{
    (void)state;
    try_all(try_kill, take_one, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(a_put_that_begins_a_segment_may_be_stopped_anywhere, start_clock),
        cmocka_unit_test_setup(a_get_that_ends_a_segment_may_be_stopped_anywhere, start_clock),
        cmocka_unit_test_setup(a_put_may_be_killed_anywhere, start_clock),
        cmocka_unit_test_setup(a_get_may_be_killed_anywhere, start_clock),
    };
    return cmocka_run_group_tests_name("queue, step by step", tests, NULL, NULL);
}
