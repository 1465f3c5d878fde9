/* test_semaphore.c: units that are taken and given back, by anybody or by their owners. */
#define LIMIT 30
#include "helpers.h"

#include <pthread.h>

struct shared {
    _Atomic uint32_t inside, most, ready, inherited;
    _Atomic uint64_t turns;
};

static struct shared *shared;
static shoal_semaphore *semaphore;

static int set_up(void **state)
{
    start_clock(state);
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    return shared == MAP_FAILED ? -1 : 0;
}

static int tear_down(void **state)
{
    (void)state;
    shoal_semaphore_close(semaphore);
    semaphore = NULL;
    munmap(shared, sizeof *shared);
    alarm(0);
    return 0;
}

static void create(uint32_t value, uint32_t maximum, uint32_t flags)
{
    const shoal_semaphore_options options = {value, maximum, flags};
    assert_int_equal(shoal_semaphore_create(&options, &semaphore), 0);
}

static void wait_until_ready(uint32_t count)
{
    while (atomic_load(&shared->ready) < count)
        sleep_for(SHOAL_MILLISECOND);
}

static void units_are_counted(void **state)
{
    (void)state;
    create(2, 0, 0);
    assert_int_equal(shoal_semaphore_maximum(semaphore), SHOAL_SEMAPHORE_MOST);
    assert_int_equal(shoal_semaphore_acquire(semaphore, 0), 0);
    assert_int_equal(shoal_semaphore_acquire(semaphore, SHOAL_FOREVER), 0);
    assert_int_equal(shoal_semaphore_value(semaphore), 0);
    assert_int_equal(shoal_semaphore_acquire(semaphore, 0), -ETIMEDOUT);
    int64_t before = shoal_clock_now();
    assert_int_equal(shoal_semaphore_acquire(semaphore, 20 * SHOAL_MILLISECOND), -ETIMEDOUT);
    assert_true(shoal_clock_now() - before >= 20 * SHOAL_MILLISECOND);
    assert_int_equal(shoal_semaphore_release(semaphore, 5), 0); /* not bounded */
    assert_int_equal(shoal_semaphore_value(semaphore), 5);
    assert_int_equal(shoal_semaphore_release(semaphore, 0), -EINVAL);
    assert_int_equal(shoal_semaphore_release(semaphore, SHOAL_SEMAPHORE_MOST), -EOVERFLOW);
    assert_int_equal(shoal_semaphore_value(semaphore), 5);
    assert_int_equal(shoal_semaphore_reset(semaphore, NULL), -EINVAL);
}

static void a_bounded_one_refuses_what_is_too_much(void **state)
{
    (void)state;
    create(1, 2, SHOAL_SEMAPHORE_BOUNDED);
    assert_int_equal(shoal_semaphore_release(semaphore, 2), -EOVERFLOW);
    assert_int_equal(shoal_semaphore_release(semaphore, 1), 0);
    assert_int_equal(shoal_semaphore_release(semaphore, 1), -EOVERFLOW);
    assert_int_equal(shoal_semaphore_value(semaphore), 2);
    shoal_semaphore_close(semaphore);
    create(0, 0, SHOAL_SEMAPHORE_BOUNDED);
    assert_int_equal(shoal_semaphore_release(semaphore, 1), -EOVERFLOW);
}

static void senseless_options_are_refused(void **state)
{
    (void)state;
    static const shoal_semaphore_options wrong[] = {
        {3, 2, SHOAL_SEMAPHORE_BOUNDED},
        {SHOAL_SEMAPHORE_MOST + 1u, 0, 0},
        {1, 0, 64},
        {1, 0, SHOAL_SEMAPHORE_ROBUST},
        {0, 0, SHOAL_SEMAPHORE_OWNED},
        {SHOAL_SEMAPHORE_OWNED_MOST + 1u, 0, SHOAL_SEMAPHORE_OWNED},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++)
        assert_int_equal(shoal_semaphore_create(&wrong[i], &semaphore), -EINVAL);
    assert_null(semaphore);
}

static void what_is_no_semaphore_is_not_attached(void **state)
{
    (void)state;
    create(3, 0, SHOAL_SEMAPHORE_OWNED);
    shoal_semaphore *other = NULL;
    shoal_region *region;
    assert_int_equal(shoal_region_attach(shoal_semaphore_fd(semaphore), &region), 0);
    uint32_t *words = shoal_region_base(region);
    for (int i = 0; i < 8; i++) {
        uint32_t old = words[i];
        words[i] ^= 0x40000000;
        assert_int_equal(shoal_semaphore_attach(shoal_semaphore_fd(semaphore), &other), SHOAL_ECORRUPT);
        words[i] = old;
    }
    assert_int_equal(shoal_semaphore_attach(shoal_semaphore_fd(semaphore), &other), 0);
    assert_int_equal(shoal_semaphore_value(other), 3);
    shoal_semaphore_close(other);
    shoal_region_close(region);
}

/* ------------------------------------------------------- units that nobody owns ---- */

static int take_and_end(void *unused)
{
    (void)unused;
    return shoal_semaphore_acquire(semaphore, 0);
}

static void one_may_acquire_and_end_and_another_release(void **state)
{
    (void)state;
    create(1, 0, 0);
    child_ends_well(start_child("taking", take_and_end, NULL));
    /* No alarm is raised, however long one waits: the unit is out, as in a program that counts. */
    assert_int_equal(shoal_semaphore_acquire(semaphore, 700 * SHOAL_MILLISECOND), -ETIMEDOUT);
    assert_int_equal(shoal_semaphore_release(semaphore, 1), 0);
    assert_int_equal(shoal_semaphore_acquire(semaphore, 0), 0);
}

static int consume(void *context)
{
    for (intptr_t i = 0; i < (intptr_t)context; i++) {
        CHECK(shoal_semaphore_acquire(semaphore, SHOAL_FOREVER) == 0);
        atomic_fetch_add(&shared->turns, 1);
    }
    return 0;
}

static void every_release_lets_one_go_on(void **state)
{
    (void)state;
    create(0, 0, 0);
    pid_t children[4];
    for (int i = 0; i < 4; i++)
        children[i] = start_child("consuming", consume, (void *)(intptr_t)5000);
    for (int left = 20000; left > 0;) {
        int batch = left < 7 ? left : 7;
        assert_int_equal(shoal_semaphore_release(semaphore, (uint32_t)batch), 0);
        left -= batch;
        if (left % 64 == 0)
            sleep_for(100 * SHOAL_MICROSECOND);
    }
    for (int i = 0; i < 4; i++)
        child_ends_well(children[i]);
    assert_int_equal(shared->turns, 20000);
    assert_int_equal(shoal_semaphore_value(semaphore), 0);
}

static void a_release_of_many_wakes_as_many(void **state)
{
    (void)state;
    create(0, 0, 0);
    pid_t children[3];
    for (int i = 0; i < 3; i++)
        children[i] = start_child("sleeping", consume, (void *)(intptr_t)1);
    sleep_for(50 * SHOAL_MILLISECOND);
    int64_t before = shoal_clock_now();
    assert_int_equal(shoal_semaphore_release(semaphore, 3), 0);
    while (atomic_load(&shared->turns) < 3)
        sleep_for(20 * SHOAL_MICROSECOND);
    assert_true(shoal_clock_now() - before < 300 * SHOAL_MILLISECOND); /* woken, not at the end of a slice */
    for (int i = 0; i < 3; i++)
        child_ends_well(children[i]);
}

static void nothing(int number)
{
    (void)number;
}

static int interrupted(void *unused)
{
    (void)unused;
    struct sigaction action = {.sa_handler = nothing};
    sigaction(SIGUSR1, &action, NULL);
    atomic_store(&shared->ready, 1);
    CHECK(shoal_semaphore_acquire(semaphore, SHOAL_FOREVER) == -EINTR);
    atomic_store(&shared->ready, 2);
    return 0;
}

static void a_signal_ends_a_wait(void **state)
{
    (void)state;
    create(0, 0, 0);
    pid_t child = start_child("being interrupted", interrupted, NULL);
    wait_until_ready(1);
    while (atomic_load(&shared->ready) < 2) {
        sleep_for(20 * SHOAL_MILLISECOND);
        kill(child, SIGUSR1);
    }
    child_ends_well(child);
    assert_int_equal(shoal_semaphore_value(semaphore), 0);
}

static int consume_for_good(void *unused)
{
    (void)unused;
    for (;;) {
        CHECK(shoal_semaphore_acquire(semaphore, SHOAL_FOREVER) == 0);
        atomic_fetch_add(&shared->turns, 1);
    }
}

static void killed_waiters_do_not_leave_units_lying(void **state)
{
    (void)state;
    seed_random();
    create(0, 0, 0);
    pid_t children[3];
    for (int i = 0; i < 3; i++)
        children[i] = start_child("consuming", consume_for_good, NULL);
    int64_t begin = shoal_clock_now(), longest = 0;
    int kills = 0;
    uint64_t given = 0;
    while (shoal_clock_now() - begin < 3 * SHOAL_SECOND) {
        uint32_t count = 1 + (uint32_t)random_below(3);
        assert_int_equal(shoal_semaphore_release(semaphore, count), 0);
        given += count;
        sleep_for((int64_t)random_below(200 * SHOAL_MICROSECOND));
        int victim = (int)random_below(3);
        kill_and_reap(children[victim]);
        kills++;
        /* Two others wait: the units go to them. */
        int64_t before = shoal_clock_now();
        while (shoal_semaphore_value(semaphore) > 0)
            sleep_for(50 * SHOAL_MICROSECOND);
        int64_t took = shoal_clock_now() - before;
        longest = took > longest ? took : longest;
        children[victim] = start_child("consuming", consume_for_good, NULL);
    }
    for (int i = 0; i < 3; i++)
        kill_and_reap(children[i]);
    printf("             %d kills, %llu units, longest left lying %.0f ms\n", kills, (unsigned long long)given,
           (double)longest / 1e6);
    assert_true(longest < 2 * SHOAL_SECOND);
    /* One that was killed may have taken a unit before it counted it. */
    assert_true(atomic_load(&shared->turns) <= given);
    assert_true(atomic_load(&shared->turns) + (uint64_t)kills + 3 >= given);
}

/* ------------------------------------------------------- units that have owners ---- */

static int release_foreign(void *unused)
{
    (void)unused;
    CHECK(shoal_semaphore_release(semaphore, 1) == -EPERM);
    CHECK(shoal_semaphore_acquire(semaphore, 0) == 0);
    CHECK(shoal_semaphore_release(semaphore, 2) == -EPERM);
    CHECK(shoal_semaphore_value(semaphore) == 0);
    return shoal_semaphore_release(semaphore, 1);
}

static void an_owned_unit_is_released_by_its_owner_only(void **state)
{
    (void)state;
    create(2, 0, SHOAL_SEMAPHORE_OWNED);
    assert_int_equal(shoal_semaphore_acquire(semaphore, 0), 0);
    child_ends_well(start_child("releasing", release_foreign, NULL));
    assert_int_equal(shoal_semaphore_value(semaphore), 1);
    assert_int_equal(shoal_semaphore_release(semaphore, 1), 0);
    assert_int_equal(shoal_semaphore_release(semaphore, 1), -EPERM);
    assert_int_equal(shoal_semaphore_value(semaphore), 2);
}

static int hold(void *unused)
{
    (void)unused;
    CHECK(shoal_semaphore_acquire(semaphore, SHOAL_FOREVER) >= 0);
    atomic_fetch_add(&shared->ready, 1);
    for (;;)
        pause();
}

static void kill_a_holder(void)
{
    atomic_store(&shared->ready, 0);
    pid_t child = start_child("holding", hold, NULL);
    wait_until_ready(1);
    kill_and_reap(child);
}

static void all_held_and_some_by_the_dead_is_told(void **state)
{
    (void)state;
    create(2, 0, SHOAL_SEMAPHORE_OWNED);
    kill_a_holder();
    assert_int_equal(shoal_semaphore_acquire(semaphore, 0), 0); /* one was free */
    int64_t before = shoal_clock_now();
    assert_int_equal(shoal_semaphore_acquire(semaphore, SHOAL_FOREVER), SHOAL_EOWNERDIED);
    assert_true(shoal_clock_now() - before < SHOAL_SECOND);
    assert_int_equal(shoal_semaphore_acquire(semaphore, 0), SHOAL_EOWNERDIED);
    uint32_t freed = 0;
    assert_int_equal(shoal_semaphore_reset(semaphore, &freed), 0);
    assert_int_equal(freed, 1);
    assert_int_equal(shoal_semaphore_acquire(semaphore, 0), 0);
    assert_int_equal(shoal_semaphore_release(semaphore, 2), 0);
}

static void a_robust_one_gives_the_units_of_the_dead_to_others(void **state)
{
    (void)state;
    create(2, 0, SHOAL_SEMAPHORE_OWNED | SHOAL_SEMAPHORE_ROBUST);
    kill_a_holder();
    assert_int_equal(shoal_semaphore_acquire(semaphore, 0), 0);
    assert_int_equal(shoal_semaphore_acquire(semaphore, SHOAL_FOREVER), SHOAL_INHERITED);
    assert_int_equal(shoal_semaphore_acquire(semaphore, 30 * SHOAL_MILLISECOND), -ETIMEDOUT);
    assert_int_equal(shoal_semaphore_release(semaphore, 2), 0);
    assert_int_equal(shoal_semaphore_value(semaphore), 2);
}

static int work(void *unused)
{
    (void)unused;
    for (;;) {
        int result = shoal_semaphore_acquire(semaphore, SHOAL_FOREVER);
        CHECK(result == 0 || result == SHOAL_INHERITED);
        if (result == SHOAL_INHERITED)
            atomic_fetch_add(&shared->inherited, 1);
        atomic_fetch_add(&shared->turns, 1);
        CHECK(shoal_semaphore_release(semaphore, 1) == 0);
    }
}

static void no_unit_is_lost_to_kills_at_random_instants(void **state)
{
    (void)state;
    seed_random();
    create(2, 0, SHOAL_SEMAPHORE_OWNED | SHOAL_SEMAPHORE_ROBUST);
    pid_t children[4];
    for (int i = 0; i < 4; i++)
        children[i] = start_child("working", work, NULL);
    int64_t begin = shoal_clock_now();
    int kills = 0;
    while (shoal_clock_now() - begin < 4 * SHOAL_SECOND) {
        sleep_for((int64_t)random_below(2 * SHOAL_MILLISECOND));
        int victim = (int)random_below(4);
        kill_and_reap(children[victim]);
        kills++;
        children[victim] = start_child("working", work, NULL);
    }
    for (int i = 0; i < 4; i++)
        kill_and_reap(children[i]);
    for (int i = 0; i < 2; i++)
        assert_true(shoal_semaphore_acquire(semaphore, 2 * SHOAL_SECOND) >= 0);
    assert_int_equal(shoal_semaphore_acquire(semaphore, 30 * SHOAL_MILLISECOND), -ETIMEDOUT);
    printf("             %d kills, %llu turns, %u inherited\n", kills, (unsigned long long)atomic_load(&shared->turns),
           atomic_load(&shared->inherited));
}

/* ----------------------------------------------------------------------- threads ---- */

static void *pass_through(void *unused)
{
    (void)unused;
    for (int i = 0; i < 5000; i++) {
        if (shoal_semaphore_acquire(semaphore, SHOAL_FOREVER) != 0)
            return (void *)1;
        uint32_t inside = atomic_fetch_add(&shared->inside, 1) + 1;
        uint32_t most = atomic_load(&shared->most);
        while (most < inside && !atomic_compare_exchange_weak(&shared->most, &most, inside)) {
        }
        atomic_fetch_sub(&shared->inside, 1);
        if (shoal_semaphore_release(semaphore, 1) != 0)
            return (void *)1;
    }
    return NULL;
}

static void run_threads(void)
{
    pthread_t threads[5];
    for (int i = 0; i < 5; i++)
        pthread_create(&threads[i], NULL, pass_through, NULL);
    for (int i = 0; i < 5; i++) {
        void *result;
        pthread_join(threads[i], &result);
        assert_null(result);
    }
    assert_true(atomic_load(&shared->most) <= 2);
    assert_int_equal(shoal_semaphore_value(semaphore), 2);
}

static void never_more_threads_inside_than_units(void **state)
{
    (void)state;
    create(2, 2, SHOAL_SEMAPHORE_BOUNDED);
    run_threads();
}

static void never_more_threads_inside_than_owned_units(void **state)
{
    (void)state;
    create(2, 0, SHOAL_SEMAPHORE_OWNED);
    run_threads();
}

enum { RELEASERS = 6, RELEASES = 300000 };

static void *take_and_give_back(void *refusals)
{
    for (int i = 0; i < RELEASES; i++) {
        if (shoal_semaphore_acquire(semaphore, 10 * SHOAL_SECOND) != 0 || shoal_semaphore_release(semaphore, 1) != 0)
            atomic_fetch_add((_Atomic uint32_t *)refusals, 1);
    }
    return NULL;
}

static void who_holds_a_unit_is_never_refused_for_what_other_threads_do(void **state)
{
    (void)state;
    create(RELEASERS, 0, SHOAL_SEMAPHORE_OWNED);
    _Atomic uint32_t refusals = 0;
    pthread_t threads[RELEASERS];
    for (int i = 0; i < RELEASERS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, take_and_give_back, (void *)&refusals), 0);
    for (int i = 0; i < RELEASERS; i++)
        assert_int_equal(pthread_join(threads[i], NULL), 0);
    assert_int_equal(refusals, 0);
    assert_int_equal(shoal_semaphore_value(semaphore), RELEASERS);
}

static void an_uncontended_turn_costs_tens_of_nanoseconds(void **state)
{
    (void)state;
    enum { TURNS = 1000000 };
    for (uint32_t flags = 0; flags <= SHOAL_SEMAPHORE_OWNED; flags += SHOAL_SEMAPHORE_OWNED) {
        shoal_semaphore_close(semaphore);
        create(4, 0, flags);
        int64_t before = shoal_clock_now();
        for (int i = 0; i < TURNS; i++) {
            (void)shoal_semaphore_acquire(semaphore, SHOAL_FOREVER);
            (void)shoal_semaphore_release(semaphore, 1);
        }
        printf("             acquire and release, %s: %.1f ns\n", flags == 0 ? "plain" : "owned, 4 units",
               (double)(shoal_clock_now() - before) / TURNS);
    }
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(units_are_counted),
        TEST(a_bounded_one_refuses_what_is_too_much),
        TEST(senseless_options_are_refused),
        TEST(what_is_no_semaphore_is_not_attached),
        TEST(one_may_acquire_and_end_and_another_release),
        TEST(every_release_lets_one_go_on),
        TEST(a_release_of_many_wakes_as_many),
        TEST(a_signal_ends_a_wait),
        TEST(killed_waiters_do_not_leave_units_lying),
        TEST(an_owned_unit_is_released_by_its_owner_only),
        TEST(all_held_and_some_by_the_dead_is_told),
        TEST(a_robust_one_gives_the_units_of_the_dead_to_others),
        TEST(no_unit_is_lost_to_kills_at_random_instants),
        TEST(an_uncontended_turn_costs_tens_of_nanoseconds),
        TEST(never_more_threads_inside_than_units),
        TEST(never_more_threads_inside_than_owned_units),
        TEST(who_holds_a_unit_is_never_refused_for_what_other_threads_do),
    };
    return cmocka_run_group_tests_name("semaphore", tests, NULL, NULL);
}
