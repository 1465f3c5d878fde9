/* test_queue_faults.c: producers and consumers are killed at random instants. A ledger that they share tells which puts
 * have returned and how often each item was taken, and a consumer's record what it was taking when it was killed; so
 * that in the end each item is accounted for:
 *
 *   an item whose put returned was taken once, or its taker was killed after the queue had handed it out;
 *   an item whose producer was killed in the put was taken once or not at all;
 *   no item was taken twice, or with other contents than were put.
 */
#include "campaign.h"

#include "queue/queue.h"

#define PLACES 3 /* of producers, and of consumers */
#define KILLS 40 /* a round */
#define INSTANCES (PLACES + KILLS)
#define MOST_ITEMS 6000u
#define LARGEST ((size_t)120000)
#define NOT_TAKEN SIZE_MAX

struct ledger {
    shoal_queue *queue;
    bool with_blocks;
    _Atomic int stop;
    _Atomic uint32_t completed[INSTANCES]; /* of each producer that there ever was: puts that returned */
    _Atomic uint8_t taken[INSTANCES][MOST_ITEMS];
    struct consumer {
        volatile size_t size; /* set by the queue once the item's contents are in `bytes`, before it is handed out */
        uint8_t bytes[LARGEST];
    } consumers[PLACES];
};

struct item_head {
    uint32_t producer, number;
    uint64_t size;
};

struct role {
    struct ledger *ledger;
    uint32_t index; /* a producer's number; a consumer's place */
    uint64_t seed;
};

static size_t random_size(void)
{
    switch (random_below(12)) {
    case 0:
        return sizeof(struct item_head) + random_below(LARGEST - sizeof(struct item_head));
    case 1:
    case 2:
        return sizeof(struct item_head) + random_below(3000);
    default:
        return sizeof(struct item_head) + random_below(120);
    }
}

static uint8_t byte_of(const struct item_head *head, size_t at)
{
    return (uint8_t)(head->producer * 31 + head->number * 7 + at / 64);
}

/* -- producers -- */

static void put_with_blocks(shoal_queue *queue, const uint8_t *data, size_t size, uint32_t count)
{
    shoal_block blocks[16];
    uint32_t self;
    CHECK(shoal_queue_owner(queue, &self) == 0);
    for (uint32_t i = 0; i < count; i++) {
        CHECK(shoal_heap_allocate(shoal_queue_heap(queue), i % 2 == 0 ? 100 : 70000, self, &blocks[i]) == 0);
        memcpy(shoal_heap_pointer(shoal_queue_heap(queue), blocks[i], NULL), data, sizeof(struct item_head));
    }
    const shoal_item item = {.data = data, .size = size, .blocks = blocks, .block_count = count};
    int error;
    while ((error = shoal_queue_put_item(queue, &item, SHOAL_SECOND)) == -ETIMEDOUT) {
    }
    CHECK(error == 0);
}

static int produce(void *context)
{
    const struct role *role = context;
    struct ledger *ledger = role->ledger;
    static uint8_t data[LARGEST];
    seed_with(role->seed);
    for (uint32_t i = 0; i < MOST_ITEMS && atomic_load(&ledger->stop) == 0; i++) {
        const struct item_head head = {.producer = role->index, .number = i, .size = random_size()};
        memcpy(data, &head, sizeof head);
        for (size_t j = sizeof head; j < head.size; j++)
            data[j] = byte_of(&head, j);
        put_with_blocks(ledger->queue, data, head.size, ledger->with_blocks ? (uint32_t)random_below(16) : 0);
        atomic_store(&ledger->completed[role->index], i + 1);
    }
    return 0;
}

/* -- consumers -- */

static void enter(struct ledger *ledger, const uint8_t *data, size_t size)
{
    struct item_head head;
    CHECK(size >= sizeof head);
    memcpy(&head, data, sizeof head);
    CHECK(head.producer < INSTANCES && head.number < MOST_ITEMS && head.size == size);
    for (size_t i = sizeof head; i < size; i++)
        CHECK(data[i] == byte_of(&head, i));
    CHECK(atomic_fetch_add(&ledger->taken[head.producer][head.number], 1) == 0);
}

static int get_with_blocks(struct ledger *ledger, int64_t timeout)
{
    shoal_queue *queue = ledger->queue;
    shoal_received received;
    int error = shoal_queue_get_item(queue, timeout, &received);
    if (error != 0)
        return error;
    enter(ledger, received.item.data, received.item.size);
    uint32_t self, owner = 0;
    CHECK(shoal_queue_owner(queue, &self) == 0);
    for (uint32_t i = 0; i < received.item.block_count; i++) {
        shoal_block block = received.item.blocks[i];
        const uint8_t *at = shoal_heap_pointer(shoal_queue_heap(queue), block, NULL);
        CHECK(at != NULL && memcmp(at, received.item.data, sizeof(struct item_head)) == 0);
        CHECK(shoal_heap_owner(shoal_queue_heap(queue), block, &owner) == 0 && owner == self);
    }
    for (uint32_t i = 0; i < received.item.block_count; i++)
        CHECK(shoal_heap_free(shoal_queue_heap(queue), received.item.blocks[i]) == 0);
    shoal_queue_release(queue, &received);
    return 0;
}

static int get_without_blocks(struct ledger *ledger, struct consumer *record, int64_t timeout)
{
    record->size = NOT_TAKEN;
    int error = shoal_queue_get(ledger->queue, record->bytes, LARGEST, timeout, (size_t *)&record->size);
    if (error == 0)
        enter(ledger, record->bytes, record->size);
    return error;
}

static int consume(void *context)
{
    const struct role *role = context;
    struct ledger *ledger = role->ledger;
    seed_with(role->seed);
    for (;;) {
        /* Now and then without waiting at all. */
        int64_t timeout = random_below(4) == 0 ? 0 : 20 * SHOAL_MILLISECOND;
        int error = ledger->with_blocks ? get_with_blocks(ledger, timeout)
                                        : get_without_blocks(ledger, &ledger->consumers[role->index], timeout);
        CHECK(error == 0 || error == -ETIMEDOUT);
        if (error != 0 && atomic_load(&ledger->stop) == 2)
            return 0;
    }
}

/* -- the campaign -- */

struct tally {
    uint64_t put, lost, half_put, kills;
};

struct round {
    struct ledger *ledger;
    pid_t producers[PLACES], consumers[PLACES];
    uint32_t started; /* producers so far */
    /* what each killed consumer had been given last, perhaps */
    struct item_head given[KILLS];
    size_t given_count, consumers_killed;
};

static void start_producer(struct round *round, size_t place)
{
    static struct role role;
    role = (struct role){round->ledger, round->started++, random_bits()};
    round->producers[place] = start_child("a producer", produce, &role);
}

static void start_consumer(struct round *round, size_t place)
{
    static struct role role;
    role = (struct role){round->ledger, (uint32_t)place, random_bits()};
    round->ledger->consumers[place].size = NOT_TAKEN;
    round->consumers[place] = start_child("a consumer", consume, &role);
}

/* A process that has come to its end by itself is no failure; one whose checks failed is. */
static void kill_one(pid_t pid)
{
    int status = 0;
    assert_int_equal(kill(pid, SIGKILL), 0);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(status == 0 || (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL));
}

static void kill_some(struct round *round)
{
    struct ledger *ledger = round->ledger;
    for (int i = 0; i < KILLS; i++) {
        size_t place = random_below(PLACES);
        sleep_for((int64_t)random_below(3000) * SHOAL_MICROSECOND);
        if (random_below(2) == 0) {
            kill_one(round->producers[place]);
            start_producer(round, place);
            continue;
        }
        kill_one(round->consumers[place]);
        round->consumers_killed++;
        if (!ledger->with_blocks && ledger->consumers[place].size != NOT_TAKEN)
            memcpy(&round->given[round->given_count++], ledger->consumers[place].bytes, sizeof round->given[0]);
        start_consumer(round, place);
    }
}

static bool was_given(const struct round *round, uint32_t producer, uint32_t number)
{
    for (size_t i = 0; i < round->given_count; i++) {
        if (round->given[i].producer == producer && round->given[i].number == number)
            return true;
    }
    return false;
}

static void settle_accounts(const struct round *round, struct tally *tally)
{
    const struct ledger *ledger = round->ledger;
    uint64_t lost = 0;
    for (uint32_t producer = 0; producer < round->started; producer++) {
        uint32_t completed = ledger->completed[producer];
        for (uint32_t i = 0; i < MOST_ITEMS; i++) {
            uint8_t taken = ledger->taken[producer][i];
            assert_true(taken <= 1);
            assert_true(i <= completed || taken == 0);
            if (i == completed)
                tally->half_put += taken;
            if (i >= completed || taken == 1)
                continue;
            lost++;
            if (!ledger->with_blocks)
                assert_true(was_given(round, producer, i));
        }
        tally->put += completed;
    }
    assert_true(lost <= round->consumers_killed);
    tally->lost += lost;
    tally->kills += KILLS;
}

static void run_round(uint64_t capacity, bool with_blocks, struct tally *tally)
{
    const shoal_queue_options options = {.capacity = capacity};
    struct ledger *ledger = shared_memory(sizeof *ledger);
    struct round round = {.ledger = ledger};
    ledger->with_blocks = with_blocks;
    assert_int_equal(shoal_queue_create(&options, &ledger->queue), 0);
    for (size_t i = 0; i < PLACES; i++) {
        start_producer(&round, i);
        start_consumer(&round, i);
    }
    kill_some(&round);
    atomic_store(&ledger->stop, 1);
    doing = "waiting for the producers to end";
    for (size_t i = 0; i < PLACES; i++)
        child_ends_well(round.producers[i]);
    atomic_store(&ledger->stop, 2);
    doing = "waiting for the consumers to end";
    for (size_t i = 0; i < PLACES; i++)
        child_ends_well(round.consumers[i]);
    doing = "looking at what is left";
    shoal_received none;
    assert_int_equal(shoal_queue_get_item(ledger->queue, 50 * SHOAL_MILLISECOND, &none), -ETIMEDOUT);
    assert_int_equal(shoal_queue_count(ledger->queue), 0);
    settle_accounts(&round, tally);
    /* Nor is any memory left, once what the dead owned is swept. */
    struct shoal_heap_numbers numbers;
    participants_sweep(ledger->queue);
    assert_int_equal(shoal_heap_count(shoal_queue_heap(ledger->queue), &numbers), 0);
    assert_int_equal(numbers.blocks, 0);
    shoal_queue_close(ledger->queue);
    munmap(ledger, sizeof *ledger);
}

static void no_item_is_lost_or_doubled_when_producers_and_consumers_are_killed(void **state)
{
    (void)state;
    seed_random();
    const int rounds = campaign_rounds(24);
    const uint64_t capacities[] = {0, 1, 30};
    struct tally tally = {0};
    for (int round = 0; round < rounds; round++)
        run_round(capacities[round % 3], round % 2 == 1, &tally);
    printf("             %d rounds, %llu kills, %llu items put, %llu lost with who had taken them, %llu there though "
           "their "
           "put had not returned\n",
           rounds, (unsigned long long)tally.kills, (unsigned long long)tally.put, (unsigned long long)tally.lost,
           (unsigned long long)tally.half_put);
    no_child_is_left();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(no_item_is_lost_or_doubled_when_producers_and_consumers_are_killed, start_clock),
    };
    return cmocka_run_group_tests_name("queue faults", tests, NULL, NULL);
}
