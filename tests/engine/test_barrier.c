/* test_barrier.c: the event, and the barrier: many go on at once, and nobody waits for the dead. */
#define LIMIT 30
#include "helpers.h"

#include <pthread.h>

#define MOST 8

struct shared {
    _Atomic uint32_t ready, woken, stop, actions, broken;
    _Atomic uint32_t seats[MOST];
    _Atomic uint64_t round[MOST], turns;
};

static struct shared *shared;
static shoal_event *event;
static shoal_barrier *barrier;

static int set_up(void **state)
{
    start_clock(state);
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    return shared == MAP_FAILED ? -1 : shoal_event_create(&event);
}

static int tear_down(void **state)
{
    (void)state;
    shoal_event_close(event);
    shoal_barrier_close(barrier);
    barrier = NULL;
    munmap(shared, sizeof *shared);
    alarm(0);
    return 0;
}

static void create(uint32_t parties)
{
    assert_int_equal(shoal_barrier_create(parties, &barrier), 0);
}

static void wait_until_ready(uint32_t count)
{
    while (atomic_load(&shared->ready) < count)
        sleep_for(SHOAL_MILLISECOND);
}

static void wait_until_arrived(uint32_t count)
{
    while (shoal_barrier_waiting(barrier) < count)
        sleep_for(SHOAL_MILLISECOND);
}

/* -------------------------------------------------------------------------- event ---- */

static void an_event_is_set_and_cleared(void **state)
{
    (void)state;
    assert_int_equal(shoal_event_is_set(event), 0);
    assert_int_equal(shoal_event_wait(event, 0), -ETIMEDOUT);
    int64_t before = shoal_clock_now();
    assert_int_equal(shoal_event_wait(event, 20 * SHOAL_MILLISECOND), -ETIMEDOUT);
    assert_true(shoal_clock_now() - before >= 20 * SHOAL_MILLISECOND);
    shoal_event_set(event);
    shoal_event_set(event);
    assert_int_equal(shoal_event_is_set(event), 1);
    assert_int_equal(shoal_event_wait(event, 0), 0);
    assert_int_equal(shoal_event_wait(event, SHOAL_FOREVER), 0);
    shoal_event_clear(event);
    assert_int_equal(shoal_event_is_set(event), 0);
    assert_int_equal(shoal_event_wait(event, 0), -ETIMEDOUT);
    shoal_event_close(NULL);
}

static int wait_for_event(void *context)
{
    shoal_event *own;
    CHECK(shoal_event_attach(*(int *)context, &own) == 0);
    atomic_fetch_add(&shared->ready, 1);
    CHECK(shoal_event_wait(own, 20 * SHOAL_SECOND) == 0);
    atomic_fetch_add(&shared->woken, 1);
    shoal_event_close(own);
    return 0;
}

static void setting_it_lets_all_go_on_even_if_cleared_at_once(void **state)
{
    (void)state;
    int fd = shoal_event_fd(event);
    pid_t children[4];
    for (int i = 0; i < 4; i++)
        children[i] = start_child("waiting", wait_for_event, &fd);
    wait_until_ready(4);
    sleep_for(50 * SHOAL_MILLISECOND);
    int64_t before = shoal_clock_now();
    shoal_event_set(event);
    shoal_event_clear(event);
    for (int i = 0; i < 4; i++)
        child_ends_well(children[i]);
    assert_true(shoal_clock_now() - before < 400 * SHOAL_MILLISECOND);
    assert_int_equal(shoal_event_is_set(event), 0);
}

static int wait_for_ever(void *unused)
{
    (void)unused;
    atomic_store(&shared->ready, 1);
    CHECK(shoal_barrier_wait(barrier, SHOAL_FOREVER, NULL) == 0);
    return 0;
}

static void who_comes_last_is_told_of_a_party_that_died_while_it_waited(void **state)
{
    (void)state;
    create(2);
    for (int round = 0; round < 5; round++) {
        atomic_store(&shared->ready, 0);
        pid_t child = start_child("waiting at the barrier", wait_for_ever, NULL);
        while (shoal_barrier_waiting(barrier) == 0)
            usleep(1000);
        assert_int_equal(kill(child, SIGKILL), 0);
        assert_int_equal(waitpid(child, NULL, 0), child);
        usleep(2000);
        assert_int_equal(shoal_barrier_wait(barrier, SHOAL_FOREVER, NULL), SHOAL_EOWNERDIED);
        shoal_barrier_reset(barrier);
    }
}

static int set_until_killed(void *unused)
{
    (void)unused;
    for (;;)
        shoal_event_set(event);
    return 0;
}

static void a_setter_killed_at_any_instant_leaves_no_waiter_asleep(void **state)
{
    (void)state;
    seed_random();
    int64_t begin = shoal_clock_now(), longest = 0;
    int kills = 0;
    while (shoal_clock_now() - begin < 3 * SHOAL_SECOND) {
        shoal_event_clear(event);
        pid_t child = start_child("setting", set_until_killed, NULL);
        int64_t before = shoal_clock_now();
        assert_int_equal(shoal_event_wait(event, 10 * SHOAL_SECOND), 0);
        int64_t took = shoal_clock_now() - before;
        longest = took > longest ? took : longest;
        sleep_for((int64_t)random_below(100 * SHOAL_MICROSECOND));
        kill_and_reap(child);
        kills++;
    }
    printf("             %d kills, longest wait %.0f ms\n", kills, (double)longest / 1e6);
    assert_true(longest < 2 * SHOAL_SECOND);
}

static void nothing(int number)
{
    (void)number;
}

static int event_interrupted(void *unused)
{
    (void)unused;
    struct sigaction action = {.sa_handler = nothing};
    sigaction(SIGUSR1, &action, NULL);
    atomic_store(&shared->ready, 1);
    CHECK(shoal_event_wait(event, SHOAL_FOREVER) == -EINTR);
    atomic_store(&shared->ready, 2);
    return 0;
}

static void a_signal_ends_the_wait_for_an_event(void **state)
{
    (void)state;
    pid_t child = start_child("being interrupted", event_interrupted, NULL);
    wait_until_ready(1);
    while (atomic_load(&shared->ready) < 2) {
        sleep_for(20 * SHOAL_MILLISECOND);
        kill(child, SIGUSR1);
    }
    child_ends_well(child);
}

static void what_is_no_event_or_barrier_is_not_attached(void **state)
{
    (void)state;
    create(3);
    shoal_event *other_event = NULL;
    shoal_barrier *other = NULL;
    assert_int_equal(shoal_event_attach(shoal_barrier_fd(barrier), &other_event), SHOAL_ECORRUPT);
    assert_int_equal(shoal_barrier_attach(shoal_event_fd(event), &other), SHOAL_ECORRUPT);
    shoal_region *region;
    assert_int_equal(shoal_region_attach(shoal_barrier_fd(barrier), &region), 0);
    uint32_t *words = shoal_region_base(region);
    for (int i = 0; i < 8; i++) {
        uint32_t old = words[i];
        words[i] ^= 0x40000000;
        assert_int_equal(shoal_barrier_attach(shoal_barrier_fd(barrier), &other), SHOAL_ECORRUPT);
        words[i] = old;
    }
    assert_int_equal(shoal_barrier_attach(shoal_barrier_fd(barrier), &other), 0);
    assert_int_equal(shoal_barrier_parties(other), 3);
    shoal_barrier_close(other);
    shoal_region_close(region);
    assert_int_equal(shoal_barrier_create(0, &other), -EINVAL);
    assert_int_equal(shoal_barrier_create(SHOAL_BARRIER_MOST + 1u, &other), -EINVAL);
    shoal_barrier_close(NULL);
}

/* ------------------------------------------------------------------------ barrier ---- */

static int act(void *context)
{
    atomic_fetch_add(&shared->actions, 1);
    return (int)(intptr_t)context;
}

static void one_party_waits_for_nobody(void **state)
{
    (void)state;
    create(1);
    shoal_barrier_turn turn = {.action = act};
    for (int i = 0; i < 3; i++) {
        assert_int_equal(shoal_barrier_wait(barrier, 0, &turn), 0);
        assert_int_equal(turn.index, 0);
    }
    assert_int_equal(shared->actions, 3);
    assert_int_equal(shoal_barrier_waiting(barrier), 0);
    assert_int_equal(shoal_barrier_broken(barrier), 0);
}

enum { PARTIES = 4, ROUNDS = 2000 };

static int go_round(void *context)
{
    const uint32_t me = (uint32_t)(uintptr_t)context;
    for (uint64_t i = 1; i <= ROUNDS; i++) {
        atomic_store(&shared->round[me], i);
        shoal_barrier_turn turn = {.action = act};
        CHECK(shoal_barrier_wait(barrier, SHOAL_FOREVER, &turn) == 0);
        CHECK(turn.index < PARTIES);
        CHECK(atomic_fetch_add(&shared->seats[turn.index], 1) + 1 == i); /* each index once a round */
        for (uint32_t other = 0; other < PARTIES; other++)
            CHECK(atomic_load(&shared->round[other]) >= i);
        CHECK(shoal_barrier_wait(barrier, SHOAL_FOREVER, NULL) == 0);
    }
    return 0;
}

static void nobody_goes_on_before_all_have_come(void **state)
{
    (void)state;
    create(PARTIES);
    pid_t children[PARTIES];
    int64_t before = shoal_clock_now();
    for (uintptr_t i = 0; i < PARTIES; i++)
        children[i] = start_child("going round", go_round, (void *)i);
    for (int i = 0; i < PARTIES; i++)
        child_ends_well(children[i]);
    printf("             4 parties on these cpus: %.1f us a round\n",
           (double)(shoal_clock_now() - before) / (2.0 * ROUNDS) / 1000.0);
    /* The action runs in who came last; in every second round that one may have had none. */
    assert_int_equal(shared->actions, ROUNDS);
}

static int pass_often(void *context)
{
    for (;;) {
        if (atomic_load(&shared->stop))
            return 0;
        int result = shoal_barrier_wait(barrier, 10 * SHOAL_SECOND, NULL);
        if (result != 0)
            return atomic_load(&shared->stop) ? 0 : 1;
        atomic_fetch_add((_Atomic uint64_t *)context, 1);
    }
}

static void more_threads_than_parties_take_turns(void **state)
{
    (void)state;
    create(2);
    pid_t children[5];
    for (int i = 0; i < 5; i++)
        children[i] = start_child("passing", pass_often, &shared->turns);
    while (atomic_load(&shared->turns) < 5000)
        sleep_for(SHOAL_MILLISECOND);
    atomic_store(&shared->stop, 1);
    shoal_barrier_abort(barrier, NULL);
    for (int i = 0; i < 5; i++)
        child_ends_well(children[i]);
}

static int expect_result(void *context)
{
    atomic_fetch_add(&shared->ready, 1);
    int result = shoal_barrier_wait(barrier, 20 * SHOAL_SECOND, NULL);
    CHECK(result == (int)(intptr_t)context);
    return 0;
}

static void a_timeout_breaks_it_until_the_reset(void **state)
{
    (void)state;
    create(3);
    pid_t child = start_child("waiting", expect_result, (void *)(intptr_t)-EPIPE);
    wait_until_arrived(1);
    int64_t before = shoal_clock_now();
    assert_int_equal(shoal_barrier_wait(barrier, 30 * SHOAL_MILLISECOND, NULL), -ETIMEDOUT);
    assert_true(shoal_clock_now() - before >= 30 * SHOAL_MILLISECOND);
    child_ends_well(child);
    assert_int_equal(shoal_barrier_broken(barrier), 1);
    assert_int_equal(shoal_barrier_waiting(barrier), 0);
    assert_int_equal(shoal_barrier_wait(barrier, SHOAL_FOREVER, NULL), -EPIPE);
    shoal_barrier_reset(barrier);
    assert_int_equal(shoal_barrier_broken(barrier), 0);
    child = start_child("waiting", expect_result, NULL);
    pid_t other = start_child("waiting", expect_result, NULL);
    assert_int_equal(shoal_barrier_wait(barrier, SHOAL_FOREVER, NULL), 0);
    child_ends_well(child);
    child_ends_well(other);
}

static void abort_and_reset_turn_the_waiting_away(void **state)
{
    (void)state;
    create(2);
    pid_t child = start_child("waiting", expect_result, (void *)(intptr_t)-EPIPE);
    wait_until_arrived(1);
    shoal_barrier_reset(barrier);
    child_ends_well(child);
    assert_int_equal(shoal_barrier_broken(barrier), 0);
    child = start_child("waiting", expect_result, (void *)(intptr_t)-EPIPE);
    wait_until_arrived(1);
    shoal_barrier_abort(barrier, NULL);
    child_ends_well(child);
    assert_int_equal(shoal_barrier_broken(barrier), 1);
}

static void an_action_that_fails_breaks_it(void **state)
{
    (void)state;
    create(2);
    pid_t child = start_child("waiting", expect_result, (void *)(intptr_t)-EPIPE);
    wait_until_arrived(1);
    shoal_barrier_turn turn = {.action = act, .context = (void *)7};
    assert_int_equal(shoal_barrier_wait(barrier, SHOAL_FOREVER, &turn), 7);
    child_ends_well(child);
    assert_int_equal(shoal_barrier_broken(barrier), 1);
}

static int interrupted_party(void *context)
{
    struct sigaction action = {.sa_handler = nothing};
    sigaction(SIGUSR1, &action, NULL);
    shoal_barrier_turn turn = {0};
    CHECK(shoal_barrier_wait(barrier, SHOAL_FOREVER, &turn) == -EINTR);
    atomic_store(&shared->ready, 1);
    CHECK(shoal_barrier_waiting(barrier) == 1); /* still arrived */
    if (context != NULL) {
        shoal_barrier_abort(barrier, &turn);
        CHECK(turn.stage == 0);
        return 0;
    }
    int result;
    do
        result = shoal_barrier_wait(barrier, SHOAL_FOREVER, &turn);
    while (result == -EINTR);
    return result;
}

static int impatient_party(void *context)
{
    (void)context;
    shoal_barrier_turn turn = {.patience = 30 * SHOAL_MILLISECOND};
    int result;
    while ((result = shoal_barrier_wait(barrier, 20 * SHOAL_SECOND, &turn)) == -EINTR)
        atomic_fetch_add(&shared->ready, 1);
    return result;
}

static void a_party_whose_patience_ends_stays_arrived(void **state)
{
    (void)state;
    create(2);
    pid_t child = start_child("being impatient", impatient_party, NULL);
    while (atomic_load(&shared->ready) < 3)
        sleep_for(SHOAL_MILLISECOND);
    assert_int_equal(shoal_barrier_waiting(barrier), 1);
    assert_int_equal(shoal_barrier_broken(barrier), 0);
    assert_int_equal(shoal_barrier_wait(barrier, SHOAL_FOREVER, NULL), 0);
    child_ends_well(child);
}

static void a_party_that_a_signal_interrupts_stays_arrived(void **state)
{
    (void)state;
    create(2);
    for (intptr_t give_up = 0; give_up < 2; give_up++) {
        atomic_store(&shared->ready, 0);
        pid_t child = start_child("being interrupted", interrupted_party, (void *)give_up);
        wait_until_arrived(1);
        while (atomic_load(&shared->ready) == 0) {
            sleep_for(20 * SHOAL_MILLISECOND);
            kill(child, SIGUSR1);
        }
        assert_int_equal(shoal_barrier_wait(barrier, SHOAL_FOREVER, NULL), give_up ? -EPIPE : 0);
        child_ends_well(child);
    }
}

static int wait_for_good(void *unused)
{
    (void)unused;
    (void)shoal_barrier_wait(barrier, SHOAL_FOREVER, NULL);
    return 0;
}

static void a_party_that_dies_waiting_breaks_it_for_the_others(void **state)
{
    (void)state;
    create(4);
    pid_t victim = start_child("waiting", wait_for_good, NULL);
    wait_until_arrived(1);
    pid_t child = start_child("waiting", expect_result, (void *)(intptr_t)SHOAL_EOWNERDIED);
    wait_until_arrived(2);
    int64_t before = shoal_clock_now();
    kill_and_reap(victim);
    assert_int_equal(shoal_barrier_wait(barrier, SHOAL_FOREVER, NULL), SHOAL_EOWNERDIED);
    printf("             a fresh party heard of the death after %.1f ms\n", (double)(shoal_clock_now() - before) / 1e6);
    child_ends_well(child);
    assert_int_equal(shoal_barrier_broken(barrier), 1);
    assert_int_equal(shoal_barrier_wait(barrier, 0, NULL), SHOAL_EOWNERDIED);
    shoal_barrier_reset(barrier);
    assert_int_equal(shoal_barrier_wait(barrier, 0, NULL), -ETIMEDOUT);
}

static int die_in_the_action(void *unused)
{
    (void)unused;
    return raise(SIGKILL);
}

static int come_last(void *unused)
{
    (void)unused;
    shoal_barrier_turn turn = {.action = die_in_the_action};
    return shoal_barrier_wait(barrier, SHOAL_FOREVER, &turn);
}

static void a_death_in_the_action_breaks_it(void **state)
{
    (void)state;
    create(2);
    pid_t child = start_child("waiting", expect_result, (void *)(intptr_t)SHOAL_EOWNERDIED);
    wait_until_arrived(1);
    pid_t last = start_child("acting", come_last, NULL);
    child_ends_well(child);
    assert_int_equal(waitpid(last, NULL, 0), last);
}

static int come_again_and_again(void *unused)
{
    (void)unused;
    seed_with((uint64_t)getpid());
    for (;;) {
        if (random_below(8) == 0)
            sleep_for(15 * SHOAL_MILLISECOND); /* long enough for the others to look who lives */
        int result = shoal_barrier_wait(barrier, SHOAL_FOREVER, NULL);
        CHECK(result == 0 || result == -EPIPE || result == SHOAL_EOWNERDIED);
        if (result == 0)
            atomic_fetch_add(&shared->turns, 1);
        else
            sleep_for(200 * SHOAL_MICROSECOND);
    }
}

static void kills_at_random_instants_break_it_but_hang_nobody(void **state)
{
    (void)state;
    seed_random();
    create(3);
    pid_t children[3];
    for (int i = 0; i < 3; i++)
        children[i] = start_child("coming", come_again_and_again, NULL);
    int64_t begin = shoal_clock_now(), longest = 0;
    int kills = 0, broken = 0;
    while (shoal_clock_now() - begin < 4 * SHOAL_SECOND) {
        sleep_for((int64_t)random_below(2 * SHOAL_MILLISECOND));
        int victim = (int)random_below(3);
        kill_and_reap(children[victim]);
        kills++;
        /* Who comes at once may complete the round that the dead one had arrived in; who comes late finds it broken. */
        if (random_below(2) == 0)
            sleep_for(30 * SHOAL_MILLISECOND);
        children[victim] = start_child("coming", come_again_and_again, NULL);
        /* They go on among themselves, or hear that it is broken. */
        int64_t before = shoal_clock_now();
        uint64_t turns = atomic_load(&shared->turns);
        for (;;) {
            if (shoal_barrier_broken(barrier)) {
                broken++;
                shoal_barrier_reset(barrier);
                break;
            }
            if (atomic_load(&shared->turns) > turns + 6)
                break;
            assert_true(shoal_clock_now() - before < 5 * SHOAL_SECOND);
            sleep_for(100 * SHOAL_MICROSECOND);
        }
        int64_t took = shoal_clock_now() - before;
        longest = took > longest ? took : longest;
    }
    for (int i = 0; i < 3; i++)
        kill_and_reap(children[i]);
    printf("             %d kills, %llu turns, broken %d times, longest standstill %.0f ms\n", kills,
           (unsigned long long)atomic_load(&shared->turns), broken, (double)longest / 1e6);
    assert_true(longest < 2 * SHOAL_SECOND);
}

static void *go_round_as_thread(void *unused)
{
    (void)unused;
    for (int i = 0; i < 3000; i++)
        if (shoal_barrier_wait(barrier, SHOAL_FOREVER, NULL) != 0)
            return (void *)1;
    return NULL;
}

static void threads_are_parties_too(void **state)
{
    (void)state;
    create(3);
    pthread_t threads[3];
    for (int i = 0; i < 3; i++)
        pthread_create(&threads[i], NULL, go_round_as_thread, NULL);
    for (int i = 0; i < 3; i++) {
        void *result;
        pthread_join(threads[i], &result);
        assert_null(result);
    }
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(an_event_is_set_and_cleared),
        TEST(setting_it_lets_all_go_on_even_if_cleared_at_once),
        TEST(a_setter_killed_at_any_instant_leaves_no_waiter_asleep),
        TEST(who_comes_last_is_told_of_a_party_that_died_while_it_waited),
        TEST(a_signal_ends_the_wait_for_an_event),
        TEST(what_is_no_event_or_barrier_is_not_attached),
        TEST(one_party_waits_for_nobody),
        TEST(nobody_goes_on_before_all_have_come),
        TEST(more_threads_than_parties_take_turns),
        TEST(a_timeout_breaks_it_until_the_reset),
        TEST(abort_and_reset_turn_the_waiting_away),
        TEST(an_action_that_fails_breaks_it),
        TEST(a_party_that_a_signal_interrupts_stays_arrived),
        TEST(a_party_whose_patience_ends_stays_arrived),
        TEST(a_party_that_dies_waiting_breaks_it_for_the_others),
        TEST(a_death_in_the_action_breaks_it),
        TEST(kills_at_random_instants_break_it_but_hang_nobody),
        TEST(threads_are_parties_too),
    };
    return cmocka_run_group_tests_name("barrier", tests, NULL, NULL);
}
