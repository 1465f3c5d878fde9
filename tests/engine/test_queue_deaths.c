/* test_queue_deaths.c: what the queue makes of processes that die at the worst instant, of overwritten items, and of
 * crowds. The instant is made with the queue's insides: a child brings a slot to the state that it would have there,
 * and is killed. The campaign that kills at random instants is in tests/faults. */
#include "helpers.h"

#include <pthread.h>

#include "queue/queue.h"

#define MEGABYTE ((size_t)1 << 20)

static shoal_queue *make_queue(uint64_t capacity)
{
    const shoal_queue_options options = {.capacity = capacity, .heap_limit = 256 * MEGABYTE};
    shoal_queue *queue;
    assert_int_equal(shoal_queue_create(&options, &queue), 0);
    return queue;
}

static void put_number(shoal_queue *queue, uint64_t number)
{
    CHECK(shoal_queue_put(queue, &number, sizeof number, SHOAL_FOREVER) == 0);
}

static uint64_t get_number(shoal_queue *queue)
{
    uint64_t number = 0;
    size_t size = 0;
    CHECK(shoal_queue_get(queue, &number, sizeof number, 20 * SHOAL_SECOND, &size) == 0);
    CHECK(size == sizeof number);
    return number;
}

static struct shoal_heap_numbers count_blocks(shoal_queue *queue)
{
    struct shoal_heap_numbers numbers;
    assert_int_equal(shoal_heap_count(shoal_queue_heap(queue), &numbers), 0);
    return numbers;
}

/* -------------------------------------------------------------- the worst instants ---- */

static _Noreturn void die(void)
{
    raise(SIGKILL);
    abort();
}

/* Run `function`, which ends with die(), in a child that is killed, and reaped if asked. */
static void let_die(int (*function)(void *), void *context)
{
    int status = 0;
    pid_t pid = start_child("a process that is about to die", function, context);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

/* Bring the slot of a position from one state to another, in this process's name. */
static struct queue_slot *claim(shoal_queue *queue, uint64_t position, enum queue_slot_state from,
                                enum queue_slot_state to)
{
    uint32_t self;
    CHECK(participant_self(queue, &self) == 0);
    CHECK(segment_provide(queue, position) == 0);
    struct queue_slot *slot = slot_find(queue, position);
    CHECK(slot != NULL);
    uint64_t word = qslot_word(position, 0, from);
    CHECK(atomic_compare_exchange_strong(&slot->state, &word, qslot_word(position, self, to)));
    return slot;
}

static int die_reading(void *context)
{
    shoal_queue *queue = context;
    claim(queue, atomic_load(&queue->header->head), QSLOT_FULL, QSLOT_READING);
    die();
}

static int die_writing(void *context)
{
    shoal_queue *queue = context;
    uint64_t tail = atomic_load(&queue->header->tail);
    claim(queue, tail, QSLOT_FREE, QSLOT_WRITING);
    atomic_store(&queue->header->tail, tail + 1);
    die();
}

/* The slot is claimed, but the tail does not tell yet. */
static int die_claiming(void *context)
{
    shoal_queue *queue = context;
    claim(queue, atomic_load(&queue->header->tail), QSLOT_FREE, QSLOT_WRITING);
    die();
}

/* The item is taken, but the head does not tell yet. */
static int die_finishing(void *context)
{
    shoal_queue *queue = context;
    struct queue_slot *slot = claim(queue, atomic_load(&queue->header->head), QSLOT_FULL, QSLOT_READING);
    uint64_t word = atomic_load(&slot->state);
    atomic_store(&slot->state, qslot_word(qslot_position(word), 0, QSLOT_DONE));
    die();
}

static void a_full_queue_gets_its_room_back_from_a_consumer_that_died_as_it_finished(void **state)
{
    (void)state;
    enum { WAITING, LOOKING, TAKING, WAYS };
    for (int way = 0; way < WAYS; way++) {
        shoal_queue *queue = make_queue(1);
        put_number(queue, 1);
        let_die(die_finishing, queue);
        uint64_t number = 2;
        size_t size;
        if (way == TAKING) /* a get that finds nothing puts the count right */
            assert_int_equal(shoal_queue_get(queue, &number, 8, 0, &size), -ETIMEDOUT);
        if (way == WAITING)
            assert_int_equal(shoal_queue_put(queue, &number, 8, 20 * SHOAL_SECOND), 0);
        else if (way == LOOKING)
            while (shoal_queue_put(queue, &number, 8, 0) != 0)
                sleep_for(SHOAL_MILLISECOND);
        if (way != TAKING)
            assert_int_equal(get_number(queue), 2);
        assert_int_equal(shoal_queue_count(queue), 0);
        shoal_queue_close(queue);
    }
}

static void an_item_that_a_dead_consumer_was_reading_goes_to_another(void **state)
{
    (void)state;
    for (int waiting = 0; waiting < 2; waiting++) {
        shoal_queue *queue = make_queue(0);
        put_number(queue, 1);
        put_number(queue, 2);
        let_die(die_reading, queue);
        uint64_t numbers[2];
        size_t size;
        for (int i = 0; i < 2; i++) {
            /* A get that does not wait finds it as well, within some tries. */
            if (waiting != 0)
                numbers[i] = get_number(queue);
            else
                while (shoal_queue_get(queue, &numbers[i], 8, 0, &size) != 0)
                    sleep_for(SHOAL_MILLISECOND);
        }
        assert_int_equal(numbers[0] + numbers[1], 3); /* the second may be first: it was free meanwhile */
        assert_int_equal(numbers[0] * numbers[1], 2);
        assert_int_equal(shoal_queue_count(queue), 0);
        shoal_queue_close(queue);
    }
}

static void an_item_whose_producer_died_half_way_is_skipped(void **state)
{
    (void)state;
    int (*const deaths[])(void *) = {die_writing, die_claiming};
    for (int i = 0; i < 2; i++) {
        shoal_queue *queue = make_queue(0);
        put_number(queue, 1);
        let_die(deaths[i], queue);
        put_number(queue, 2);
        assert_int_equal(get_number(queue), 1);
        assert_int_equal(get_number(queue), 2);
        uint64_t number;
        size_t size;
        assert_int_equal(shoal_queue_get(queue, &number, 8, 20 * SHOAL_MILLISECOND, &size), -ETIMEDOUT);
        assert_int_equal(shoal_queue_count(queue), 0);
        shoal_queue_close(queue);
    }
}

static void a_full_queue_gets_its_room_back_from_a_producer_that_died(void **state)
{
    (void)state;
    for (int waiting = 0; waiting < 2; waiting++) {
        shoal_queue *queue = make_queue(1);
        uint64_t number = 7;
        let_die(die_writing, queue);
        if (waiting != 0)
            put_number(queue, number);
        else /* nobody waits anywhere: a put that does not wait must come to it, within some tries */
            while (shoal_queue_put(queue, &number, sizeof number, 0) != 0)
                sleep_for(SHOAL_MILLISECOND);
        assert_int_equal(get_number(queue), 7);
        shoal_queue_close(queue);
    }
}

static int put_and_die(void *context)
{
    shoal_queue *queue = context;
    uint8_t *data = malloc(MEGABYTE);
    for (size_t i = 0; i < 100; i++) {
        memset(data, (int)i, MEGABYTE);
        CHECK(shoal_queue_put(queue, data, i * i * 100, SHOAL_FOREVER) == 0);
    }
    die();
}

static void what_was_put_is_there_though_its_producer_was_killed_at_once(void **state)
{
    (void)state;
    shoal_queue *queue = make_queue(0);
    uint8_t *data = malloc(MEGABYTE);
    let_die(put_and_die, queue);
    participants_sweep(queue); /* the dead producer's own memory goes, not the items' */
    for (size_t i = 0; i < 100; i++) {
        size_t size = 1;
        assert_int_equal(shoal_queue_get(queue, data, MEGABYTE, 0, &size), 0);
        assert_int_equal(size, i * i * 100);
        for (size_t j = 0; j < size; j++)
            assert_int_equal(data[j], i);
    }
    assert_int_equal(count_blocks(queue).blocks, 0);
    free(data);
    shoal_queue_close(queue);
}

static _Noreturn int stop_reading(void *context)
{
    shoal_queue *queue = context;
    claim(queue, atomic_load(&queue->header->head), QSLOT_FULL, QSLOT_READING);
    for (;;)
        pause();
}

static void a_backlog_behind_an_item_that_is_being_read_is_taken_at_the_usual_pace(void **state)
{
    (void)state;
    /* A search that passes all that was taken already, for each item, takes minutes: the limit ends it. */
    enum { BACKLOG = 300000 };
    for (int dead = 0; dead < 2; dead++) {
        shoal_queue *queue = make_queue(0);
        pid_t reader = 0;
        for (uint64_t i = 0; i < BACKLOG; i++)
            put_number(queue, i);
        if (dead != 0) {
            let_die(die_reading, queue);
        } else {
            reader = start_child("a process that reads an item for ever", stop_reading, queue);
            uint64_t word;
            do
                word = atomic_load(&slot_find(queue, atomic_load(&queue->header->head))->state);
            while (qslot_state(word) != QSLOT_READING);
        }
        bool seen_first = false;
        uint64_t expected = 1;
        for (uint64_t i = dead != 0 ? 0 : 1; i < BACKLOG; i++) {
            uint64_t number = get_number(queue);
            if (number == 0 && !seen_first)
                seen_first = true; /* the dead one's, whenever it was found to be dead */
            else
                assert_int_equal(number, expected++);
        }
        if (reader != 0) { /* and now it dies */
            kill_and_reap(reader);
            assert_int_equal(get_number(queue), 0);
        }
        assert_int_equal(shoal_queue_count(queue), 0);
        shoal_queue_close(queue);
    }
}

static void a_backlog_behind_an_item_whose_producer_died_is_taken_at_the_usual_pace(void **state)
{
    (void)state;
    enum { BACKLOG = 300000 };
    shoal_queue *queue = make_queue(0);
    put_number(queue, 0);
    let_die(die_writing, queue);
    for (uint64_t i = 1; i < BACKLOG; i++)
        put_number(queue, i);
    for (uint64_t i = 0; i < BACKLOG; i++)
        assert_int_equal(get_number(queue), i);
    assert_int_equal(shoal_queue_count(queue), 0);
    shoal_queue_close(queue);
}

static int stop_writing(void *context)
{
    shoal_queue *queue = context;
    uint64_t tail = atomic_load(&queue->header->tail);
    struct queue_slot *slot = claim(queue, tail, QSLOT_FREE, QSLOT_WRITING);
    atomic_store(&queue->header->tail, tail + 1);
    pause();
    CHECK(slot == NULL);
    return 0;
}

static void a_backlog_behind_items_whose_producers_are_stopped_is_taken_at_the_usual_pace(void **state)
{
    (void)state;
    enum { BACKLOG = 300000, STOPPED = 3 };
    shoal_queue *queue = make_queue(0);
    pid_t stopped[STOPPED];
    uint64_t put = 0;
    for (int i = 0; i < STOPPED; i++) {
        put_number(queue, put++);
        const uint64_t tail = atomic_load(&queue->header->tail);
        stopped[i] = start_child("a process that writes an item for ever", stop_writing, queue);
        while (atomic_load(&queue->header->tail) == tail)
            usleep(1000);
    }
    while (put < BACKLOG)
        put_number(queue, put++);
    for (uint64_t i = 0; i < BACKLOG; i++)
        assert_int_equal(get_number(queue), i);
    for (int i = 0; i < STOPPED; i++)
        kill_and_reap(stopped[i]);
    put_number(queue, BACKLOG);
    assert_int_equal(get_number(queue), BACKLOG);
    for (int i = 0; i < 100 && shoal_queue_count(queue) > 0; i++) {
        uint64_t number;
        size_t size;
        assert_int_equal(shoal_queue_get(queue, &number, 8, 5 * SHOAL_MILLISECOND, &size), -ETIMEDOUT);
    }
    assert_int_equal(shoal_queue_count(queue), 0);
    shoal_queue_close(queue);
}

static void a_producers_items_keep_their_order_though_one_is_finished_late(void **state)
{
    (void)state;
    shoal_queue *queue = make_queue(0);
    uint32_t self;
    /* A slot in this process's hands that is filled only when hundreds of others' were taken behind it. */
    uint64_t late = atomic_load(&queue->header->tail), number = 7777;
    assert_int_equal(participant_self(queue, &self), 0);
    struct queue_slot *slot = claim(queue, late, QSLOT_FREE, QSLOT_WRITING);
    atomic_store(&queue->header->tail, late + 1);
    for (uint64_t i = 0; i < 2000; i++)
        put_number(queue, i);
    for (uint64_t i = 0; i < 1500; i++)
        assert_int_equal(get_number(queue), i);
    slot->size = sizeof number;
    memcpy(slot->bytes, &number, sizeof number);
    atomic_store(&slot->state, qslot_word(late, 0, QSLOT_FULL));
    put_number(queue, number + 1); /* the same producer's next */
    assert_int_equal(get_number(queue), number);
    for (uint64_t i = 1500; i < 2000; i++)
        assert_int_equal(get_number(queue), i);
    assert_int_equal(get_number(queue), number + 1);
    shoal_queue_close(queue);
}

/* ------------------------------------------------------------------ what they leave ---- */

static int die_owning_memory(void *context)
{
    shoal_queue *queue = context;
    uint32_t owner;
    shoal_block block;
    CHECK(shoal_queue_owner(queue, &owner) == 0);
    while (shoal_heap_allocate(shoal_queue_heap(queue), 8 * MEGABYTE, owner, &block) == 0) {
    }
    die();
}

static void memory_that_a_dead_process_held_is_found_when_it_is_needed(void **state)
{
    (void)state;
    shoal_queue *queue = make_queue(0);
    uint8_t *data = calloc(1, MEGABYTE);
    let_die(die_owning_memory, queue);
    assert_true(count_blocks(queue).used > 200 * MEGABYTE);
    for (int i = 0; i < 100; i++)
        assert_int_equal(shoal_queue_put(queue, data, MEGABYTE, 0), 0);
    free(data);
    shoal_queue_close(queue);
}

/* A producer that dies after it gave the item's memory to the queue, before the item is there. */
static int die_after_giving(void *context)
{
    shoal_queue *queue = context;
    uint64_t tail = atomic_load(&queue->header->tail);
    shoal_heap *heap = shoal_queue_heap(queue);
    struct queue_slot *slot = claim(queue, tail, QSLOT_FREE, QSLOT_WRITING);
    atomic_store(&queue->header->tail, tail + 1);
    shoal_block blocks[2];
    CHECK(shoal_heap_allocate(heap, MEGABYTE, 0, &blocks[0]) == 0);
    CHECK(shoal_heap_allocate(heap, 100, 0, &blocks[1]) == 0);
    slot->size = 40000;
    slot->form = 1;
    slot->block = blocks[0];
    memcpy((uint8_t *)shoal_heap_pointer(heap, blocks[0], NULL) + 40000, &blocks[1], sizeof blocks[1]);
    die();
}

/* A consumer that dies while it reads an item, at two instants: nothing of its memory is taken over, or all of it. */
static int die_after_taking(void *context)
{
    shoal_queue *queue = context;
    uint32_t owner;
    struct queue_slot *slot = claim(queue, atomic_load(&queue->header->head), QSLOT_FULL, QSLOT_READING);
    CHECK(shoal_queue_owner(queue, &owner) == 0);
    CHECK(shoal_heap_give(shoal_queue_heap(queue), slot->block, 0, owner) == 0);
    die();
}

static void memory_of_an_item_that_never_was_is_freed(void **state)
{
    (void)state;
    shoal_queue *queue = make_queue(0);
    let_die(die_after_giving, queue);
    put_number(queue, 3);
    assert_int_equal(get_number(queue), 3);
    for (int i = 0; i < 100 && shoal_queue_count(queue) > 0; i++) {
        uint64_t number;
        size_t size;
        assert_int_equal(shoal_queue_get(queue, &number, 8, 5 * SHOAL_MILLISECOND, &size), -ETIMEDOUT);
    }
    assert_int_equal(shoal_queue_count(queue), 0);
    assert_int_equal(count_blocks(queue).blocks, 0);
    shoal_queue_close(queue);
}

static void an_items_memory_survives_a_consumer_that_had_begun_to_take_it_over(void **state)
{
    (void)state;
    shoal_queue *queue = make_queue(0);
    uint8_t *data = malloc(MEGABYTE);
    memset(data, 0x3c, MEGABYTE);
    assert_int_equal(shoal_queue_put(queue, data, MEGABYTE, 0), 0);
    let_die(die_after_taking, queue);
    put_number(queue, 1);
    assert_int_equal(get_number(queue), 1);
    participants_sweep(queue);
    shoal_received received;
    uint32_t self, owner = 0;
    assert_int_equal(shoal_queue_get_item(queue, SHOAL_SECOND, &received), 0);
    participants_sweep(queue);
    assert_int_equal(shoal_queue_owner(queue, &self), 0);
    assert_int_equal(shoal_heap_owner(shoal_queue_heap(queue), received.block, &owner), 0);
    assert_int_equal(owner, self);
    assert_int_equal(received.item.size, MEGABYTE);
    assert_memory_equal(received.item.data, data, MEGABYTE);
    shoal_queue_release(queue, &received);
    assert_int_equal(count_blocks(queue).blocks, 0);
    free(data);
    shoal_queue_close(queue);
}

static void the_places_of_the_dead_are_given_to_the_living(void **state)
{
    (void)state;
    shoal_queue *queue = make_queue(0);
    shoal_block block;
    for (uint32_t i = 0; i < PARTICIPANTS; i++) {
        /* processes that cannot be: pids are below 2^22, and none of them started at this time */
        atomic_store(&queue->participants[i].identity, (uint64_t)(i % 1000 + 2) << 42 | 0x3ffffffffffu);
        if (i % 100 == 0)
            assert_int_equal(shoal_heap_allocate(shoal_queue_heap(queue), 5000, i + 1, &block), 0);
    }
    put_number(queue, 1);
    assert_int_equal(get_number(queue), 1);
    assert_int_equal(count_blocks(queue).blocks, 0);
    shoal_queue_close(queue);
}

struct newcomers {
    shoal_queue *queue;
    pthread_barrier_t barrier;
};

/* Whether it is the same user of the queue after all have come as when it came. */
static void *come(void *context)
{
    struct newcomers *newcomers = context;
    uint32_t first, then;
    pthread_barrier_wait(&newcomers->barrier);
    CHECK(shoal_queue_owner(newcomers->queue, &first) == 0);
    pthread_barrier_wait(&newcomers->barrier);
    CHECK(shoal_queue_owner(newcomers->queue, &then) == 0);
    CHECK(first == then);
    return NULL;
}

static int come_with_two_threads(void *context)
{
    enum { TAKEN = 1500 };
    shoal_queue *queue = context;
    struct newcomers newcomers = {.queue = queue};
    pthread_t threads[2];
    CHECK(pthread_barrier_init(&newcomers.barrier, NULL, 3) == 0);
    const uint64_t other = atomic_load(&queue->participants[0].identity);
    for (uint32_t i = 0; i < PARTICIPANTS; i++)
        atomic_store(&queue->participants[i].identity, i < TAKEN ? other : 0);
    for (int i = 0; i < 2; i++)
        CHECK(pthread_create(&threads[i], NULL, come, &newcomers) == 0);
    pthread_barrier_wait(&newcomers.barrier);
    for (uint32_t i = 1; i < TAKEN; i += 7) /* as a sweep of the dead does */
        atomic_store(&queue->participants[i * 131 % TAKEN].identity, 0);
    pthread_barrier_wait(&newcomers.barrier);
    for (int i = 0; i < 2; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    return 0;
}

static void threads_that_come_while_places_are_vacated_are_one_user(void **state)
{
    (void)state;
    shoal_queue *queue = make_queue(0);
    put_number(queue, 1);
    const int64_t end = shoal_clock_now() + 4 * SHOAL_SECOND;
    for (int round = 0; round < 3000 && shoal_clock_now() < end; round++)
        child_ends_well(start_child("threads that come to a queue", come_with_two_threads, queue));
    shoal_queue_close(queue);
}

static int find_no_place(void *context)
{
    shoal_queue *queue = context;
    uint64_t number = 1;
    size_t size;
    CHECK(shoal_queue_put(queue, &number, 8, 0) == -EUSERS);
    CHECK(shoal_queue_get(queue, &number, 8, 0, &size) == -EUSERS);
    return 0;
}

static void a_process_too_many_is_told_so(void **state)
{
    (void)state;
    shoal_queue *queue = make_queue(0);
    put_number(queue, 1);
    uint64_t self = atomic_load(&queue->participants[0].identity);
    for (uint32_t i = 0; i < PARTICIPANTS; i++)
        atomic_store(&queue->participants[i].identity, self); /* who lives */
    child_ends_well(start_child("a process for which there is no place", find_no_place, queue));
    assert_int_equal(get_number(queue), 1);
    shoal_queue_close(queue);
}

/* --------------------------------------------------------------------- rubbish ---- */

enum { WRONG_SIZE, WRONG_BLOCKS, WRONG_BLOCK, WRONG_REST, WRONG_KINDS };

static void an_overwritten_item_is_told_of_and_the_queue_goes_on(void **state)
{
    (void)state;
    static const uint8_t data[5000];
    for (int kind = 0; kind < WRONG_KINDS * 4; kind++) {
        shoal_queue *queue = make_queue(0);
        size_t size = kind / WRONG_KINDS % 2 == 0 ? 50 : 5000;
        put_number(queue, 1);
        assert_int_equal(shoal_queue_put(queue, data, size, 0), 0);
        put_number(queue, 3);
        struct queue_slot *slot = slot_find(queue, atomic_load(&queue->header->head) + 1);
        assert_non_null(slot);
        if (kind % WRONG_KINDS == WRONG_SIZE)
            slot->size = UINT32_MAX;
        else if (kind % WRONG_KINDS == WRONG_BLOCKS)
            slot->form = UINT32_MAX;
        else if (kind % WRONG_KINDS == WRONG_REST)
            slot->size = 5200; /* more than there is room for, by a little */
        else
            slot->block = 0x123456789abcdc0;
        assert_int_equal(get_number(queue), 1);
        if (kind / WRONG_KINDS / 2 == 0) {
            uint8_t buffer[6000];
            assert_int_equal(shoal_queue_get(queue, buffer, sizeof buffer, 0, &size), -EBADMSG);
        } else {
            shoal_received received;
            assert_int_equal(shoal_queue_get_item(queue, 0, &received), -EBADMSG);
        }
        assert_int_equal(get_number(queue), 3);
        assert_int_equal(shoal_queue_count(queue), 0);
        if (kind % WRONG_KINDS != WRONG_BLOCK)
            assert_int_equal(count_blocks(queue).blocks, 0);
        shoal_queue_close(queue);
    }
}

/* ---------------------------------------------------------------------- crowds ---- */

#define CROWD 3
#define EACH UINT64_C(20000)
#define STOP UINT64_MAX

struct crowd {
    shoal_queue *queue;
    _Atomic uint32_t next;               /* numbers for those who join */
    _Atomic uint8_t taken[CROWD * EACH]; /* how often each item was taken */
};

/* Of all sizes, but mostly small. */
static size_t size_of_item(uint64_t number)
{
    return number % 50 == 0 ? 16 + number % 30000 : 16 + number % 200;
}

static void produce(struct crowd *crowd)
{
    uint64_t *data = calloc(1, 40000), producer = atomic_fetch_add(&crowd->next, 1);
    for (uint64_t i = 0; i < EACH; i++) {
        data[0] = data[1] = producer * EACH + i;
        size_t size = size_of_item(data[0]);
        memcpy((uint8_t *)data + size - 8, data, 8);
        CHECK(shoal_queue_put(crowd->queue, data, size, SHOAL_FOREVER) == 0);
        memset((uint8_t *)data + size - 8, 0, 8);
    }
    free(data);
}

static void consume(struct crowd *crowd)
{
    uint64_t *data = calloc(1, 40000), expected[CROWD] = {0};
    for (;;) {
        size_t size;
        CHECK(shoal_queue_get(crowd->queue, data, 40000, SHOAL_FOREVER, &size) == 0);
        if (data[0] == STOP)
            break;
        uint64_t number = data[0];
        CHECK(number < CROWD * EACH && size == size_of_item(number));
        CHECK(memcmp((uint8_t *)data + size - 8, &number, 8) == 0);
        CHECK(number % EACH >= expected[number / EACH]); /* items of one producer in its order */
        expected[number / EACH] = number % EACH + 1;
        atomic_fetch_add(&crowd->taken[number], 1);
    }
    free(data);
}

static int produce_in_process(void *crowd)
{
    produce(crowd);
    return 0;
}

static int consume_in_process(void *crowd)
{
    consume(crowd);
    return 0;
}

static void *produce_in_thread(void *crowd)
{
    produce(crowd);
    return NULL;
}

static void *consume_in_thread(void *crowd)
{
    consume(crowd);
    return NULL;
}

static void stop_consumers(const struct crowd *crowd)
{
    for (int i = 0; i < CROWD; i++) {
        uint64_t stop[2] = {STOP, STOP};
        assert_int_equal(shoal_queue_put(crowd->queue, stop, sizeof stop, SHOAL_FOREVER), 0);
    }
}

static void each_item_was_taken_once(struct crowd *crowd)
{
    for (uint64_t i = 0; i < CROWD * EACH; i++)
        assert_int_equal(crowd->taken[i], 1);
    assert_int_equal(shoal_queue_count(crowd->queue), 0);
    assert_int_equal(count_blocks(crowd->queue).blocks, 0);
    shoal_queue_close(crowd->queue);
    munmap(crowd, sizeof *crowd);
}

static void many_processes_put_and_get_and_each_item_is_taken_once(void **state)
{
    (void)state;
    const uint64_t capacities[] = {0, 10};
    for (int round = 0; round < 2; round++) {
        struct crowd *crowd = shared_memory(sizeof *crowd);
        crowd->queue = make_queue(capacities[round]);
        pid_t consumers[CROWD], producers[CROWD];
        for (int i = 0; i < CROWD; i++) {
            consumers[i] = start_child("a consumer", consume_in_process, crowd);
            producers[i] = start_child("a producer", produce_in_process, crowd);
        }
        for (int i = 0; i < CROWD; i++)
            child_ends_well(producers[i]);
        stop_consumers(crowd);
        for (int i = 0; i < CROWD; i++)
            child_ends_well(consumers[i]);
        each_item_was_taken_once(crowd);
    }
}

static void many_threads_put_and_get_and_each_item_is_taken_once(void **state)
{
    (void)state;
    const uint64_t capacities[] = {0, 10};
    for (int round = 0; round < 2; round++) {
        struct crowd *crowd = shared_memory(sizeof *crowd);
        crowd->queue = make_queue(capacities[round]);
        pthread_t consumers[CROWD], producers[CROWD];
        for (int i = 0; i < CROWD; i++) {
            assert_int_equal(pthread_create(&consumers[i], NULL, consume_in_thread, crowd), 0);
            assert_int_equal(pthread_create(&producers[i], NULL, produce_in_thread, crowd), 0);
        }
        for (int i = 0; i < CROWD; i++)
            pthread_join(producers[i], NULL);
        stop_consumers(crowd);
        for (int i = 0; i < CROWD; i++)
            pthread_join(consumers[i], NULL);
        each_item_was_taken_once(crowd);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(a_full_queue_gets_its_room_back_from_a_consumer_that_died_as_it_finished, start_clock),
        cmocka_unit_test_setup(an_item_that_a_dead_consumer_was_reading_goes_to_another, start_clock),
        cmocka_unit_test_setup(an_item_whose_producer_died_half_way_is_skipped, start_clock),
        cmocka_unit_test_setup(a_full_queue_gets_its_room_back_from_a_producer_that_died, start_clock),
        cmocka_unit_test_setup(what_was_put_is_there_though_its_producer_was_killed_at_once, start_clock),
        cmocka_unit_test_setup(a_backlog_behind_an_item_that_is_being_read_is_taken_at_the_usual_pace, start_clock),
        cmocka_unit_test_setup(a_backlog_behind_an_item_whose_producer_died_is_taken_at_the_usual_pace, start_clock),
        cmocka_unit_test_setup(a_backlog_behind_items_whose_producers_are_stopped_is_taken_at_the_usual_pace,
                               start_clock),
        cmocka_unit_test_setup(a_producers_items_keep_their_order_though_one_is_finished_late, start_clock),
        cmocka_unit_test_setup(memory_that_a_dead_process_held_is_found_when_it_is_needed, start_clock),
        cmocka_unit_test_setup(memory_of_an_item_that_never_was_is_freed, start_clock),
        cmocka_unit_test_setup(an_items_memory_survives_a_consumer_that_had_begun_to_take_it_over, start_clock),
        cmocka_unit_test_setup(the_places_of_the_dead_are_given_to_the_living, start_clock),
        cmocka_unit_test_setup(threads_that_come_while_places_are_vacated_are_one_user, start_clock),
        cmocka_unit_test_setup(a_process_too_many_is_told_so, start_clock),
        cmocka_unit_test_setup(an_overwritten_item_is_told_of_and_the_queue_goes_on, start_clock),
        cmocka_unit_test_setup(many_processes_put_and_get_and_each_item_is_taken_once, start_clock),
        cmocka_unit_test_setup(many_threads_put_and_get_and_each_item_is_taken_once, start_clock),
    };
    return cmocka_run_group_tests_name("queue deaths", tests, NULL, NULL);
}
