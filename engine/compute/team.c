/* compute/team.c: the engine's own threads, and the parallel loop on them.
 *
 * The team is made when a loop first wants more than one thread, sleeps between loops, and is as large as the largest
 * number that was asked for, one a cpu by default. A fork leaves the child without threads: the child forgets the team
 * and makes its own, which GNU OpenMP's cannot. One loop has the team at a time; a loop that finds it taken, or that
 * runs inside of one, is done by its own thread alone.
 *
 * Global to the process, and documented as such: the team and its lock.
 */
#include "compute/team.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>

#include "base/thread.h"
#define TEAM_MOST 256u

struct loop {
    shoal_loop_function function;
    void *context;
    size_t end, grain;
    _Atomic size_t next;
};

static struct {
    pthread_mutex_t taken; /* held by the loop that has the team */
    pthread_mutex_t lock;  /* of what follows */
    pthread_cond_t begin, done;
    struct loop *loop; /* what to do; NULL between loops */
    uint64_t number;   /* of the loop, so that a thread does each once */
    uint32_t wanted;   /* threads that still may join this loop */
    uint32_t working;  /* threads that are in it */
    uint32_t threads;
} team = {
    .taken = PTHREAD_MUTEX_INITIALIZER,
    .lock = PTHREAD_MUTEX_INITIALIZER,
    .begin = PTHREAD_COND_INITIALIZER,
    .done = PTHREAD_COND_INITIALIZER,
};
static pthread_once_t once = PTHREAD_ONCE_INIT;
static _Thread_local bool in_loop;

/* The parent's threads are not here, and its locks may be held by them. */
static void forget_team(void)
{
    team.taken = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
    team.lock = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
    team.begin = (pthread_cond_t)PTHREAD_COND_INITIALIZER;
    team.done = (pthread_cond_t)PTHREAD_COND_INITIALIZER;
    team.loop = NULL;
    team.wanted = team.working = team.threads = 0;
}

static void hook_forks(void)
{
    pthread_atfork(NULL, NULL, forget_team);
}

static void work(struct loop *loop)
{
    in_loop = true;
    for (;;) {
        /* relaxed: who gets which part is all it decides; the team's lock orders the data */
        size_t begin = atomic_fetch_add_explicit(&loop->next, loop->grain, memory_order_relaxed);
        if (begin >= loop->end)
            break;
        size_t end = loop->end - begin < loop->grain ? loop->end : begin + loop->grain;
        loop->function(begin, end, loop->context);
    }
    in_loop = false;
}

static void *team_thread(void *unused)
{
    (void)unused;
    uint64_t seen = 0;
    pthread_mutex_lock(&team.lock);
    for (;;) {
        while (team.loop == NULL || team.number == seen || team.wanted == 0)
            pthread_cond_wait(&team.begin, &team.lock);
        seen = team.number;
        team.wanted--;
        team.working++;
        struct loop *loop = team.loop;
        pthread_mutex_unlock(&team.lock);
        work(loop);
        pthread_mutex_lock(&team.lock);
        if (--team.working == 0)
            pthread_cond_signal(&team.done);
    }
    return NULL;
}

/* Have at least so many threads beside the caller, as far as the machine gives them. Locked by `taken`. */
static void grow(uint32_t threads)
{
    while (team.threads < threads && thread_start(NULL, team_thread, NULL, 0) == 0)
        team.threads++; /* where one cannot be started, fewer do it too */
}

uint32_t team_size(uint32_t threads)
{
    uint32_t cpus = shoal_cpu_count();
    if (threads == 0) {
        const char *text = getenv("SHOAL_NUM_THREADS");
        long wanted = text != NULL ? strtol(text, NULL, 10) : 0;
        threads = wanted > 0 && wanted < (long)cpus ? (uint32_t)wanted : cpus;
    }
    return threads > TEAM_MOST ? TEAM_MOST : threads;
}

void shoal_parallel_for(size_t begin, size_t end, size_t grain, shoal_loop_function function, void *context,
                        uint32_t threads)
{
    if (begin >= end)
        return;
    struct loop loop = {.function = function, .context = context, .end = end, .grain = grain > 0 ? grain : 1};
    atomic_init(&loop.next, begin);
    threads = team_size(threads);
    size_t parts = (end - begin - 1) / loop.grain + 1;
    if (threads > parts)
        threads = (uint32_t)parts;
    pthread_once(&once, hook_forks);
    if (threads <= 1 || in_loop || pthread_mutex_trylock(&team.taken) != 0) {
        bool outer = in_loop;
        work(&loop);
        in_loop = outer;
        return;
    }
    grow(threads - 1);
    pthread_mutex_lock(&team.lock);
    team.loop = &loop;
    team.number++;
    team.wanted = threads - 1;
    pthread_cond_broadcast(&team.begin);
    pthread_mutex_unlock(&team.lock);
    work(&loop);
    pthread_mutex_lock(&team.lock);
    team.wanted = 0; /* who has not begun need not any more */
    while (team.working > 0)
        pthread_cond_wait(&team.done, &team.lock);
    team.loop = NULL;
    pthread_mutex_unlock(&team.lock);
    pthread_mutex_unlock(&team.taken);
}
