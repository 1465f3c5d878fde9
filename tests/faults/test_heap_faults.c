/* test_heap_faults.c: processes are killed at random instants while they allocate, give and free. After each death the
 * heap's records must be sound, under its lock and while others go on; in the end all is accounted for. */
#include "campaign.h"

#include "heap_walk.h"

#define WORKERS 4
#define KILLS 40 /* a round */
#define MEGABYTE ((size_t)1 << 20)
#define HEAP_LIMIT (64 * MEGABYTE)
#define HELD 100

struct worker {
    shoal_heap *heap;
    uint32_t owner;
    uint64_t seed;
};

struct held {
    shoal_block block;
    size_t size;
};

static size_t random_size(void)
{
    switch (random_below(8)) {
    case 0:
        return 1 + random_below(400000);
    case 1:
        return 65536 + random_below(40000);
    default:
        return 1 + random_below(random_below(2) == 0 ? 200 : 8000);
    }
}

static void mark(const struct worker *worker, const struct held *held)
{
    uint8_t *at = shoal_heap_pointer(worker->heap, held->block, NULL);
    CHECK(at != NULL);
    at[0] = at[held->size / 2] = at[held->size - 1] = (uint8_t)worker->owner;
}

static void check_mark(const struct worker *worker, const struct held *held)
{
    uint32_t owner = 0;
    const uint8_t *at = shoal_heap_pointer(worker->heap, held->block, NULL);
    CHECK(at != NULL);
    CHECK(shoal_heap_owner(worker->heap, held->block, &owner) == 0 && owner == worker->owner);
    CHECK(at[0] == (uint8_t)worker->owner && at[held->size / 2] == at[0] && at[held->size - 1] == at[0]);
}

/* Goes on until it is killed. */
static int work(void *context)
{
    const struct worker *worker = context;
    struct held held[HELD] = {0};
    seed_with(worker->seed);
    for (;;) {
        struct held *one = &held[random_below(HELD)];
        if (one->block == 0) {
            one->size = random_size();
            int error = shoal_heap_allocate(worker->heap, one->size, worker->owner, &one->block);
            CHECK(error == 0 || error == -ENOMEM);
            if (error == 0)
                mark(worker, one);
        } else {
            check_mark(worker, one);
            CHECK(shoal_heap_free(worker->heap, one->block) == 0);
            one->block = 0;
        }
        if (random_below(2000) == 0)
            CHECK(shoal_heap_trim(worker->heap) == 0);
    }
}

/* Whether the dead process had the lock: a robust mutex keeps the kernel's note of it. */
static bool died_with_the_lock(const shoal_heap *heap)
{
    return (__atomic_load_n(&heap->header->lock.mutex.__data.__lock, __ATOMIC_RELAXED) & 0x40000000) != 0;
}

static void the_heap_is_sound(shoal_heap *heap)
{
    heap_lock(heap);
    (void)walk_heap(heap);
    heap_unlock(heap);
}

static pid_t start_worker(shoal_heap *heap, uint32_t owner)
{
    static struct worker next;
    next = (struct worker){.heap = heap, .owner = owner, .seed = random_bits()};
    return start_child("a worker of the heap", work, &next);
}

/* With one worker, what a death left is seen before anybody else repairs it. */
static size_t run_round(shoal_heap *heap, uint32_t *owners, size_t workers)
{
    pid_t pids[WORKERS];
    uint32_t owner_of[WORKERS];
    size_t with_lock = 0;
    for (size_t i = 0; i < workers; i++)
        pids[i] = start_worker(heap, owner_of[i] = (*owners)++);
    for (int i = 0; i < KILLS; i++) {
        size_t at = random_below(workers);
        sleep_for((int64_t)random_below(1500) * SHOAL_MICROSECOND);
        kill_and_reap(pids[at]);
        with_lock += died_with_the_lock(heap);
        if (random_below(4) != 0) /* else the others come to it first, or a later sweep */
            the_heap_is_sound(heap);
        assert_int_equal(shoal_heap_sweep(heap, owner_of[at], NULL), 0);
        pids[at] = start_worker(heap, owner_of[at] = (*owners)++);
    }
    for (size_t i = 0; i < workers; i++)
        kill_and_reap(pids[i]);
    the_heap_is_sound(heap);
    for (size_t i = 0; i < workers; i++)
        assert_int_equal(shoal_heap_sweep(heap, owner_of[i], NULL), 0);
    return with_lock;
}

static void a_heap_survives_the_death_of_its_users_at_any_instant(void **state)
{
    (void)state;
    seed_random();
    const int rounds = campaign_rounds(24);
    shoal_heap *heap;
    uint32_t owners = 2;
    size_t with_lock = 0;
    struct worker self = {.owner = 1};
    struct held kept[20];
    struct shoal_heap_numbers numbers;
    assert_int_equal(shoal_heap_create(HEAP_LIMIT, &heap), 0);
    self.heap = heap;
    for (int round = 0; round < rounds; round++) {
        /* What a process that lives has in the same heap is not touched. */
        for (int i = 0; i < 20; i++) {
            kept[i].size = random_size();
            assert_int_equal(shoal_heap_allocate(heap, kept[i].size, self.owner, &kept[i].block), 0);
            mark(&self, &kept[i]);
        }
        with_lock += run_round(heap, &owners, round % 3 == 0 ? WORKERS : 1);
        assert_int_equal(shoal_heap_count(heap, &numbers), 0);
        assert_int_equal(numbers.blocks, 20);
        for (int i = 0; i < 20; i++) {
            check_mark(&self, &kept[i]);
            assert_int_equal(shoal_heap_free(heap, kept[i].block), 0);
        }
        the_heap_is_sound(heap);
        assert_int_equal(shoal_heap_count(heap, &numbers), 0);
        assert_int_equal(numbers.blocks + numbers.used, 0);
        /* Nothing is lost: all of it can be had, in one piece. */
        shoal_block all;
        assert_int_equal(shoal_heap_allocate(heap, HEAP_LIMIT, self.owner, &all), 0);
        assert_int_equal(shoal_heap_free(heap, all), 0);
    }
    printf("             %d rounds, %d kills, %zu or more of them with the lock held\n", rounds, rounds * KILLS,
           with_lock);
    shoal_heap_release(heap);
    no_child_is_left();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(a_heap_survives_the_death_of_its_users_at_any_instant, start_clock),
    };
    return cmocka_run_group_tests_name("heap faults", tests, NULL, NULL);
}
