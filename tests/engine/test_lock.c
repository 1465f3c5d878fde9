/* test_lock.c: the lock between threads and processes: who gets it, who may release it, and what a death leaves. */
#define LIMIT 30
#include "helpers.h"

#include <pthread.h>
#include <sched.h>

struct shared {
    _Atomic uint32_t inside, errors, ready, inherited;
    _Atomic uint64_t turns;
    _Atomic int64_t time;
    uint64_t count; /* not atomic: the lock guards it */
};

static struct shared *shared;
static shoal_lock *lock;

static int set_up(void **state)
{
    start_clock(state);
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    return shared == MAP_FAILED ? -1 : shoal_lock_create(NULL, &lock);
}

static int set_up_with(void **state, uint32_t flags)
{
    start_clock(state);
    const shoal_lock_options options = {flags};
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    return shared == MAP_FAILED ? -1 : shoal_lock_create(&options, &lock);
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
    shoal_lock_close(lock);
    munmap(shared, sizeof *shared);
    alarm(0);
    return 0;
}

static void wait_until_ready(uint32_t count)
{
    while (atomic_load(&shared->ready) < count)
        sleep_for(SHOAL_MILLISECOND);
}

static shoal_lock_holder look(void)
{
    shoal_lock_holder holder;
    shoal_lock_look(lock, &holder);
    return holder;
}

/* ------------------------------------------------------------------ one process ---- */

static void a_free_lock_is_taken_at_once_and_says_who_holds_it(void **state)
{
    (void)state;
    assert_int_equal(look().pid, 0);
    assert_int_equal(look().count, 0);
    assert_int_equal(look().is_mine, 0);
    assert_int_equal(shoal_lock_acquire(lock, 0), 0);
    assert_int_equal(look().pid, getpid());
    assert_int_equal(look().thread, gettid());
    assert_int_equal(look().count, 1);
    assert_int_equal(look().is_mine, 1);
    assert_int_equal(look().died, 0);
    assert_int_equal(shoal_lock_release(lock), 0);
    assert_int_equal(look().pid, 0);
}

static void a_held_lock_is_not_given_and_the_timeout_is_kept(void **state)
{
    (void)state;
    assert_int_equal(shoal_lock_acquire(lock, SHOAL_FOREVER), 0);
    assert_int_equal(shoal_lock_acquire(lock, 0), -ETIMEDOUT);
    assert_int_equal(shoal_lock_acquire(lock, -1), -ETIMEDOUT);
    int64_t before = shoal_clock_now();
    assert_int_equal(shoal_lock_acquire(lock, 30 * SHOAL_MILLISECOND), -ETIMEDOUT);
    int64_t took = shoal_clock_now() - before;
    assert_true(took >= 30 * SHOAL_MILLISECOND && took < 5 * SHOAL_SECOND);
    assert_int_equal(shoal_lock_release(lock), 0);
}

static void releasing_a_free_lock_is_an_error(void **state)
{
    (void)state;
    assert_int_equal(shoal_lock_release(lock), -EINVAL);
    assert_int_equal(shoal_lock_acquire(lock, 0), 0);
    assert_int_equal(shoal_lock_release(lock), 0);
    assert_int_equal(shoal_lock_release(lock), -EINVAL);
    assert_int_equal(shoal_lock_reset(lock), 0);
}

static void unknown_flags_are_refused(void **state)
{
    (void)state;
    const shoal_lock_options options = {64};
    shoal_lock *other = NULL;
    assert_int_equal(shoal_lock_create(&options, &other), -EINVAL);
    assert_null(other);
    shoal_lock_close(NULL);
}

static void what_is_no_lock_is_not_attached(void **state)
{
    (void)state;
    shoal_lock *other = NULL;
    shoal_region *region;
    assert_int_equal(shoal_region_create("not-a-lock", 4096, &region), 0);
    assert_int_equal(shoal_lock_attach(shoal_region_fd(region), &other), SHOAL_ECORRUPT);
    shoal_region_close(region);
    shoal_event *event;
    assert_int_equal(shoal_event_create(&event), 0);
    assert_int_equal(shoal_lock_attach(shoal_event_fd(event), &other), SHOAL_ECORRUPT);
    shoal_event_close(event);
    /* A region with its first bytes overwritten, one field at a time. */
    assert_int_equal(shoal_region_attach(shoal_lock_fd(lock), &region), 0);
    uint32_t *words = shoal_region_base(region);
    for (int i = 0; i < 7; i++) {
        uint32_t old = words[i];
        words[i] ^= 0x40000000;
        assert_int_equal(shoal_lock_attach(shoal_lock_fd(lock), &other), SHOAL_ECORRUPT);
        words[i] = old;
    }
    assert_int_equal(shoal_lock_attach(shoal_lock_fd(lock), &other), 0);
    shoal_lock_close(other);
    shoal_region_close(region);
    assert_int_equal(shoal_lock_attach(-1, &other), -EBADF);
}

static void *release_it(void *unused)
{
    (void)unused;
    return (void *)(intptr_t)shoal_lock_release(lock);
}

static void a_thread_releases_what_another_acquired(void **state)
{
    (void)state;
    pthread_t thread;
    void *result;
    assert_int_equal(shoal_lock_acquire(lock, 0), 0);
    pthread_create(&thread, NULL, release_it, NULL);
    pthread_join(thread, &result);
    assert_int_equal((intptr_t)result, 0);
    assert_int_equal(look().pid, 0);
}

static void *count_up(void *unused)
{
    (void)unused;
    for (int i = 0; i < 20000; i++) {
        if (shoal_lock_acquire(lock, SHOAL_FOREVER) != 0)
            atomic_fetch_add(&shared->errors, 1);
        shared->count++;
        if (shoal_lock_release(lock) != 0)
            atomic_fetch_add(&shared->errors, 1);
    }
    return NULL;
}

static void threads_exclude_each_other(void **state)
{
    (void)state;
    pthread_t threads[4];
    for (int i = 0; i < 4; i++)
        pthread_create(&threads[i], NULL, count_up, NULL);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(shared->errors, 0);
    assert_int_equal(shared->count, 80000);
}

/* ------------------------------------------------------------------- processes ---- */

static int count_in_child(void *unused)
{
    count_up(unused);
    return (int)atomic_load(&shared->errors);
}

static void processes_exclude_each_other(void **state)
{
    (void)state;
    pid_t children[4];
    for (int i = 0; i < 4; i++)
        children[i] = start_child("counting", count_in_child, NULL);
    for (int i = 0; i < 4; i++)
        child_ends_well(children[i]);
    assert_int_equal(shared->count, 80000);
}

static int attach_and_take(void *context)
{
    shoal_lock *own;
    int fd = *(int *)context;
    CHECK(shoal_lock_attach(fd, &own) == 0);
    shoal_lock_holder holder;
    shoal_lock_look(own, &holder);
    CHECK(holder.pid == getppid() && holder.is_mine == 0);
    atomic_store(&shared->ready, 1);
    CHECK(shoal_lock_acquire(own, SHOAL_FOREVER) == 0);
    CHECK(shoal_lock_release(own) == 0);
    shoal_lock_close(own);
    return 0;
}

static void another_process_attaches_by_descriptor(void **state)
{
    (void)state;
    int fd = shoal_lock_fd(lock);
    assert_int_equal(shoal_lock_acquire(lock, 0), 0);
    pid_t child = start_child("attaching", attach_and_take, &fd);
    wait_until_ready(1);
    sleep_for(20 * SHOAL_MILLISECOND);
    assert_int_equal(shoal_lock_release(lock), 0);
    child_ends_well(child);
    assert_int_equal(look().pid, 0);
}

static int child_of_the_holder(void *unused)
{
    (void)unused;
    CHECK(look().is_mine == 0);
    CHECK(look().pid == getppid());
    CHECK(shoal_lock_acquire(lock, 0) == -ETIMEDOUT);
    return shoal_lock_release(lock); /* any process may */
}

static void a_child_of_fork_does_not_hold_it_but_may_release_it(void **state)
{
    (void)state;
    assert_int_equal(shoal_lock_acquire(lock, 0), 0);
    child_ends_well(start_child("releasing", child_of_the_holder, NULL));
    assert_int_equal(look().pid, 0);
}

static void nothing(int number)
{
    (void)number;
}

static int interrupted_child(void *unused)
{
    (void)unused;
    struct sigaction action = {.sa_handler = nothing};
    sigaction(SIGUSR1, &action, NULL);
    atomic_store(&shared->ready, 1);
    CHECK(shoal_lock_acquire(lock, SHOAL_FOREVER) == -EINTR);
    atomic_store(&shared->ready, 2);
    CHECK(shoal_lock_acquire(lock, SHOAL_FOREVER) == 0);
    return shoal_lock_release(lock);
}

static void a_signal_ends_a_wait_which_can_be_repeated(void **state)
{
    (void)state;
    assert_int_equal(shoal_lock_acquire(lock, 0), 0);
    pid_t child = start_child("being interrupted", interrupted_child, NULL);
    wait_until_ready(1);
    sleep_for(20 * SHOAL_MILLISECOND);
    do {
        kill(child, SIGUSR1); /* again, as the first may come before the sleep */
        sleep_for(50 * SHOAL_MILLISECOND);
    } while (atomic_load(&shared->ready) < 2);
    assert_int_equal(shoal_lock_release(lock), 0);
    child_ends_well(child);
}

/* --------------------------------------------------------------------- recursive ---- */

static void *try_it(void *unused)
{
    (void)unused;
    assert_int_equal(shoal_lock_release(lock), -EPERM);
    return (void *)(intptr_t)shoal_lock_acquire(lock, 0);
}

static void a_recursive_lock_is_released_as_often_as_acquired(void **state)
{
    (void)state;
    assert_int_equal(shoal_lock_release(lock), -EPERM);
    for (uint32_t i = 1; i <= 3; i++) {
        assert_int_equal(shoal_lock_acquire(lock, SHOAL_FOREVER), 0);
        assert_int_equal(look().count, i);
    }
    pthread_t thread;
    void *result;
    for (int i = 0; i < 3; i++) {
        pthread_create(&thread, NULL, try_it, NULL);
        pthread_join(thread, &result);
        assert_int_equal((intptr_t)result, -ETIMEDOUT);
        assert_int_equal(shoal_lock_release(lock), 0);
    }
    assert_int_equal(look().pid, 0);
    assert_int_equal(shoal_lock_release(lock), -EPERM);
}

static int child_of_the_recursive_holder(void *unused)
{
    (void)unused;
    CHECK(look().is_mine == 0 && look().count == 2);
    CHECK(shoal_lock_acquire(lock, 0) == -ETIMEDOUT);
    CHECK(shoal_lock_release(lock) == -EPERM);
    return 0;
}

static void a_child_of_fork_is_not_the_recursive_owner(void **state)
{
    (void)state;
    assert_int_equal(shoal_lock_acquire(lock, 0), 0);
    assert_int_equal(shoal_lock_acquire(lock, 0), 0);
    child_ends_well(start_child("not owning", child_of_the_recursive_holder, NULL));
    assert_int_equal(shoal_lock_release(lock), 0);
    assert_int_equal(shoal_lock_release(lock), 0);
    assert_int_equal(shoal_lock_release(lock), -EPERM);
}

/* -------------------------------------------------------------------------- deaths ---- */

static int hold_until_killed(void *unused)
{
    (void)unused;
    CHECK(shoal_lock_acquire(lock, SHOAL_FOREVER) >= 0);
    atomic_fetch_add(&shared->ready, 1);
    for (;;)
        pause();
}

static void kill_a_holder(void)
{
    atomic_store(&shared->ready, 0);
    pid_t child = start_child("holding", hold_until_killed, NULL);
    wait_until_ready(1);
    kill_and_reap(child);
}

static void the_owners_death_is_told_to_all_until_the_reset(void **state)
{
    (void)state;
    kill_a_holder();
    for (int i = 0; i < 3; i++)
        assert_int_equal(shoal_lock_acquire(lock, SHOAL_FOREVER), SHOAL_EOWNERDIED);
    assert_int_equal(shoal_lock_acquire(lock, 0), SHOAL_EOWNERDIED);
    assert_int_equal(look().died, 1);
    assert_true(look().pid > 0);
    assert_int_equal(shoal_lock_reset(lock), 0);
    assert_int_equal(shoal_lock_acquire(lock, 0), 0);
    assert_int_equal(shoal_lock_reset(lock), -EBUSY);
    assert_int_equal(shoal_lock_release(lock), 0);
}

static void who_only_tries_learns_of_the_death_too(void **state)
{
    (void)state;
    kill_a_holder();
    int64_t before = shoal_clock_now();
    int result;
    while ((result = shoal_lock_acquire(lock, 0)) == -ETIMEDOUT)
        assert_true(shoal_clock_now() - before < SHOAL_SECOND);
    assert_int_equal(result, SHOAL_EOWNERDIED);
    /* The same with a timeout that is shorter than a slice. */
    assert_int_equal(shoal_lock_reset(lock), 0);
    kill_a_holder();
    assert_int_equal(shoal_lock_acquire(lock, SHOAL_MILLISECOND), SHOAL_EOWNERDIED);
}

static void releasing_for_a_dead_owner_frees_the_lock(void **state)
{
    (void)state;
    kill_a_holder();
    assert_int_equal(shoal_lock_acquire(lock, SHOAL_FOREVER), SHOAL_EOWNERDIED);
    assert_int_equal(shoal_lock_release(lock), 0);
    assert_int_equal(shoal_lock_acquire(lock, 0), 0);
}

static void a_corpse_that_nobody_reaped_is_dead(void **state)
{
    (void)state;
    pid_t child = start_child("holding", hold_until_killed, NULL);
    wait_until_ready(1);
    kill(child, SIGKILL);
    assert_int_equal(shoal_lock_acquire(lock, SHOAL_FOREVER), SHOAL_EOWNERDIED);
    assert_int_equal(waitpid(child, NULL, 0), child);
}

static int wait_for_the_news(void *unused)
{
    (void)unused;
    atomic_fetch_add(&shared->ready, 1);
    int result = shoal_lock_acquire(lock, SHOAL_FOREVER);
    int64_t took = shoal_clock_now() - atomic_load(&shared->time);
    CHECK(result == SHOAL_EOWNERDIED);
    CHECK(took < 1500 * SHOAL_MILLISECOND);
    return 0;
}

static void all_who_sleep_hear_of_the_death_in_half_a_second(void **state)
{
    (void)state;
    pid_t owner = start_child("holding", hold_until_killed, NULL);
    wait_until_ready(1);
    pid_t waiters[3];
    for (int i = 0; i < 3; i++)
        waiters[i] = start_child("waiting", wait_for_the_news, NULL);
    wait_until_ready(4);
    sleep_for(SHOAL_SECOND); /* their slices are long by now */
    atomic_store(&shared->time, shoal_clock_now());
    kill_and_reap(owner);
    for (int i = 0; i < 3; i++)
        child_ends_well(waiters[i]);
    int64_t took = shoal_clock_now() - atomic_load(&shared->time);
    printf("             sleepers of 1 s heard of the owner's death after %.0f ms\n", (double)took / 1e6);
}

static void a_robust_lock_goes_to_the_next_who_is_told(void **state)
{
    (void)state;
    kill_a_holder();
    int64_t before = shoal_clock_now();
    assert_int_equal(shoal_lock_acquire(lock, SHOAL_FOREVER), SHOAL_INHERITED);
    printf("             a fresh waiter got it %.1f ms after it began to wait\n",
           (double)(shoal_clock_now() - before) / 1e6);
    assert_int_equal(look().is_mine, 1);
    assert_int_equal(shoal_lock_release(lock), 0);
    assert_int_equal(shoal_lock_acquire(lock, 0), 0); /* told once */
    assert_int_equal(shoal_lock_release(lock), 0);
}

static void an_heir_that_dies_leaves_it_inherited_again(void **state)
{
    (void)state;
    kill_a_holder();
    kill_a_holder(); /* an heir, which holds it now */
    assert_int_equal(shoal_lock_acquire(lock, SHOAL_FOREVER), SHOAL_INHERITED);
    assert_int_equal(shoal_lock_release(lock), 0);
}

static int leave_the_leader(void *context)
{
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, (void *(*)(void *))context, NULL) == 0);
    pthread_exit(NULL);
}

static void *hold_in_a_thread(void *unused)
{
    (void)unused;
    CHECK(shoal_lock_acquire(lock, 0) == 0);
    atomic_store(&shared->ready, 1);
    sleep_for(300 * SHOAL_MILLISECOND);
    CHECK(shoal_lock_release(lock) == 0);
    _exit(0);
}

static void a_process_whose_first_thread_ended_still_lives(void **state)
{
    (void)state;
    pid_t child = start_child("holding in a thread", leave_the_leader, (void *)hold_in_a_thread);
    wait_until_ready(1);
    sleep_for(30 * SHOAL_MILLISECOND);
    assert_int_equal(shoal_lock_acquire(lock, SHOAL_FOREVER), 0);
    child_ends_well(child);
}

/* ---------------------------------------------------------------------- campaigns ---- */

#define WORKERS 3

static int work_robustly(void *unused)
{
    (void)unused;
    const uint32_t self = (uint32_t)getpid();
    for (;;) {
        int result = shoal_lock_acquire(lock, SHOAL_FOREVER);
        CHECK(result == 0 || result == SHOAL_INHERITED);
        uint32_t found = atomic_exchange(&shared->inside, self);
        CHECK(found == 0 || result == SHOAL_INHERITED);
        if (result == SHOAL_INHERITED)
            atomic_fetch_add(&shared->inherited, 1);
        shared->count++;
        atomic_fetch_add_explicit(&shared->turns, 1, memory_order_relaxed);
        CHECK(atomic_exchange(&shared->inside, 0) == self);
        CHECK(shoal_lock_release(lock) == 0);
    }
}

static void a_robust_lock_survives_kills_at_random_instants(void **state)
{
    (void)state;
    seed_random();
    pid_t children[WORKERS];
    for (int i = 0; i < WORKERS; i++)
        children[i] = start_child("working", work_robustly, NULL);
    int64_t begin = shoal_clock_now(), longest = 0;
    int kills = 0;
    while (shoal_clock_now() - begin < 4 * SHOAL_SECOND) {
        sleep_for((int64_t)random_below(3 * SHOAL_MILLISECOND));
        int victim = (int)random_below(WORKERS);
        kill_and_reap(children[victim]);
        kills++;
        children[victim] = start_child("working", work_robustly, NULL);
        if (kills % 4 == 0) {
            int64_t before = shoal_clock_now();
            int result = shoal_lock_acquire(lock, 10 * SHOAL_SECOND);
            int64_t took = shoal_clock_now() - before;
            longest = took > longest ? took : longest;
            CHECK(result == 0 || result == SHOAL_INHERITED);
            CHECK(atomic_load(&shared->inside) == 0 || result == SHOAL_INHERITED);
            if (result == SHOAL_INHERITED)
                atomic_fetch_add(&shared->inherited, 1);
            atomic_store(&shared->inside, 0);
            CHECK(shoal_lock_release(lock) == 0);
        }
    }
    for (int i = 0; i < WORKERS; i++)
        kill_and_reap(children[i]);
    printf("             %d kills, %llu turns, %u inherited, longest wait %.0f ms\n", kills,
           (unsigned long long)atomic_load(&shared->turns), atomic_load(&shared->inherited), (double)longest / 1e6);
    assert_true(longest < 2 * SHOAL_SECOND);
}

static int work_plainly(void *unused)
{
    (void)unused;
    const uint32_t self = (uint32_t)getpid();
    for (;;) {
        int result = shoal_lock_acquire(lock, SHOAL_FOREVER);
        if (result == SHOAL_EOWNERDIED) {
            sleep_for(SHOAL_MILLISECOND);
            continue;
        }
        CHECK(result == 0);
        CHECK(atomic_exchange(&shared->inside, self) == 0);
        atomic_fetch_add_explicit(&shared->turns, 1, memory_order_relaxed);
        CHECK(atomic_exchange(&shared->inside, 0) == self);
        CHECK(shoal_lock_release(lock) == 0);
    }
}

static void an_owners_kill_never_hangs_a_plain_lock(void **state)
{
    (void)state;
    seed_random();
    pid_t children[WORKERS];
    for (int i = 0; i < WORKERS; i++)
        children[i] = start_child("working", work_plainly, NULL);
    int64_t begin = shoal_clock_now(), longest = 0;
    int kills = 0, died = 0;
    while (shoal_clock_now() - begin < 4 * SHOAL_SECOND) {
        sleep_for((int64_t)random_below(3 * SHOAL_MILLISECOND));
        int victim = (int)random_below(WORKERS);
        kill_and_reap(children[victim]);
        kills++;
        int64_t before = shoal_clock_now();
        int result = shoal_lock_acquire(lock, 10 * SHOAL_SECOND);
        int64_t took = shoal_clock_now() - before;
        longest = took > longest ? took : longest;
        if (result == SHOAL_EOWNERDIED) {
            died++;
            atomic_store(&shared->inside, 0);
            CHECK(shoal_lock_reset(lock) == 0);
        } else {
            CHECK(result == 0);
            CHECK(atomic_load(&shared->inside) == 0);
            CHECK(shoal_lock_release(lock) == 0);
        }
        children[victim] = start_child("working", work_plainly, NULL);
    }
    for (int i = 0; i < WORKERS; i++)
        kill_and_reap(children[i]);
    printf("             %d kills, %llu turns, %d times the owner died, longest wait %.0f ms\n", kills,
           (unsigned long long)atomic_load(&shared->turns), died, (double)longest / 1e6);
    assert_true(longest < 2 * SHOAL_SECOND);
}

/* ------------------------------------------------------------------------- costs ---- */

/* Few: where both share a core, each may cost a slice of the scheduler's. */
enum { HAND_OVER_TURNS = 2000 };

static int hand_over(void *context)
{
    const uint32_t me = (uint32_t)(uintptr_t)context;
    for (;;) {
        CHECK(shoal_lock_acquire(lock, SHOAL_FOREVER) == 0);
        bool over = shared->count >= HAND_OVER_TURNS;
        if (shared->count % 2 == me)
            shared->count++;
        CHECK(shoal_lock_release(lock) == 0);
        if (over)
            return 0;
    }
}

static void an_uncontended_turn_costs_tens_of_nanoseconds(void **state)
{
    (void)state;
    enum { TURNS = 1000000 };
    int64_t best = INT64_MAX;
    for (int round = 0; round < 5; round++) {
        int64_t before = shoal_clock_now();
        for (int i = 0; i < TURNS; i++) {
            (void)shoal_lock_acquire(lock, SHOAL_FOREVER);
            (void)shoal_lock_release(lock);
        }
        int64_t took = shoal_clock_now() - before;
        best = took < best ? took : best;
    }
    printf("             acquire and release: %.1f ns\n", (double)best / TURNS);
    int64_t before = shoal_clock_now();
    pid_t child = start_child("handing over", hand_over, (void *)1);
    (void)hand_over(NULL);
    child_ends_well(child);
    printf("             two processes, by turns: %.0f ns a turn\n",
           (double)(shoal_clock_now() - before) / HAND_OVER_TURNS);
}

/* How long from a release to the sleeper that gets the lock. `ready` says whose move it is. */
enum { HAND_OVERS = 200, HELD = 1, WAITED_FOR = 2, HAD = 3 };

static void move_to(uint32_t step)
{
    while (atomic_load(&shared->ready) != step)
        sleep_for(20 * SHOAL_MICROSECOND);
}

static int be_woken(void *unused)
{
    (void)unused;
    for (int i = 0; i < HAND_OVERS; i++) {
        move_to(HELD);
        atomic_store(&shared->ready, WAITED_FOR);
        CHECK(shoal_lock_acquire(lock, SHOAL_FOREVER) == 0);
        atomic_fetch_add(&shared->turns, (uint64_t)(shoal_clock_now() - atomic_load(&shared->time)));
        CHECK(shoal_lock_release(lock) == 0);
        atomic_store(&shared->ready, HAD);
    }
    return 0;
}

static void a_sleeper_is_handed_the_lock(void **state)
{
    (void)state;
    pid_t child = start_child("sleeping", be_woken, NULL);
    for (int i = 0; i < HAND_OVERS; i++) {
        CHECK(shoal_lock_acquire(lock, SHOAL_FOREVER) == 0);
        atomic_store(&shared->ready, HELD);
        move_to(WAITED_FOR);
        sleep_for(SHOAL_MILLISECOND);
        atomic_store(&shared->time, shoal_clock_now());
        CHECK(shoal_lock_release(lock) == 0);
        move_to(HAD);
    }
    child_ends_well(child);
    printf("             from a release to a sleeper that has it: %.1f us\n",
           (double)atomic_load(&shared->turns) / HAND_OVERS / 1000.0);
}

int main(void)
{
#define WITH(set_up_function, name) cmocka_unit_test_setup_teardown(name, set_up_function, tear_down)
    const struct CMUnitTest tests[] = {
        WITH(set_up, a_free_lock_is_taken_at_once_and_says_who_holds_it),
        WITH(set_up, a_held_lock_is_not_given_and_the_timeout_is_kept),
        WITH(set_up, releasing_a_free_lock_is_an_error),
        WITH(set_up, unknown_flags_are_refused),
        WITH(set_up, what_is_no_lock_is_not_attached),
        WITH(set_up, processes_exclude_each_other),
        WITH(set_up, another_process_attaches_by_descriptor),
        WITH(set_up, a_child_of_fork_does_not_hold_it_but_may_release_it),
        WITH(set_up, a_signal_ends_a_wait_which_can_be_repeated),
        WITH(set_up_recursive, a_child_of_fork_is_not_the_recursive_owner),
        WITH(set_up, the_owners_death_is_told_to_all_until_the_reset),
        WITH(set_up_recursive, the_owners_death_is_told_to_all_until_the_reset),
        WITH(set_up, who_only_tries_learns_of_the_death_too),
        WITH(set_up, releasing_for_a_dead_owner_frees_the_lock),
        WITH(set_up, a_corpse_that_nobody_reaped_is_dead),
        WITH(set_up, all_who_sleep_hear_of_the_death_in_half_a_second),
        WITH(set_up_robust, a_robust_lock_goes_to_the_next_who_is_told),
        WITH(set_up_robust, an_heir_that_dies_leaves_it_inherited_again),
        WITH(set_up, a_process_whose_first_thread_ended_still_lives),
        WITH(set_up_robust, a_robust_lock_survives_kills_at_random_instants),
        WITH(set_up, an_owners_kill_never_hangs_a_plain_lock),
        WITH(set_up, an_uncontended_turn_costs_tens_of_nanoseconds),
        WITH(set_up, a_sleeper_is_handed_the_lock),
        WITH(set_up, a_thread_releases_what_another_acquired),
        WITH(set_up, threads_exclude_each_other),
        WITH(set_up_recursive, a_recursive_lock_is_released_as_often_as_acquired),
    };
    return cmocka_run_group_tests_name("lock", tests, NULL, NULL);
}
