/* test_queue_settle.c: who settles a dead process's slot is stopped before any one instruction of that (steps.h).
 * Meanwhile the others have gone on: the dead one's memory was freed and belongs to another item, its place is another
 * process's. The one that was stopped must not take these for what it saw.
 */
#include "steps.h"

#include "queue/queue.h"

#define BLOCKS 14u /* of an item: their references do not fit into the slot */
#define SIZE 100u
#define FIRST ((uint64_t)SEGMENT_SLOTS) /* position */

struct stage {
    shoal_queue *queue;
    _Atomic uint32_t taken;
    _Atomic int ready;
    enum queue_slot_state state; /* where the child was stopped */
};

static void set_state(struct queue_slot *slot, enum queue_slot_state from, enum queue_slot_state to, uint32_t owner)
{
    uint64_t word = atomic_load(&slot->state);
    CHECK(qslot_state(word) == from);
    CHECK(atomic_compare_exchange_strong(&slot->state, &word,
                                         (word & ~(uint64_t)0xfff7) | (uint64_t)owner << 4 | (uint64_t)to));
}

static void allocate_blocks(shoal_queue *queue, uint32_t owner, uint8_t filling, shoal_block blocks[BLOCKS])
{
    for (uint32_t i = 0; i < BLOCKS; i++) {
        CHECK(shoal_heap_allocate(shoal_queue_heap(queue), SIZE, owner, &blocks[i]) == 0);
        memset(shoal_heap_pointer(shoal_queue_heap(queue), blocks[i], NULL), filling, SIZE);
    }
}

static uint32_t place_of_this_process(shoal_queue *queue)
{
    uint32_t owner;
    CHECK(shoal_queue_owner(queue, &owner) == 0);
    return owner - 1;
}

static void reap(pid_t child)
{
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

/* A get in a child, for step_lead. */
static pid_t start_get(struct stage *stage, void (*get)(struct stage *))
{
    const pid_t child = fork_child("a get that is stopped");
    if (child == 0) {
        (void)place_of_this_process(stage->queue);
        step_mark(true);
        get(stage);
        step_mark(false);
        _exit(0);
    }
    CHECK(child > 0);
    return child;
}

/* ------------------------------------------------------------- an item that never was ---- */

/* Die in the middle of a put, with references to memory that was not given to the queue yet. */
static void die_putting(shoal_queue *queue)
{
    const uint32_t self = place_of_this_process(queue);
    shoal_heap *heap = shoal_queue_heap(queue);
    shoal_block blocks[BLOCKS], block;
    CHECK(segment_provide(queue, FIRST) == 0);
    struct queue_slot *slot = slot_find(queue, FIRST);
    set_state(slot, QSLOT_FREE, QSLOT_WRITING, self);
    atomic_store(&queue->header->tail, FIRST + 1);
    allocate_blocks(queue, self + 1, 0, blocks);
    CHECK(shoal_heap_allocate(heap, sizeof blocks, self + 1, &block) == 0);
    memcpy(shoal_heap_pointer(heap, block, NULL), blocks, sizeof blocks);
    slot->size = 0;
    slot->block = block;
    slot->form = BLOCKS;
    raise(SIGKILL);
}

/* Take the item, if it is there, and see that its memory is the taker's and holds what it held. */
static void take_item(struct stage *stage)
{
    shoal_received received;
    const uint32_t self = place_of_this_process(stage->queue);
    shoal_heap *heap = shoal_queue_heap(stage->queue);
    if (shoal_queue_get_item(stage->queue, 0, &received) != 0)
        return;
    CHECK(received.item.block_count == BLOCKS);
    for (uint32_t i = 0; i < BLOCKS; i++) {
        uint32_t owner;
        const uint8_t *bytes = shoal_heap_pointer(heap, received.item.blocks[i], NULL);
        CHECK(bytes != NULL && bytes[0] == 7 && bytes[SIZE - 1] == 7);
        CHECK(shoal_heap_owner(heap, received.item.blocks[i], &owner) == 0 && owner == self + 1);
        CHECK(shoal_heap_free(heap, received.item.blocks[i]) == 0);
    }
    shoal_queue_release(stage->queue, &received);
    atomic_fetch_add(&stage->taken, 1);
}

static int try_drop(void *context, int count, int number)
{
    struct stage *stage = context;
    (void)number;
    CHECK(shoal_queue_create(NULL, &stage->queue) == 0);
    atomic_store(&stage->taken, 0);
    const uint32_t self = place_of_this_process(stage->queue);
    const pid_t dead = fork_child("a producer that dies");
    if (dead == 0)
        die_putting(stage->queue);
    reap(dead);
    const pid_t child = start_get(stage, take_item);
    const int came = step_lead(child, count);
    /* As an allocation does that finds no memory; and the same shape of item again, which takes what was freed last. */
    stage->state = qslot_state(atomic_load(&slot_find(stage->queue, FIRST)->state));
    participants_sweep(stage->queue);
    shoal_block blocks[BLOCKS];
    allocate_blocks(stage->queue, self + 1, 7, blocks);
    const shoal_item item = {.blocks = blocks, .block_count = BLOCKS};
    CHECK(shoal_queue_put_item(stage->queue, &item, 0) == 0);
    step_release(child);
    for (int i = 0; i < 100 && atomic_load(&stage->taken) == 0; i++) {
        take_item(stage);
        sleep_for(SHOAL_MILLISECOND);
    }
    assert_int_equal(atomic_load(&stage->taken), 1);
    for (int i = 0; i < 100 && shoal_queue_count(stage->queue) > 0; i++) {
        take_item(stage);
        sleep_for(SHOAL_MILLISECOND);
    }
    assert_int_equal(shoal_queue_count(stage->queue), 0);
    participants_sweep(stage->queue);
    struct shoal_heap_numbers numbers;
    assert_int_equal(shoal_heap_count(shoal_queue_heap(stage->queue), &numbers), 0);
    if (numbers.blocks != 0)
        fail_msg("stopped after %d instructions: %d blocks are left", came, (int)numbers.blocks);
    shoal_queue_close(stage->queue);
    return came;
}

/* ------------------------------------------------------- an item that is being read again ---- */

static int take_number(struct stage *stage, size_t capacity)
{
    uint64_t data;
    size_t size;
    const int result = shoal_queue_get(stage->queue, &data, capacity, 0, &size);
    if (result == 0)
        atomic_fetch_add(&stage->taken, 1);
    return result;
}

static void take_any(struct stage *stage)
{
    (void)take_number(stage, sizeof(uint64_t));
}

/* A process that reads the item, for as long as it lives. `place`: where it must be among the queue's users. */
static pid_t start_reader(struct stage *stage, uint32_t place)
{
    atomic_store(&stage->ready, 0);
    const pid_t child = fork_child("a reader");
    if (child == 0) {
        CHECK(place_of_this_process(stage->queue) == place);
        set_state(slot_find(stage->queue, FIRST), QSLOT_FULL, QSLOT_READING, place);
        atomic_store(&stage->ready, 1);
        for (;;)
            pause();
    }
    while (atomic_load(&stage->ready) == 0)
        sleep_for(SHOAL_MILLISECOND / 10);
    return child;
}

static int try_read(void *context, int count, int number)
{
    struct stage *stage = context;
    const uint64_t data = (uint64_t)number;
    CHECK(shoal_queue_create(NULL, &stage->queue) == 0);
    atomic_store(&stage->taken, 0);
    CHECK(shoal_queue_put(stage->queue, &data, sizeof data, 0) == 0);
    const uint32_t place = place_of_this_process(stage->queue) + 1;
    kill_and_reap(start_reader(stage, place));
    const pid_t child = start_get(stage, take_any);
    const int came = step_lead(child, count);
    pid_t reader = 0;
    /* The item is found to be the dead one's, is too large for this get, and goes back; unless the child has it. */
    if (take_number(stage, 1) == -EMSGSIZE) {
        participants_sweep(stage->queue);
        reader = start_reader(stage, place);
    }
    step_release(child);
    if (reader != 0) {
        if (atomic_load(&stage->taken) != 0)
            fail_msg("stopped after %d instructions: it took an item that another reads", came);
        kill_and_reap(reader);
        for (int i = 0; i < 100 && atomic_load(&stage->taken) == 0; i++) {
            take_any(stage);
            sleep_for(SHOAL_MILLISECOND);
        }
    }
    assert_int_equal(atomic_load(&stage->taken), 1);
    assert_int_equal(shoal_queue_count(stage->queue), 0);
    shoal_queue_close(stage->queue);
    return came;
}

/* The first count at which the child is stopped in this state, or in a later one. */
static int begin_of(struct stage *stage, enum queue_slot_state first, enum queue_slot_state other)
{
    int below = 0, at = try_drop(stage, INT32_MAX, 0);
    while (at - below > 1) {
        const int middle = below + (at - below) / 2;
        (void)try_drop(stage, middle, 0);
        if (stage->state == first || stage->state == other)
            at = middle;
        else
            below = middle;
    }
    return at;
}

static void memory_of_an_item_that_never_was_may_be_used_again(void **state)
{
    (void)state;
    struct stage *stage = shared_memory(sizeof *stage);
    (void)try_drop(stage, 0, 0); /* has functions looked up */
    /* All the while that the slot is in the child's hands; before and after that, what it does is the same as ever. */
    const int begin = begin_of(stage, QSLOT_DROPPING, QSLOT_DONE), end = begin_of(stage, QSLOT_DONE, QSLOT_DONE);
    const int64_t until = shoal_clock_now() + STEPS_ENOUGH;
    int tried = 0;
    for (int stride = 13, round = 0; round < stride; round++)
        for (int count = begin + round; count < end && shoal_clock_now() < until; count += stride, tried++)
            (void)try_drop(stage, count, 0);
    printf("             %d instructions, %d tried\n", end - begin, tried);
    assert_true(end - begin > 50 && tried > 10);
    munmap(stage, sizeof *stage);
}

static void the_place_of_a_dead_reader_may_be_taken(void **state)
{
    (void)state;
    struct stage *stage = shared_memory(sizeof *stage);
    step_through(try_read, stage, true);
    munmap(stage, sizeof *stage);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(memory_of_an_item_that_never_was_may_be_used_again, start_clock),
        cmocka_unit_test_setup(the_place_of_a_dead_reader_may_be_taken, start_clock),
    };
    return cmocka_run_group_tests_name("queue, settling step by step", tests, NULL, NULL);
}
