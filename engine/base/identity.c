/* base/identity.c: who a process is, and whether it lives. The forms are in the header.
 *
 * Life is read from /proc/PID/stat (stat.c). Waiters ask again and again, so a wrong "dead" must not come from the
 * asker's own trouble: only a process that is certainly gone counts as dead. A leader that ended (pthread_exit in main)
 * while other threads run on looks like a corpse but for its count of threads.
 *
 * Global to the process, and documented as such: its identity, and how many forks deep it is. Both are set right in a
 * child by an atfork handler, while the child has one thread.
 */
#include "base/identity.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>

#include "base/stat.h"

#define TIME_MASK ((UINT64_C(1) << IDENTITY_TIME_BITS) - 1)
#define COMPACT_TIME_MASK ((UINT64_C(1) << IDENTITY_COMPACT_TIME_BITS) - 1)

_Atomic uint32_t identity_forks; /* 0: the handler is not in place yet */
static _Atomic uint64_t self;    /* 0: not looked up in this generation */
static pthread_once_t once = PTHREAD_ONCE_INIT;
_Thread_local struct identity_known identity_known IDENTITY_NEAR;

static void in_child(void)
{
    atomic_fetch_add_explicit(&identity_forks, 1, memory_order_relaxed);
    atomic_store_explicit(&self, 0, memory_order_relaxed);
}

static void watch_forks(void)
{
    pthread_atfork(NULL, NULL, in_child);
    atomic_store_explicit(&identity_forks, 1, memory_order_relaxed);
}

uint32_t identity_generation(void)
{
    uint32_t now = atomic_load_explicit(&identity_forks, memory_order_relaxed);
    if (now == 0) {
        pthread_once(&once, watch_forks);
        now = atomic_load_explicit(&identity_forks, memory_order_relaxed);
    }
    return now;
}

enum life { LIFE_GONE, LIFE_RUNS, LIFE_UNKNOWN };

/* Whether there is a process of this pid, when it started, and its state as /proc has it. */
static enum life look(pid_t pid, uint64_t *started, char *state)
{
    struct process_stat stat;
    const int error = process_stat(pid, &stat);
    if (error != 0)
        return error == -ESRCH ? LIFE_GONE : LIFE_UNKNOWN;
    if (stat.state == 'X' || (stat.state == 'Z' && stat.threads <= 1))
        return LIFE_GONE;
    *state = stat.state;
    *started = stat.started;
    return LIFE_RUNS;
}

uint64_t identity_self(void)
{
    (void)identity_generation(); /* a fork from here on is noticed */
    uint64_t known = atomic_load_explicit(&self, memory_order_relaxed);
    if (known != 0)
        return known;
    const pid_t pid = getpid();
    uint64_t started = 0;
    char state;
    if (look(pid, &started, &state) != LIFE_RUNS)
        return 0;
    known = (uint64_t)pid << IDENTITY_TIME_BITS | (started & TIME_MASK);
    atomic_store_explicit(&self, known, memory_order_relaxed); /* threads that race here store the same */
    return known;
}

uint64_t identity_look_up_thread(void)
{
    const uint32_t now = identity_generation();
    const uint64_t identity = identity_self();
    if (identity == 0)
        return 0;
    identity_known.word =
        identity_compact(identity) << IDENTITY_THREAD_BITS | ((uint64_t)gettid() & IDENTITY_THREAD_MASK);
    identity_known.generation = now;
    return identity_known.word;
}

bool identity_lives(uint64_t identity)
{
    uint64_t started = 0;
    char state;
    if (identity == 0)
        return false;
    enum life life = look((pid_t)(identity >> IDENTITY_TIME_BITS), &started, &state);
    return life == LIFE_UNKNOWN || (life == LIFE_RUNS && (started & TIME_MASK) == (identity & TIME_MASK));
}

bool identity_lives_compact(uint64_t compact)
{
    uint64_t started = 0;
    char state;
    if (compact == 0)
        return false;
    enum life life = look(identity_pid_compact(compact), &started, &state);
    return life == LIFE_UNKNOWN ||
           (life == LIFE_RUNS && (started & COMPACT_TIME_MASK) == (compact & COMPACT_TIME_MASK));
}

bool identity_is_stopped(pid_t pid)
{
    uint64_t started = 0;
    char state = '\0';
    return look(pid, &started, &state) == LIFE_RUNS && (state == 'T' || state == 't');
}
