/* test_pool_faults.c: a pool's workers are killed at random instants while shoal_pool_map runs; and its owner is. */
#include "campaign.h"

#include <pthread.h>

#include "pool/pool.h"

#define WORKERS 4
#define COUNT 3000
#define LARGE 20000 /* bytes of a large result: in the heap, not in the slot */

struct result {
    int64_t number;
    uint8_t bytes[LARGE];
};

/* Takes up to some 100 us, and fills all of its output. */
static int compute(const void *input, size_t input_size, void *output, size_t output_size, void *context)
{
    (void)context;
    CHECK(input_size == sizeof(int64_t) && output_size >= sizeof(int64_t));
    int64_t number;
    memcpy(&number, input, sizeof number);
    int64_t end = shoal_clock_now() + number % 7 * 10 * SHOAL_MICROSECOND;
    while (number % 5 == 0 && shoal_clock_now() < end) {
    }
    memset(output, (int)(number & 0xff), output_size);
    number *= number;
    memcpy(output, &number, sizeof number);
    return number % 11 == 1 ? -2000 : 0; /* an item's own failure is told apart from its worker's death */
}

struct killer {
    shoal_pool *pool;
    uint64_t seed;
    _Atomic bool stop;
    uint64_t kills;
};

static void *kill_workers(void *context)
{
    struct killer *killer = context;
    seed_with(killer->seed);
    while (!atomic_load(&killer->stop)) {
        shoal_worker_numbers worker;
        sleep_for((int64_t)random_below(4000) * SHOAL_MICROSECOND);
        if (shoal_pool_worker_numbers(killer->pool, (uint32_t)random_below(WORKERS), &worker) == 0)
            killer->kills += kill_child(worker.pid);
    }
    return NULL;
}

/* One map, whose items are all checked. Returns how many died with their worker. */
static size_t map_once(shoal_pool *pool, size_t output_size, uint32_t chunk, uint32_t retries)
{
    const size_t count = output_size > 100 ? COUNT / 5 : COUNT;
    int64_t *inputs = calloc(count, sizeof *inputs);
    uint8_t *outputs = calloc(count, output_size);
    int *codes = calloc(count, sizeof *codes);
    size_t died = 0;
    for (size_t i = 0; i < count; i++) {
        inputs[i] = (int64_t)i;
        codes[i] = 1;
    }
    const shoal_map_options options = {.chunk = chunk, .retries = retries, .codes = codes};
    int error = shoal_pool_map(pool, compute, inputs, sizeof *inputs, outputs, output_size, count, &options), first = 0;
    for (size_t i = 0; i < count; i++) {
        int64_t square = (int64_t)(i * i), found;
        if (first == 0)
            first = codes[i];
        if (codes[i] == SHOAL_EWORKERDIED) {
            died++;
            continue;
        }
        assert_int_equal(codes[i], square % 11 == 1 ? -2000 : 0);
        memcpy(&found, outputs + i * output_size, sizeof found);
        assert_int_equal(found, square);
        for (size_t j = sizeof found; j < output_size; j++)
            assert_int_equal(outputs[i * output_size + j], i & 0xff);
    }
    assert_int_equal(error, first);
    free(inputs);
    free(outputs);
    free(codes);
    return died;
}

static void each_item_is_right_or_told_dead_and_with_retries_all_are_right(void **state)
{
    (void)state;
    seed_random();
    const int rounds = campaign_rounds(30);
    const uint32_t chunks[] = {0, 1, 9};
    const int descriptors = open_descriptors();
    size_t died = 0;
    struct killer killer = {.seed = random_bits()};
    struct shoal_heap_numbers numbers;
    pthread_t thread;
    assert_int_equal(shoal_pool_start(&(shoal_start_options){.workers = WORKERS}, &killer.pool), 0);
    assert_int_equal(pthread_create(&thread, NULL, kill_workers, &killer), 0);
    for (int round = 0; round < rounds; round++) {
        const size_t output_size = round % 4 == 3 ? sizeof(struct result) : round % 4 == 2 ? 100 : sizeof(int64_t);
        died += map_once(killer.pool, output_size, chunks[round % 3], 0);
        assert_int_equal(map_once(killer.pool, output_size, chunks[round % 3], 1000), 0);
    }
    atomic_store(&killer.stop, true);
    pthread_join(thread, NULL);
    printf("             %d rounds, %llu kills, %zu items died with their worker\n", rounds,
           (unsigned long long)killer.kills, died);
    assert_true(died <= killer.kills); /* each death takes one item at the most */
    assert_int_equal(map_once(killer.pool, sizeof(struct result), 0, 10), 0); /* and it goes on */
    assert_int_equal(shoal_heap_count(shoal_pool_heap(killer.pool), &numbers), 0);
    assert_int_equal(numbers.blocks, 0);
    shoal_pool_stop(killer.pool, 0);
    assert_int_equal(waitpid(-1, NULL, WNOHANG), -1); /* no child, not even a zombie */
    assert_int_equal(open_descriptors(), descriptors);
}

static void a_pool_may_be_stopped_while_its_workers_are_killed(void **state)
{
    (void)state;
    seed_random();
    const int rounds = campaign_rounds(40), descriptors = open_descriptors();
    uint64_t kills = 0;
    for (int round = 0; round < rounds; round++) {
        shoal_pool *pool;
        shoal_worker_numbers worker;
        assert_int_equal(shoal_pool_start(&(shoal_start_options){.workers = WORKERS}, &pool), 0);
        if (round % 2 == 0)
            (void)map_once(pool, sizeof(int64_t), 1, 0);
        for (uint64_t i = random_below(WORKERS + 1); i > 0; i--) {
            assert_int_equal(shoal_pool_worker_numbers(pool, (uint32_t)i - 1, &worker), 0);
            kills += kill_child(worker.pid);
            sleep_for((int64_t)random_below(300) * SHOAL_MICROSECOND);
        }
        doing = "stopping a pool whose workers were killed";
        shoal_pool_stop(pool, round % 3 == 0);
        assert_int_equal(waitpid(-1, NULL, WNOHANG), -1);
        assert_int_equal(open_descriptors(), descriptors);
    }
    printf("             %d rounds, %llu kills\n", rounds, (unsigned long long)kills);
}

static void a_stop_reaches_sleepers_whose_wake_was_lost_with_a_worker_that_died(void **state)
{
    (void)state;
    for (int kill = 0; kill < 2; kill++) {
        shoal_pool *pool;
        assert_int_equal(shoal_pool_start(&(shoal_start_options){.workers = WORKERS}, &pool), 0);
        (void)map_once(pool, sizeof(int64_t), 1, 0);
        while (atomic_load(&pool->table.header->awake) > 0)
            sleep_for(SHOAL_MILLISECOND);
        sleep_for(20 * SHOAL_MILLISECOND); /* on their way to sleep, until they sleep */
        /* What a worker leaves that was woken and killed before it looked: bit 0 says whether anybody sleeps. */
        atomic_fetch_and(&pool->table.header->work.word, ~1u);
        doing = "stopping a pool whose workers sleep unnoticed";
        shoal_pool_stop(pool, kill);
    }
    no_child_is_left();
}

/* -- the owner's death -- */

struct owner {
    _Atomic int ready;
    _Atomic int32_t pids[WORKERS];
};

static int own_a_pool(void *context)
{
    struct owner *owner = context;
    shoal_pool *pool;
    CHECK(shoal_pool_start(&(shoal_start_options){.workers = WORKERS}, &pool) == 0);
    for (uint32_t i = 0; i < WORKERS; i++) {
        shoal_worker_numbers worker = {0};
        while (worker.pid == 0) {
            CHECK(shoal_pool_worker_numbers(pool, i, &worker) == 0);
            sleep_for(100 * SHOAL_MICROSECOND);
        }
        atomic_store(&owner->pids[i], worker.pid);
    }
    atomic_store(&owner->ready, 1);
    for (;;) {
        (void)map_once(pool, sizeof(struct result), 1, 0);
        sleep_for((int64_t)random_below(2000) * SHOAL_MICROSECOND); /* its workers are asleep then */
    }
}

static void a_killed_owners_workers_are_gone_within_a_second(void **state)
{
    (void)state;
    seed_random();
    const int rounds = campaign_rounds(20);
    int64_t longest = 0;
    /* What the owner leaves behind becomes this process's, which so learns of its end. */
    assert_int_equal(prctl(PR_SET_CHILD_SUBREAPER, 1), 0);
    struct owner *owner = shared_memory(sizeof *owner);
    for (int round = 0; round < rounds; round++) {
        atomic_store(&owner->ready, 0);
        (void)random_bits();
        pid_t pid = start_child("the owner of a pool", own_a_pool, owner);
        /* Now and then while it is still starting them. */
        bool early = random_below(4) == 0;
        while (!early && atomic_load(&owner->ready) == 0)
            sleep_for(100 * SHOAL_MICROSECOND);
        sleep_for((int64_t)random_below(10000) * SHOAL_MICROSECOND);
        doing = "waiting for a dead owner's workers to end";
        int64_t begin = shoal_clock_now();
        kill_and_reap(pid);
        pid_t found;
        while ((found = waitpid(-1, NULL, WNOHANG)) >= 0 && shoal_clock_now() - begin < SHOAL_SECOND) {
            if (found == 0)
                sleep_for(100 * SHOAL_MICROSECOND);
        }
        bool gone = found == -1 && errno == ECHILD;
        for (int i = 0; !gone && i < WORKERS; i++) /* this test must not leave them behind as well */
            (void)kill_child(owner->pids[i]);
        assert_true(gone);
        int64_t took = shoal_clock_now() - begin;
        longest = took > longest ? took : longest;
        for (int i = 0; !early && i < WORKERS; i++) {
            assert_int_equal(kill(owner->pids[i], 0), -1);
            assert_int_equal(errno, ESRCH);
        }
    }
    printf("             %d owners killed, all was gone after %lld us at the most\n", rounds,
           (long long)(longest / SHOAL_MICROSECOND));
    munmap(owner, sizeof *owner);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(each_item_is_right_or_told_dead_and_with_retries_all_are_right, start_clock),
        cmocka_unit_test_setup(a_pool_may_be_stopped_while_its_workers_are_killed, start_clock),
        cmocka_unit_test_setup(a_stop_reaches_sleepers_whose_wake_was_lost_with_a_worker_that_died, start_clock),
        cmocka_unit_test_setup(a_killed_owners_workers_are_gone_within_a_second, start_clock),
    };
    return cmocka_run_group_tests_name("pool faults", tests, NULL, NULL);
}
