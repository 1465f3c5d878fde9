/* tests/engine/helpers.h: what the tests of memory and queue and the campaigns of kills share: a limit in time that
 * says where it struck, seeds that are printed, children that report their failed checks by their exit status.
 *
 * cmocka's assertions jump back to the test's runner, which must not happen in a forked child: use CHECK there. It
 * serves in the parent as well, where it ends the whole program.
 */
#ifndef SHOAL_TESTS_HELPERS_H
#define SHOAL_TESTS_HELPERS_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <errno.h>
#include <execinfo.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "shoal.h"

#define UNUSED __attribute__((unused))

/* ---------------------------------------------------------------- limit in time ---- */

#ifndef LIMIT
#define LIMIT 60 /* seconds for each test, and for each child of one */
#endif

static const char *volatile doing = "nothing yet"; /* the step a test is at, for who reads of a hang */

static void limit_struck(int number)
{
    char text[300];
    void *frames[32];
    int size = snprintf(text, sizeof text, "process %d hangs, or is too slow, in: %s\n", (int)getpid(), doing);
    ssize_t written = write(STDERR_FILENO, text, (size_t)size);
    (void)written;
    backtrace_symbols_fd(frames, backtrace(frames, 32), STDERR_FILENO);
    signal(number, SIG_DFL);
    raise(number);
}

static void limit_time(unsigned seconds)
{
    void *frame;
    (void)backtrace(&frame, 1); /* loads what it needs now, not in the handler */
    signal(SIGALRM, limit_struck);
    alarm(seconds);
}

static UNUSED int start_clock(void **state)
{
    (void)state;
    doing = "the test's own process";
    limit_time(LIMIT);
    return 0;
}

/* ------------------------------------------------------------------- randomness ---- */

static _Thread_local uint64_t random_state = 88172645463325252u; /* a thread's own, so that none waits for another */

static inline uint64_t random_bits(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state * UINT64_C(2685821657736338717);
}

static inline uint64_t random_below(uint64_t limit)
{
    return (random_bits() >> 11) % limit;
}

static UNUSED void seed_with(uint64_t seed)
{
    random_state = seed * UINT64_C(0x9e3779b97f4a7c15) | 1;
    for (int i = 0; i < 8; i++)
        (void)random_bits();
}

/* A new seed, or the one that SHOAL_SEED asks for; printed, so that a failure can be repeated. */
static UNUSED uint64_t seed_random(void)
{
    const char *text = getenv("SHOAL_SEED");
    uint64_t seed = text != NULL ? strtoull(text, NULL, 10)
                                 : ((uint64_t)shoal_clock_now() ^ (uint64_t)getpid() << 20) % 1000000000u;
    printf("             seed %llu (SHOAL_SEED=%llu repeats it)\n", (unsigned long long)seed, (unsigned long long)seed);
    fflush(stdout);
    seed_with(seed);
    return seed;
}

/* ------------------------------------------------------------------ child processes ---- */

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: process %d: not so: %s\n", __FILE__, __LINE__, (int)getpid(), #condition);         \
            _exit(99);                                                                                                 \
        }                                                                                                              \
    } while (0)

/* Fork a child that ends with its parent and within the limit. 0 in the child. */
static pid_t fork_child(const char *what)
{
    fflush(NULL);
    pid_t parent = getpid(), pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent)
            _exit(98);
        doing = what;
        limit_time(LIMIT);
    }
    return pid;
}

/* Run `function` in a child; what it returns is the exit status. */
static UNUSED pid_t start_child(const char *what, int (*function)(void *), void *context)
{
    pid_t pid = fork_child(what);
    if (pid == 0)
        _exit(function(context));
    assert_true(pid > 0);
    return pid;
}

static UNUSED void child_ends_well(pid_t pid)
{
    int status = 0;
    pid_t found;
    do
        found = waitpid(pid, &status, 0);
    while (found < 0 && errno == EINTR);
    assert_int_equal(found, pid);
    assert_int_equal(status, 0);
}

static UNUSED void kill_and_reap(pid_t pid)
{
    int status = 0;
    assert_int_equal(kill(pid, SIGKILL), 0);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

/* -------------------------------------------------------------------- what is there ---- */

/* Memory that parent and children share, for ledgers. */
static UNUSED void *shared_memory(size_t size)
{
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    assert_true(memory != MAP_FAILED);
    return memory;
}

/* How many bytes of memory the file behind a descriptor takes. */
static UNUSED size_t bytes_taken(int fd)
{
    struct stat status;
    assert_int_equal(fstat(fd, &status), 0);
    return (size_t)status.st_blocks * 512;
}

static UNUSED int open_descriptors(void)
{
    int count = 0;
    DIR *folder = opendir("/proc/self/fd");
    assert_non_null(folder);
    while (readdir(folder) != NULL)
        count++;
    closedir(folder);
    return count;
}

static UNUSED void sleep_for(int64_t nanoseconds)
{
    struct timespec left = {(time_t)(nanoseconds / SHOAL_SECOND), (long)(nanoseconds % SHOAL_SECOND)};
    while (nanosleep(&left, &left) != 0 && errno == EINTR) {
    }
}

/* ------------------------------------------------------------------ a pool ---- */

/* A pool and its only worker, both in this process. */
static UNUSED shoal_pool *open_pool_with_worker(shoal_worker **worker)
{
    shoal_pool *pool;
    uint32_t owner;
    assert_int_equal(shoal_pool_create(&(shoal_pool_options){.workers = 1}, &pool), 0);
    assert_int_equal(shoal_pool_enlist(pool, 0, &owner), 0);
    assert_int_equal(shoal_worker_open(pool, 0, owner, worker), 0);
    return pool;
}

#endif
