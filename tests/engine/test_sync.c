/* test_sync.c: sleeping and waking between processes, and looking before it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "shoal.h"
#include "sync/eventcount.h"
#include "sync/futex.h"
#include "sync/spin.h"

struct shared {
    struct eventcount changed, answered;
    _Atomic uint32_t word;
    _Atomic int64_t posted, taken;
    _Atomic uint32_t awake;
};

static struct shared *shared;

static int set_up(void **state)
{
    (void)state;
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    return shared == MAP_FAILED ? -1 : 0;
}

static int tear_down(void **state)
{
    (void)state;
    return munmap(shared, sizeof *shared);
}

static void expect_success(pid_t child)
{
    int status = -1;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

static void a_word_that_differs_is_not_slept_on(void **state)
{
    (void)state;
    assert_int_equal(futex_wait(&shared->word, 7, SHOAL_FOREVER), 0);
}

static void a_sleep_ends_at_its_deadline(void **state)
{
    (void)state;
    int64_t before = shoal_clock_now();
    assert_int_equal(futex_wait(&shared->word, 0, before + 20 * SHOAL_MILLISECOND), -ETIMEDOUT);
    assert_true(shoal_clock_now() - before >= 20 * SHOAL_MILLISECOND);
    assert_int_equal(futex_wait(&shared->word, 0, before), -ETIMEDOUT);
    assert_int_equal(futex_wait(&shared->word, 0, -1), -ETIMEDOUT);
    uint32_t seen = eventcount_prepare(&shared->changed);
    assert_int_equal(eventcount_wait(&shared->changed, seen, clock_deadline(SHOAL_MILLISECOND)), -ETIMEDOUT);
}

static void nothing(int signal_number)
{
    (void)signal_number;
}

static void a_signal_ends_a_sleep(void **state)
{
    (void)state;
    struct sigaction action = {.sa_handler = nothing}, old;
    sigaction(SIGALRM, &action, &old);
    struct itimerval timer = {.it_value = {.tv_usec = 20000}};
    uint32_t seen = eventcount_prepare(&shared->changed);
    setitimer(ITIMER_REAL, &timer, NULL);
    assert_int_equal(eventcount_wait(&shared->changed, seen, clock_deadline(10 * SHOAL_SECOND)), -EINTR);
    sigaction(SIGALRM, &old, NULL);
    alarm(60);
}

static void nobody_is_woken_where_nobody_sleeps(void **state)
{
    (void)state;
    assert_false(eventcount_has_sleepers(&shared->changed));
    assert_false(eventcount_notify_one(&shared->changed));
    assert_false(eventcount_notify_all(&shared->changed));
}

static void a_notification_after_prepare_is_not_lost(void **state)
{
    (void)state;
    uint32_t seen = eventcount_prepare(&shared->changed);
    assert_true(eventcount_has_sleepers(&shared->changed));
    assert_true(eventcount_notify_one(&shared->changed));
    assert_int_equal(eventcount_wait(&shared->changed, seen, SHOAL_FOREVER), 0);
}

static void a_burst_of_notifications_makes_one_system_call(void **state)
{
    (void)state;
    eventcount_prepare(&shared->changed);
    assert_true(eventcount_notify_one(&shared->changed));
    for (int i = 0; i < 100; i++)
        assert_false(eventcount_notify_one(&shared->changed));
}

static void all_sleepers_wake_on_notify_all(void **state)
{
    (void)state;
    pid_t children[4];
    for (int i = 0; i < 4; i++) {
        children[i] = fork();
        if (children[i] == 0) {
            uint32_t seen = eventcount_prepare(&shared->changed);
            atomic_fetch_add(&shared->awake, 1);
            _exit(eventcount_wait(&shared->changed, seen, clock_deadline(20 * SHOAL_SECOND)) == 0 ? 0 : 1);
        }
    }
    while (atomic_load(&shared->awake) < 4)
        usleep(1000);
    usleep(20000);
    eventcount_notify_all(&shared->changed);
    for (int i = 0; i < 4; i++)
        expect_success(children[i]);
}

/* Two sleepers, two notifications one after the other: the first woken must leave the bit set for the second. */
static void who_is_woken_leaves_the_others_to_be_woken(void **state)
{
    (void)state;
    pid_t children[3];
    for (int i = 0; i < 3; i++) {
        children[i] = fork();
        if (children[i] == 0) {
            uint32_t seen = eventcount_prepare(&shared->changed);
            atomic_fetch_add(&shared->taken, 1);
            int result = eventcount_wait(&shared->changed, seen, clock_deadline(20 * SHOAL_SECOND));
            atomic_fetch_add(&shared->awake, 1);
            _exit(result == 0 ? 0 : 1);
        }
    }
    while (atomic_load(&shared->taken) < 3)
        usleep(1000);
    usleep(20000);
    for (uint32_t i = 1; i <= 3; i++) {
        assert_true(eventcount_notify_one(&shared->changed));
        while (atomic_load(&shared->awake) < i)
            usleep(1000);
    }
    for (int i = 0; i < 3; i++)
        expect_success(children[i]);
}

/* One posts numbers and waits for each to be taken, the other takes: a lost wake would stop both until the alarm. */
static void no_wake_is_lost_in_100000_hand_overs(void **state)
{
    (void)state;
    enum { ROUNDS = 100000 };
    static struct spin_budget budget = SPIN_INITIALIZER;
    pid_t child = fork();
    for (int64_t i = 1; i <= ROUNDS; i++) {
        _Atomic int64_t *mine = child == 0 ? &shared->taken : &shared->posted;
        _Atomic int64_t *theirs = child == 0 ? &shared->posted : &shared->taken;
        struct eventcount *tell = child == 0 ? &shared->answered : &shared->changed;
        struct eventcount *listen = child == 0 ? &shared->changed : &shared->answered;
        if (child != 0) {
            atomic_store_explicit(mine, i, memory_order_release);
            eventcount_notify_one(tell);
        }
        for (;;) {
            bool ready;
            struct spin spin = spin_begin(&budget, SPIN_UNKNOWN_CPU);
            if (i % 64 == 0)
                spin.deadline = spin.started; /* sleep at once now and then */
            while (!(ready = atomic_load_explicit(theirs, memory_order_acquire) >= i) && spin_again(&spin)) {
            }
            spin_end(&spin, ready);
            if (ready)
                break;
            uint32_t seen = eventcount_prepare(listen);
            if (atomic_load_explicit(theirs, memory_order_acquire) >= i)
                break;
            eventcount_wait(listen, seen, SHOAL_FOREVER);
        }
        if (child == 0) {
            atomic_store_explicit(mine, i, memory_order_release);
            eventcount_notify_one(tell);
        }
    }
    if (child == 0)
        _exit(0);
    expect_success(child);
}

static void a_look_is_bounded_and_shrinks_where_it_does_not_help(void **state)
{
    (void)state;
    struct spin_budget budget = SPIN_INITIALIZER;
    for (int i = 0; i < 50; i++) {
        struct spin spin = spin_begin(&budget, SPIN_UNKNOWN_CPU);
        while (spin_again(&spin)) {
        }
        assert_true(spin.deadline - spin.started <= SPIN_MOST);
        spin_end(&spin, false);
    }
    assert_int_equal(budget.limit, SPIN_LEAST);
    for (int i = 0; i < 100; i++) {
        struct spin spin = {.budget = &budget, .turns = 1};
        spin_end(&spin, true);
    }
    assert_int_equal(budget.limit, SPIN_MOST);
}

/* Out: the cpus that the process may use besides, to be given back to it. */
static cpu_set_t stay_on_this_cpu(void)
{
    cpu_set_t all, one;
    assert_int_equal(sched_getaffinity(0, sizeof all, &all), 0);
    CPU_ZERO(&one);
    CPU_SET((size_t)spin_current_cpu(), &one);
    assert_int_equal(sched_setaffinity(0, sizeof one, &one), 0);
    return all;
}

static void there_is_no_look_on_the_peers_own_cpu(void **state)
{
    (void)state;
    const cpu_set_t all = stay_on_this_cpu();
    struct spin_budget budget = SPIN_INITIALIZER;
    struct spin spin = spin_begin(&budget, spin_current_cpu());
    assert_false(spin_again(&spin));
    spin_end(&spin, false);
    assert_int_equal(budget.limit, SPIN_FIRST); /* nothing learnt */
    assert_int_equal(sched_setaffinity(0, sizeof all, &all), 0);
}

static void a_pinned_process_looks_for_a_peer_on_another_cpu(void **state)
{
    (void)state;
    const cpu_set_t all = stay_on_this_cpu();
    struct spin_budget budget = SPIN_INITIALIZER;
    struct spin spin = spin_begin(&budget, spin_current_cpu() + 1);
    assert_true(spin_again(&spin));
    assert_int_equal(sched_setaffinity(0, sizeof all, &all), 0);
}

/* Two sides that both sleep before each answer get out of it only by a look that outlasts the other's waking. */
static void of_short_looks_one_in_some_is_as_long_as_any_may_be(void **state)
{
    (void)state;
    enum { LOOKS = 100000 };
    int shortest = 0, longest = 0;
    for (int i = 0; i < LOOKS; i++) {
        struct spin_budget budget = {SPIN_LEAST};
        const struct spin spin = spin_begin(&budget, spin_current_cpu() + 1);
        const int64_t length = spin.deadline - spin.started;
        shortest += length == SPIN_LEAST;
        longest += length == SPIN_MOST;
    }
    assert_true(shortest > LOOKS / 2);
    assert_in_range(longest, 1, LOOKS / 8);
}

static void objects_of_a_group_are_found_by_their_places_also_by_a_child(void **state)
{
    (void)state;
    shoal_sync_group *group, *attached;
    assert_int_equal(shoal_sync_group_create(&group), 0);
    assert_int_equal(shoal_sync_group_attach(shoal_sync_group_fd(group), &attached), 0);
    shoal_lock *lock, *same_lock;
    shoal_semaphore *semaphore, *same_semaphore;
    shoal_event *event, *same_event;
    const shoal_semaphore_options one = {.value = 1};
    assert_int_equal(shoal_lock_create_in(group, NULL, &lock), 0);
    assert_int_equal(shoal_semaphore_create_in(attached, &one, &semaphore), 0);
    assert_int_equal(shoal_event_create_in(group, &event), 0);
    assert_int_equal(shoal_lock_place(lock), 1);
    assert_int_equal(shoal_semaphore_place(semaphore), 2);
    assert_int_equal(shoal_event_place(event), 3);
    assert_int_equal(shoal_lock_fd(lock), shoal_sync_group_fd(group));
    assert_int_equal(shoal_lock_attach_in(attached, 1, &same_lock), 0);
    assert_int_equal(shoal_semaphore_attach_in(group, 2, &same_semaphore), 0);
    assert_int_equal(shoal_event_attach_in(attached, 3, &same_event), 0);
    assert_int_equal(shoal_lock_acquire(lock, 0), 0);
    assert_int_equal(shoal_lock_acquire(same_lock, 0), -ETIMEDOUT);
    assert_int_equal(shoal_semaphore_acquire(semaphore, 0), 0);
    assert_int_equal(shoal_semaphore_value(same_semaphore), 0);
    const pid_t child = fork();
    if (child == 0) {
        shoal_event_set(event);
        _exit(shoal_lock_release(lock));
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    assert_int_equal(shoal_event_is_set(same_event), 1);
    assert_int_equal(shoal_lock_acquire(same_lock, 0), 0);

    /* No place is another kind's, or out of the group; what is too large is refused. */
    shoal_lock *none;
    shoal_semaphore *owned;
    assert_int_equal(shoal_lock_attach_in(group, 0, &none), -EINVAL);
    assert_int_equal(shoal_lock_attach_in(group, 128, &none), -EINVAL);
    assert_int_equal(shoal_lock_attach_in(group, 2, &none), SHOAL_ECORRUPT);
    assert_int_equal(shoal_lock_attach_in(group, 4, &none), SHOAL_ECORRUPT);
    assert_int_equal(shoal_lock_attach(shoal_lock_fd(lock), &none), SHOAL_ECORRUPT);
    assert_int_equal(shoal_sync_group_attach(-1, &attached), -EBADF);
    const shoal_semaphore_options options = {.value = 1, .flags = SHOAL_SEMAPHORE_OWNED};
    assert_int_equal(shoal_semaphore_create_in(group, &options, &owned), -EMSGSIZE);

    shoal_lock_close(same_lock);
    shoal_semaphore_close(same_semaphore);
    shoal_event_close(same_event);
    shoal_lock_close(lock);
    shoal_semaphore_close(semaphore);
    shoal_event_close(event);
    shoal_sync_group_close(attached);
    shoal_sync_group_close(group);
}

static void a_full_group_says_so(void **state)
{
    (void)state;
    shoal_sync_group *group;
    shoal_event *events[127], *more;
    assert_int_equal(shoal_sync_group_create(&group), 0);
    for (int i = 0; i < 127; i++)
        assert_int_equal(shoal_event_create_in(group, &events[i]), 0);
    for (int i = 0; i < 3; i++)
        assert_int_equal(shoal_event_create_in(group, &more), -ENOSPC);
    shoal_event_set(events[126]);
    assert_int_equal(shoal_event_is_set(events[125]), 0);
    for (int i = 0; i < 127; i++)
        shoal_event_close(events[i]);
    shoal_sync_group_close(group);
}

static void conditions_tell_the_locks_of_a_group_apart(void **state)
{
    (void)state;
    shoal_sync_group *group;
    shoal_lock *first, *second;
    shoal_condition *condition, *none;
    assert_int_equal(shoal_sync_group_create(&group), 0);
    assert_int_equal(shoal_lock_create_in(group, NULL, &first), 0);
    assert_int_equal(shoal_lock_create_in(group, NULL, &second), 0);
    assert_int_equal(shoal_condition_create(first, &condition), 0);
    assert_int_equal(shoal_condition_attach(shoal_condition_fd(condition), second, &none), -EINVAL);
    shoal_condition_close(condition);
    shoal_lock_close(first);
    shoal_lock_close(second);
    shoal_sync_group_close(group);
}

int main(void)
{
#define SHARED(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        SHARED(a_word_that_differs_is_not_slept_on),
        SHARED(a_sleep_ends_at_its_deadline),
        SHARED(a_signal_ends_a_sleep),
        SHARED(nobody_is_woken_where_nobody_sleeps),
        SHARED(a_notification_after_prepare_is_not_lost),
        SHARED(a_burst_of_notifications_makes_one_system_call),
        SHARED(all_sleepers_wake_on_notify_all),
        SHARED(who_is_woken_leaves_the_others_to_be_woken),
        SHARED(no_wake_is_lost_in_100000_hand_overs),
        SHARED(a_look_is_bounded_and_shrinks_where_it_does_not_help),
        SHARED(there_is_no_look_on_the_peers_own_cpu),
        SHARED(a_pinned_process_looks_for_a_peer_on_another_cpu),
        SHARED(of_short_looks_one_in_some_is_as_long_as_any_may_be),
        cmocka_unit_test(objects_of_a_group_are_found_by_their_places_also_by_a_child),
        cmocka_unit_test(a_full_group_says_so),
        cmocka_unit_test(conditions_tell_the_locks_of_a_group_apart),
    };
    alarm(60);
    return cmocka_run_group_tests_name("sync", tests, NULL, NULL);
}
