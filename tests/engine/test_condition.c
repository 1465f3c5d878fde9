/* test_condition.c: waiting for what another announces, with a lock given up meanwhile. */
#define LIMIT 30
#include "helpers.h"

#include <pthread.h>

struct shared {
    _Atomic uint32_t ready, woken, timed_out, stop;
    _Atomic uint32_t order[16];
    _Atomic uint64_t value, taken, turns;
};

static struct shared *shared;
static shoal_lock *lock;
static shoal_condition *condition;

static int set_up_with(void **state, uint32_t flags)
{
    start_clock(state);
    const shoal_lock_options options = {flags};
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED || shoal_lock_create(&options, &lock) != 0)
        return -1;
    return shoal_condition_create(lock, &condition);
}

static int set_up(void **state)
{
    return set_up_with(state, 0);
}

static int set_up_recursive(void **state)
{
    return set_up_with(state, SHOAL_LOCK_RECURSIVE);
}

static int set_up_robust(void **state)
{
    return set_up_with(state, SHOAL_LOCK_ROBUST);
}

static int tear_down(void **state)
{
    (void)state;
    shoal_condition_close(condition);
    shoal_lock_close(lock);
    munmap(shared, sizeof *shared);
    alarm(0);
    return 0;
}

static void take(void)
{
    CHECK(shoal_lock_acquire(lock, SHOAL_FOREVER) >= 0);
}

static void give(void)
{
    CHECK(shoal_lock_release(lock) == 0);
}

/* Who counts itself ready with the lock held is waiting once the lock can be had. */
static void wait_until_waiting(uint32_t count)
{
    for (;;) {
        take();
        uint32_t ready = atomic_load(&shared->ready);
        give();
        if (ready >= count)
            return;
        sleep_for(SHOAL_MILLISECOND);
    }
}

static void notify(uint32_t count)
{
    take();
    CHECK(shoal_condition_notify(condition, count) == 0);
    give();
}

static int wait_once(void *context)
{
    take();
    atomic_fetch_add(&shared->ready, 1);
    int result = shoal_condition_wait(condition, SHOAL_FOREVER, NULL);
    CHECK(result == 0);
    shoal_lock_holder holder;
    shoal_lock_look(lock, &holder);
    CHECK(holder.is_mine == 1);
    uint32_t place = atomic_fetch_add(&shared->woken, 1);
    atomic_store(&shared->order[place % 16], (uint32_t)(uintptr_t)context);
    give();
    return 0;
}

static void woken_become(uint32_t count)
{
    int64_t before = shoal_clock_now();
    while (atomic_load(&shared->woken) < count) {
        assert_true(shoal_clock_now() - before < 5 * SHOAL_SECOND);
        sleep_for(SHOAL_MILLISECOND);
    }
    sleep_for(20 * SHOAL_MILLISECOND);
    assert_int_equal(shared->woken, count);
}

static void only_the_lock_s_holder_waits_or_notifies(void **state)
{
    (void)state;
    assert_int_equal(shoal_condition_wait(condition, 0, NULL), -EPERM);
    assert_int_equal(shoal_condition_notify(condition, 1), -EPERM);
    assert_int_equal(shoal_condition_notify_all(condition), -EPERM);
    take();
    assert_int_equal(shoal_condition_notify(condition, 1), 0); /* nobody waits: nothing is kept */
    assert_int_equal(shoal_condition_notify_all(condition), 0);
    assert_int_equal(shoal_condition_wait(condition, 0, NULL), -ETIMEDOUT);
    int64_t before = shoal_clock_now();
    assert_int_equal(shoal_condition_wait(condition, 20 * SHOAL_MILLISECOND, NULL), -ETIMEDOUT);
    assert_true(shoal_clock_now() - before >= 20 * SHOAL_MILLISECOND);
    give();
}

static void as_many_go_on_as_are_notified_the_longest_waiting_first(void **state)
{
    (void)state;
    pid_t children[5];
    for (uint32_t i = 0; i < 5; i++) {
        children[i] = start_child("waiting", wait_once, (void *)(uintptr_t)i);
        wait_until_waiting(i + 1);
    }
    notify(1);
    woken_become(1);
    notify(2);
    woken_become(3);
    take();
    assert_int_equal(shoal_condition_notify_all(condition), 0);
    give();
    woken_become(5);
    for (int i = 0; i < 5; i++)
        child_ends_well(children[i]);
    assert_int_equal(shared->order[0], 0);
    assert_int_equal(shared->order[1] + shared->order[2], 3);
    assert_int_equal(shared->order[3] + shared->order[4], 7);
}

static int attach_and_notify(void *context)
{
    const int *fds = context;
    shoal_lock *own;
    shoal_condition *same;
    CHECK(shoal_lock_attach(fds[0], &own) == 0);
    CHECK(shoal_condition_attach(fds[1], own, &same) == 0);
    CHECK(shoal_lock_acquire(own, SHOAL_FOREVER) == 0);
    CHECK(shoal_condition_notify(same, 1) == 0);
    CHECK(shoal_lock_release(own) == 0);
    shoal_condition_close(same);
    shoal_lock_close(own);
    return 0;
}

static void another_process_attaches_by_descriptors(void **state)
{
    (void)state;
    int fds[2] = {shoal_lock_fd(lock), shoal_condition_fd(condition)};
    take();
    pid_t child = start_child("notifying", attach_and_notify, fds);
    assert_int_equal(shoal_condition_wait(condition, 10 * SHOAL_SECOND, NULL), 0);
    give();
    child_ends_well(child);
}

static void a_condition_is_attached_with_its_own_lock_only(void **state)
{
    (void)state;
    shoal_lock *wrong;
    shoal_condition *other = NULL;
    assert_int_equal(shoal_lock_create(NULL, &wrong), 0);
    assert_int_equal(shoal_condition_attach(shoal_condition_fd(condition), wrong, &other), -EINVAL);
    assert_int_equal(shoal_condition_attach(shoal_lock_fd(wrong), lock, &other), SHOAL_ECORRUPT);
    assert_null(other);
    shoal_lock_close(wrong);
    shoal_condition_close(NULL);
}

static void a_recursive_lock_is_given_up_wholly_and_taken_again(void **state)
{
    (void)state;
    take();
    take();
    take();
    int fds[2] = {shoal_lock_fd(lock), shoal_condition_fd(condition)};
    pid_t child = start_child("notifying", attach_and_notify, fds);
    assert_int_equal(shoal_condition_wait(condition, 10 * SHOAL_SECOND, NULL), 0);
    shoal_lock_holder holder;
    shoal_lock_look(lock, &holder);
    assert_int_equal(holder.is_mine, 1);
    assert_int_equal(holder.count, 3);
    give();
    give();
    give();
    child_ends_well(child);
}

/* ------------------------------------------------------------------------ signals ---- */

static void nothing(int number)
{
    (void)number;
}

static int interrupted(void *context)
{
    struct sigaction action = {.sa_handler = nothing};
    sigaction(SIGUSR1, &action, NULL);
    shoal_condition_turn turn = {0};
    take();
    atomic_fetch_add(&shared->ready, 1);
    CHECK(shoal_condition_wait(condition, SHOAL_FOREVER, &turn) == -EINTR);
    shoal_lock_holder holder;
    shoal_lock_look(lock, &holder);
    CHECK(holder.is_mine == 0);
    CHECK(turn.depth == 1);
    atomic_store(&shared->stop, 1);
    while (atomic_load(&shared->stop) == 1)
        sleep_for(SHOAL_MILLISECOND); /* notified meanwhile */
    if (context != NULL) {
        shoal_condition_cancel(condition, &turn);
        return 0;
    }
    int result;
    do
        result = shoal_condition_wait(condition, 10 * SHOAL_SECOND, &turn);
    while (result == -EINTR);
    CHECK(result == 0);
    CHECK(turn.stage == 0);
    give();
    return 0;
}

static int impatient(void *context)
{
    (void)context;
    shoal_condition_turn turn = {.patience = 30 * SHOAL_MILLISECOND};
    take();
    int returns = 0, result;
    while ((result = shoal_condition_wait(condition, 20 * SHOAL_SECOND, &turn)) == -EINTR) {
        CHECK(turn.depth == 1);
        atomic_store(&shared->ready, (uint32_t)++returns);
    }
    CHECK(result == 0);
    CHECK(returns >= 3);
    CHECK(turn.patience == 30 * SHOAL_MILLISECOND);
    give();
    return 0;
}

/* In its wait for the notification, and in that for the lock. */
static void a_wait_whose_patience_ends_goes_on_where_it_was(void **state)
{
    (void)state;
    pid_t child = start_child("being impatient", impatient, NULL);
    wait_until_waiting(1);
    while (atomic_load(&shared->ready) < 2)
        sleep_for(SHOAL_MILLISECOND);
    assert_int_equal(shoal_condition_waiting(condition), 1);
    take();
    assert_int_equal(shoal_condition_notify(condition, 1), 0);
    assert_int_equal(shoal_condition_waiting(condition), 0);
    const uint32_t before = atomic_load(&shared->ready);
    while (atomic_load(&shared->ready) < before + 2)
        sleep_for(SHOAL_MILLISECOND);
    give();
    child_ends_well(child);
}

static pid_t interrupt_a_waiter(void *context)
{
    pid_t child = start_child("being interrupted", interrupted, context);
    wait_until_waiting(1);
    while (atomic_load(&shared->stop) == 0) {
        kill(child, SIGUSR1);
        sleep_for(20 * SHOAL_MILLISECOND);
    }
    return child;
}

static void a_notification_between_signal_and_second_call_is_not_lost(void **state)
{
    (void)state;
    pid_t child = interrupt_a_waiter(NULL);
    notify(1);
    atomic_store(&shared->stop, 2);
    child_ends_well(child);
}

static void who_gives_up_hands_its_notification_on(void **state)
{
    (void)state;
    pid_t child = interrupt_a_waiter((void *)1);
    pid_t other = start_child("waiting", wait_once, NULL);
    wait_until_waiting(2);
    notify(1); /* goes to the first */
    sleep_for(20 * SHOAL_MILLISECOND);
    assert_int_equal(shared->woken, 0);
    atomic_store(&shared->stop, 2);
    child_ends_well(child);
    woken_become(1);
    child_ends_well(other);
}

/* -------------------------------------------------------------------------- deaths ---- */

static int wait_stopped(void *context)
{
    (void)context;
    take();
    atomic_fetch_add(&shared->ready, 1);
    (void)shoal_condition_wait(condition, SHOAL_FOREVER, NULL);
    give();
    return 0;
}

static void a_killed_waiters_notification_goes_to_another_who_waited_then(void **state)
{
    (void)state;
    pid_t first = start_child("waiting first", wait_stopped, NULL);
    wait_until_waiting(1);
    pid_t second = start_child("waiting second", wait_once, NULL);
    wait_until_waiting(2);
    kill(first, SIGSTOP); /* so that it cannot go on with its notification */
    notify(1);
    pid_t late = start_child("waiting late", wait_once, NULL);
    wait_until_waiting(3);
    sleep_for(50 * SHOAL_MILLISECOND);
    assert_int_equal(shared->woken, 0);
    int64_t before = shoal_clock_now();
    kill_and_reap(first);
    child_ends_well(second);
    printf("             taken over %.0f ms after the death\n", (double)(shoal_clock_now() - before) / 1e6);
    assert_int_equal(shared->woken, 1);
    notify(1);
    child_ends_well(late);
}

static void a_killed_waiter_blocks_no_notifier(void **state)
{
    (void)state;
    pid_t children[3];
    for (uint32_t i = 0; i < 3; i++) {
        children[i] = start_child("waiting", i < 2 ? wait_stopped : wait_once, NULL);
        wait_until_waiting(i + 1);
    }
    kill_and_reap(children[0]);
    kill_and_reap(children[1]);
    int64_t before = shoal_clock_now();
    notify(3);
    assert_true(shoal_clock_now() - before < 100 * SHOAL_MILLISECOND);
    child_ends_well(children[2]);
}

static int wait_for_the_dead(void *unused)
{
    (void)unused;
    take();
    atomic_fetch_add(&shared->ready, 1);
    int result = shoal_condition_wait(condition, SHOAL_FOREVER, NULL);
    return result == SHOAL_EOWNERDIED ? 0 : 1;
}

static int hold(void *unused)
{
    (void)unused;
    take();
    atomic_fetch_add(&shared->ready, 1);
    for (;;)
        pause();
    return 0;
}

static void who_waits_hears_when_the_lock_s_owner_died(void **state)
{
    (void)state;
    pid_t waiter = start_child("waiting", wait_for_the_dead, NULL);
    wait_until_waiting(1);
    pid_t owner = start_child("holding", hold, NULL);
    while (atomic_load(&shared->ready) < 2)
        sleep_for(SHOAL_MILLISECOND);
    kill_and_reap(owner);
    child_ends_well(waiter);
}

static int wait_to_inherit(void *unused)
{
    (void)unused;
    take();
    atomic_fetch_add(&shared->ready, 1);
    int result = shoal_condition_wait(condition, SHOAL_FOREVER, NULL);
    CHECK(result == SHOAL_INHERITED);
    return shoal_lock_release(lock);
}

static void who_waits_inherits_a_robust_lock(void **state)
{
    (void)state;
    pid_t waiter = start_child("waiting", wait_to_inherit, NULL);
    wait_until_waiting(1);
    pid_t owner = start_child("holding", hold, NULL);
    while (atomic_load(&shared->ready) < 2)
        sleep_for(SHOAL_MILLISECOND);
    kill_and_reap(owner);
    child_ends_well(waiter);
}

/* A stock that one side fills and the other empties, each waiting for the other by the condition alone. */
static int consume(void *unused)
{
    (void)unused;
    for (;;) {
        int result = shoal_lock_acquire(lock, SHOAL_FOREVER);
        CHECK(result >= 0);
        while (atomic_load(&shared->value) == atomic_load(&shared->taken)) {
            result = shoal_condition_wait(condition, SHOAL_FOREVER, NULL);
            CHECK(result >= 0);
        }
        atomic_fetch_add(&shared->taken, 1);
        CHECK(shoal_lock_release(lock) == 0);
    }
    return 0;
}

static void kills_at_random_instants_lose_no_notification_for_good(void **state)
{
    (void)state;
    seed_random();
    pid_t children[4];
    for (int i = 0; i < 4; i++)
        children[i] = start_child("consuming", consume, NULL);
    int64_t begin = shoal_clock_now(), longest = 0;
    int kills = 0;
    while (shoal_clock_now() - begin < 4 * SHOAL_SECOND) {
        uint32_t count = 1 + (uint32_t)random_below(3);
        take();
        atomic_fetch_add(&shared->value, count);
        CHECK(shoal_condition_notify(condition, count) == 0);
        give();
        sleep_for((int64_t)random_below(300 * SHOAL_MICROSECOND));
        int victim = (int)random_below(4);
        kill_and_reap(children[victim]);
        kills++;
        /* As no consumer is started meanwhile, only those that waited can take what is there. */
        int64_t before = shoal_clock_now();
        for (;;) {
            if (shoal_lock_acquire(lock, SHOAL_FOREVER) == SHOAL_INHERITED)
                CHECK(shoal_condition_notify_all(condition) == 0); /* its owner may have had a notification */
            bool empty = atomic_load(&shared->value) == atomic_load(&shared->taken);
            give();
            if (empty)
                break;
            assert_true(shoal_clock_now() - before < 5 * SHOAL_SECOND);
            sleep_for(100 * SHOAL_MICROSECOND);
        }
        int64_t took = shoal_clock_now() - before;
        longest = took > longest ? took : longest;
        children[victim] = start_child("consuming", consume, NULL);
    }
    for (int i = 0; i < 4; i++)
        kill_and_reap(children[i]);
    printf("             %d kills, %llu items, longest left lying %.0f ms\n", kills,
           (unsigned long long)atomic_load(&shared->value), (double)longest / 1e6);
    assert_true(longest < 2 * SHOAL_SECOND);
}

/* With a robust lock, as the kill may also come while the lock is held. */
static int be_killed_waiting(void *unused)
{
    (void)unused;
    for (;;) {
        take();
        (void)shoal_condition_wait(condition, SHOAL_FOREVER, NULL);
        give();
    }
    return 0;
}

static void the_dead_do_not_use_the_waiting_places_up(void **state)
{
    (void)state;
    for (int i = 0; i < 30; i++) {
        pid_t child = start_child("waiting", be_killed_waiting, NULL);
        sleep_for(2 * SHOAL_MILLISECOND);
        kill_and_reap(child);
    }
    /* One live waiter cleans up behind itself in its slices. */
    take();
    assert_int_equal(shoal_condition_wait(condition, SHOAL_SECOND, NULL), -ETIMEDOUT);
    give();
}

/* ----------------------------------------------------------------------- threads ---- */

static void *ping(void *context)
{
    const uint64_t me = (uint64_t)(uintptr_t)context;
    for (int i = 0; i < 10000; i++) {
        if (shoal_lock_acquire(lock, SHOAL_FOREVER) != 0)
            return (void *)1;
        while (atomic_load(&shared->value) % 2 != me)
            if (shoal_condition_wait(condition, SHOAL_FOREVER, NULL) != 0)
                return (void *)2;
        atomic_fetch_add(&shared->value, 1);
        if (shoal_condition_notify(condition, 1) != 0 || shoal_lock_release(lock) != 0)
            return (void *)3;
    }
    return NULL;
}

static void two_threads_wait_for_each_other_10000_times(void **state)
{
    (void)state;
    pthread_t thread;
    void *result;
    int64_t before = shoal_clock_now();
    pthread_create(&thread, NULL, ping, (void *)1);
    assert_null(ping(NULL));
    pthread_join(thread, &result);
    assert_null(result);
    assert_int_equal(shared->value, 20000);
    printf("             %.1f us a turn\n", (double)(shoal_clock_now() - before) / 20000.0 / 1000.0);
}

static void *wait_some(void *unused)
{
    (void)unused;
    for (int i = 0; i < 2000; i++) {
        take();
        int result = shoal_condition_wait(condition, (i % 3) * 100 * SHOAL_MICROSECOND, NULL);
        if (result == 0)
            atomic_fetch_add(&shared->woken, 1);
        else if (result == -ETIMEDOUT)
            atomic_fetch_add(&shared->timed_out, 1);
        give();
    }
    atomic_fetch_add(&shared->stop, 1);
    return NULL;
}

static void timeouts_and_notifications_agree_on_who_was_notified(void **state)
{
    (void)state;
    pthread_t threads[3];
    uint32_t given = 0;
    for (int i = 0; i < 3; i++)
        pthread_create(&threads[i], NULL, wait_some, NULL);
    while (atomic_load(&shared->stop) < 3) {
        notify(1);
        given++;
        sleep_for(30 * SHOAL_MICROSECOND);
    }
    for (int i = 0; i < 3; i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(shared->woken + shared->timed_out, 6000);
    assert_true(shared->woken <= given);
}

int main(void)
{
#define WITH(set_up_function, name) cmocka_unit_test_setup_teardown(name, set_up_function, tear_down)
    const struct CMUnitTest tests[] = {
        WITH(set_up, only_the_lock_s_holder_waits_or_notifies),
        WITH(set_up, as_many_go_on_as_are_notified_the_longest_waiting_first),
        WITH(set_up, another_process_attaches_by_descriptors),
        WITH(set_up, a_condition_is_attached_with_its_own_lock_only),
        WITH(set_up_recursive, a_recursive_lock_is_given_up_wholly_and_taken_again),
        WITH(set_up, a_notification_between_signal_and_second_call_is_not_lost),
        WITH(set_up, who_gives_up_hands_its_notification_on),
        WITH(set_up, a_wait_whose_patience_ends_goes_on_where_it_was),
        WITH(set_up, a_killed_waiters_notification_goes_to_another_who_waited_then),
        WITH(set_up, a_killed_waiter_blocks_no_notifier),
        WITH(set_up, who_waits_hears_when_the_lock_s_owner_died),
        WITH(set_up_robust, who_waits_inherits_a_robust_lock),
        WITH(set_up_robust, kills_at_random_instants_lose_no_notification_for_good),
        WITH(set_up_robust, the_dead_do_not_use_the_waiting_places_up),
        WITH(set_up, two_threads_wait_for_each_other_10000_times),
        WITH(set_up, timeouts_and_notifications_agree_on_who_was_notified),
    };
    return cmocka_run_group_tests_name("condition", tests, NULL, NULL);
}
