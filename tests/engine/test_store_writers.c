/* test_store_writers.c: small entries with several at work on the same shelf: threads, processes, children of fork, and
 * such as are killed. What a put returned for is found. Each prints its seed and counts. */
#include "store_place.h"

#include <pthread.h>
#include <stdatomic.h>

static unsigned begin_with_seed(void)
{
    unsigned seed = (unsigned)time(NULL) ^ (unsigned)getpid() << 12;
    print_message("seed %u\n", seed);
    return seed;
}

static shoal_key key_of(const struct place *place, unsigned number)
{
    shoal_key key = place->key;
    memcpy(key.bytes, &number, sizeof number);
    return key;
}

static void wait_for(pid_t child)
{
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
}

/* ---- threads ---- */

/* A sanitiser's own allocator has spin locks that stay taken in a child that is forked while another thread allocates:
 * its first malloc then waits for ever (seen under both). The C library's own malloc is sound in a child. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define FORKS 0
#else
#define FORKS 60
#endif

enum { THREADS = 4, OWN = 6 };

struct worker {
    struct place *place;
    unsigned number, turns;
    _Atomic bool *stop;
    int error;
};

/* Puts, gets and removes keys of its own, which so must be as it left them. */
static void *work(void *context)
{
    struct worker *worker = context;
    size_t sizes[OWN] = {0};
    unsigned seed = worker->number * 7919 + 1;
    for (unsigned turn = 0; worker->error == 0 && !atomic_load(worker->stop); turn++) {
        unsigned which = (unsigned)rand_r(&seed) % OWN;
        shoal_key key = key_of(worker->place, worker->number * 100 + which);
        shoal_entry *entry;
        int what = rand_r(&seed) % 10, error;
        if (what < 5) {
            sizes[which] = 1 + (size_t)rand_r(&seed) % (what == 0 ? 8000 : 1000);
            error = put_pattern(worker->place->folder, &key, sizes[which]);
        } else if (what == 5) {
            error = shoal_folder_remove(worker->place->folder, &key);
            error = error == (sizes[which] != 0 ? 0 : -ENOENT) ? 0 : 1;
            sizes[which] = 0;
        } else {
            error = shoal_folder_get(worker->place->folder, &key, &entry);
            if (error == 0) {
                shoal_part part;
                error = shoal_entry_part(entry, 1, &part) != 0 || part.size != sizes[which] ||
                        ((const uint8_t *)part.data)[part.size - 1] != pattern(&key, part.size, part.size - 1);
                shoal_entry_close(entry);
            } else if (error == -ENOENT && sizes[which] == 0) {
                error = 0;
            }
        }
        worker->error = error;
        worker->turns++;
    }
    return NULL;
}

static void threads_and_children_of_fork_use_the_same_handle(void **state)
{
    struct place *place = *state;
    struct worker workers[THREADS];
    pthread_t threads[THREADS];
    _Atomic bool stop = false;
    shoal_key shared = key_of(place, 9999);
    unsigned seed = begin_with_seed(), turns = 0;
    assert_int_equal(put_pattern(place->folder, &shared, SMALL), 0);
    for (unsigned i = 0; i < THREADS; i++) {
        workers[i] = (struct worker){.place = place, .number = i, .stop = &stop};
        assert_int_equal(pthread_create(&threads[i], NULL, work, &workers[i]), 0);
    }
    for (int i = 0; i < 200; i++) { /* a fork finds the index, the guard and the lock in any state */
        struct timespec rest = {.tv_nsec = (long)((unsigned)rand_r(&seed) % 1000000)};
        (void)nanosleep(&rest, NULL);
        if (i >= FORKS)
            continue;
        pid_t child = fork();
        if (child == 0) {
            (void)alarm(20);
            shoal_key own = key_of(place, 5000 + (unsigned)i);
            _exit(get_pattern(place->folder, &shared, NULL) != 0   ? 1
                  : put_pattern(place->folder, &own, SMALL) != 0   ? 2
                  : get_pattern(place->folder, &own, NULL) != 0    ? 3
                  : shoal_folder_remove(place->folder, &own) != 0  ? 4
                  : get_pattern(place->folder, &shared, NULL) != 0 ? 5
                                                                   : 0);
        }
        wait_for(child);
    }
    atomic_store(&stop, true);
    for (unsigned i = 0; i < THREADS; i++) {
        (void)pthread_join(threads[i], NULL);
        assert_int_equal(workers[i].error, 0);
        turns += workers[i].turns;
    }
    print_message("%d forks, %u calls of %d threads\n", FORKS, turns, THREADS);
}

/* ---- processes ---- */

/* Puts, replaces and removes keys of its own until the time is over; 0 if each was as it left it. */
static int use_own_keys(struct place *place, unsigned number, unsigned seed, unsigned *puts)
{
    enum { KEYS = 40 };
    size_t sizes[KEYS] = {0};
    int64_t until = (int64_t)time(NULL) + 3;
    while ((int64_t)time(NULL) < until) {
        unsigned which = (unsigned)rand_r(&seed) % KEYS;
        shoal_key key = key_of(place, number * 1000 + which);
        if (rand_r(&seed) % 10 == 0) {
            int error = shoal_folder_remove(place->folder, &key);
            if (error != (sizes[which] != 0 ? 0 : -ENOENT))
                return 1;
            sizes[which] = 0;
        } else {
            sizes[which] = 1 + (size_t)rand_r(&seed) % 1500;
            if (put_pattern(place->folder, &key, sizes[which]) != 0)
                return 2;
            ++*puts;
        }
        which = (unsigned)rand_r(&seed) % KEYS;
        key = key_of(place, number * 1000 + which);
        size_t size = 0;
        int error = get_pattern(place->folder, &key, &size);
        if (error != (sizes[which] != 0 ? 0 : -ENOENT) || size != sizes[which])
            return 3;
    }
    for (unsigned which = 0; which < KEYS; which++) {
        shoal_key key = key_of(place, number * 1000 + which);
        size_t size = 0;
        (void)get_pattern(place->folder, &key, &size);
        if (size != sizes[which])
            return 4;
    }
    return 0;
}

static void no_put_is_lost_while_the_file_is_made_anew_under_the_writers(void **state)
{
    struct place *place = *state;
    enum { PROCESSES = 4 };
    unsigned *puts = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pid_t children[PROCESSES];
    unsigned seed = begin_with_seed(), anew = 0, all = 0;
    for (unsigned p = 0; p < PROCESSES; p++) {
        children[p] = fork();
        if (children[p] == 0) {
            if (p % 2 == 0)
                reopen_place(place, 0);
            _exit(use_own_keys(place, p, seed + p, &puts[p]));
        }
    }
    ino_t last = 0;
    for (unsigned p = 0; p < PROCESSES;) {
        struct stat status;
        struct timespec rest = {.tv_nsec = 100000};
        if (stat(place->shelf, &status) == 0 && status.st_ino != last) {
            anew++;
            last = status.st_ino;
        }
        int code;
        (void)nanosleep(&rest, NULL);
        if (waitpid(children[p], &code, WNOHANG) == children[p]) {
            assert_int_equal(code, 0);
            all += puts[p++];
        }
    }
    print_message("%u puts of %u processes, %u files seen one after the other\n", all, PROCESSES, anew);
    assert_true(anew > 2);
    assert_int_equal(files_below(place->path), 1);
    (void)munmap(puts, 4096);
}

/* What a writer that will be killed has done, in memory that outlives it. */
struct log {
    size_t done[16], begun[16]; /* the size of the last put of a key that returned, and of the last that began */
    unsigned puts;
};

static void killed_writers_lose_nothing_that_a_put_returned_for(void **state)
{
    struct place *place = *state;
    enum { KILLS = 250, KEYS = 16 };
    struct log *log = mmap(NULL, sizeof *log, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    unsigned seed = begin_with_seed();
    for (unsigned turn = 0; turn < KILLS; turn++) {
        pid_t child = fork();
        if (child == 0) {
            if (turn % 2 == 0)
                reopen_place(place, 0);
            for (unsigned i = turn;; i++) {
                unsigned which = (unsigned)rand_r(&seed) % KEYS;
                shoal_key key = key_of(place, which);
                size_t size = 1 + (size_t)rand_r(&seed) % 3500;
                log->begun[which] = size;
                if (put_pattern(place->folder, &key, size) != 0)
                    _exit(1);
                log->done[which] = size;
                log->puts++;
            }
        }
        struct timespec rest = {.tv_nsec = (long)((unsigned)rand_r(&seed) % 6000000)};
        (void)nanosleep(&rest, NULL);
        assert_int_equal(kill(child, SIGKILL), 0);
        int status;
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_true(WIFSIGNALED(status));
        if (turn % 3 == 0)
            reopen_place(place, 0);
        for (unsigned which = 0; which < KEYS; which++) {
            shoal_key key = key_of(place, which);
            size_t size = 0;
            int error = get_pattern(place->folder, &key, &size);
            if (error == -ENOENT && log->done[which] == 0)
                continue;
            assert_int_equal(error, 0);
            assert_true(size == log->done[which] || size == log->begun[which]);
            log->done[which] = log->begun[which] = size;
        }
    }
    print_message("%u kills, %u puts\n", KILLS, log->puts);
    reopen_place(place, 0);
    assert_int_equal(put_pattern(place->folder, &place->key, SMALL), 0); /* sweeps what a killed one left */
    assert_int_equal(files_below(place->path), 1);
    (void)munmap(log, sizeof *log);
}

static double seconds(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static void a_writer_that_was_stopped_holds_up_one_put_and_fails_none(void **state)
{
    struct place *place = *state;
    unsigned seed = begin_with_seed();
    enum { STOPS = 40, PUTS = 20 };
    pid_t child = fork();
    if (child == 0) {
        for (unsigned i = 0;; i++) {
            shoal_key key = key_of(place, i % 100);
            if (put_pattern(place->folder, &key, 1000) != 0)
                _exit(1);
        }
    }
    unsigned held = 0, key = 1000;
    for (unsigned i = 0; i < STOPS && held < 2; i++) {
        struct timespec rest = {.tv_nsec = (long)((unsigned)rand_r(&seed) % 10000000)};
        (void)nanosleep(&rest, NULL);
        assert_int_equal(kill(child, SIGSTOP), 0);
        (void)waitpid(child, NULL, WUNTRACED);
        double first = 0;
        for (unsigned turn = 0; turn < PUTS; turn++) {
            double began = seconds();
            shoal_key own = key_of(place, key++);
            assert_int_equal(put_pattern(place->folder, &own, SMALL), 0);
            assert_int_equal(get_pattern(place->folder, &own, NULL), 0);
            if (turn == 0)
                first = seconds() - began;
            else
                assert_true(seconds() - began < 3); /* it does not wait as long again */
        }
        held += first > 3;
        assert_int_equal(kill(child, SIGCONT), 0);
    }
    assert_int_equal(kill(child, SIGKILL), 0);
    assert_int_equal(waitpid(child, NULL, 0), child);
    for (unsigned i = 1000; i < key; i++) {
        shoal_key own = key_of(place, i);
        assert_int_equal(get_pattern(place->folder, &own, NULL), 0);
    }
    print_message("stopped %u times with the lock\n", held);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(threads_and_children_of_fork_use_the_same_handle),
        TEST(no_put_is_lost_while_the_file_is_made_anew_under_the_writers),
        TEST(killed_writers_lose_nothing_that_a_put_returned_for),
        TEST(a_writer_that_was_stopped_holds_up_one_put_and_fails_none),
    };
    return cmocka_run_group_tests_name("store_writers", tests, NULL, NULL);
}
