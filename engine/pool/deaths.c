/* pool/deaths.c: sees the death of a worker before the kernel has taken its memory down.
 *
 * A pidfd tells of a death once the dead process has been taken apart, and of that the memory of a Python process takes
 * milliseconds: 3.4 ms from the kill to the pidfd, measured, where the first thing that a dying thread does takes 0.2:
 * it marks and wakes the robust futexes that it holds. So each worker's serving thread holds one, in its record: its
 * life. A thread of the owner's process waits for all of them at once (FUTEX_WAITV), finds the exit status in /proc,
 * and settles what the worker held, or has the supervisor do that. No instruction of that thread runs any more by then.
 *
 * This is quicker, never needed: where a word says nothing (no such system call, more workers than it waits for, the
 * list that the kernel walks overwritten by the task) the pidfd tells of the death as before. And it decides nothing by
 * itself: a word is believed when /proc says that the process is exiting. Blocks are swept, and the place is filled
 * again, only when the pidfd has told that the process is gone with all its threads.
 *
 * The word is that of a robust mutex of the C library's, which keeps the list for the kernel; the bit that says that
 * somebody waits, without which the kernel wakes nobody, is set by the holder itself.
 */
#include "pool/deaths.h"

#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/pidfd.h>

#include "base/stat.h"
#include "base/thread.h"
#include "pool/pool.h"
#include "sync/futex.h"

/* Seven KiB are used, but the C library puts a program's thread-local variables there too. */
#define STACK_SIZE ((size_t)256 << 10)

struct deaths {
    pthread_t thread;
    _Atomic uint32_t ending; /* the thread's own word */
    uint32_t count;          /* places that it waits for */
};

static _Atomic uint32_t *life_word(struct worker_record *record)
{
    static_assert(sizeof record->life.__data.__lock == sizeof(_Atomic uint32_t) &&
                      offsetof(pthread_mutex_t, __data.__lock) == 0,
                  "the C library's futex word comes first");
    return (_Atomic uint32_t *)(void *)&record->life;
}

void life_prepare(struct worker_record *record)
{
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    pthread_mutex_init(&record->life, &attributes);
    pthread_mutexattr_destroy(&attributes);
}

void life_hold(struct worker_record *record)
{
    const int error = pthread_mutex_trylock(&record->life);
    if (error == EOWNERDEAD)
        (void)pthread_mutex_consistent(&record->life); /* the worker that had the place before died with it */
    else if (error != 0)
        return; /* somebody wrote over it: the pidfd tells */
    /* relaxed: a flag for the kernel, which looks when this thread is dead */
    atomic_fetch_or_explicit(life_word(record), FUTEX_WAITERS, memory_order_relaxed);
    (void)futex_wake(life_word(record), 1); /* who waited for a free life waits for this one now */
}

void life_release(struct worker_record *record)
{
    (void)pthread_mutex_unlock(&record->life);
}

/* ------------------------------------------------------------------ the thread ---- */

static void *watch(void *argument)
{
    shoal_pool *pool = argument;
    struct deaths *deaths = pool->deaths;
    _Atomic uint32_t *words[FUTEX_WORDS_MOST];
    uint32_t seen[FUTEX_WORDS_MOST] = {0};
    words[0] = &deaths->ending;
    do {
        bool news = false;
        for (uint32_t place = 0; place < deaths->count; place++) {
            _Atomic uint32_t *word = life_word(&pool->table.workers[place]);
            const uint32_t value = atomic_load_explicit(word, memory_order_relaxed);
            words[1 + place] = word;
            /* Of a worker that is known to die it is asked no more; the word may be its predecessor's, too. */
            if ((value & FUTEX_OWNER_DIED) != 0)
                news = pool_see_dying(pool, place) || news;
            seen[1 + place] = value;
        }
        if (news)
            pool_signal(pool->death);
        /* relaxed: nothing is read on its strength */
    } while (atomic_load_explicit(&deaths->ending, memory_order_relaxed) == 0 &&
             futex_wait_any(words, seen, 1 + deaths->count));
    return NULL;
}

void deaths_begin(shoal_pool *pool)
{
    const uint32_t workers = pool->table.worker_count;
    const uint32_t count = workers < FUTEX_WORDS_MOST ? workers : FUTEX_WORDS_MOST - 1;
    struct deaths *deaths = calloc(1, sizeof *deaths);
    if (deaths == NULL)
        return;
    deaths->count = count;
    pool->deaths = deaths;
    if (thread_start(&deaths->thread, watch, pool, STACK_SIZE) != 0) {
        pool->deaths = NULL;
        free(deaths);
    }
}

void deaths_end(shoal_pool *pool)
{
    struct deaths *deaths = pool->deaths;
    if (deaths == NULL)
        return;
    atomic_store_explicit(&deaths->ending, 1, memory_order_relaxed);
    (void)futex_wake(&deaths->ending, 1);
    pthread_join(deaths->thread, NULL);
    pool->deaths = NULL;
    free(deaths);
}

/* ------------------------------------------------------------- the exit status ---- */

bool deaths_tell(pid_t pid, int pidfd, shoal_exit *how)
{
    struct process_stat stat;
    if (process_stat(pid, &stat) != 0)
        return false;
    const uint64_t status = stat.exit_status;
    /* A status of 0 may stand for one that we may not see. What was reaped may have left its number to another. */
    if ((stat.flags & STAT_EXITING) == 0 || status == 0 || pidfd_send_signal(pidfd, 0, NULL, 0) != 0)
        return false;
    *how = (shoal_exit){0};
    if ((status & 0x7fu) != 0)
        how->signal = (int)(status & 0x7fu);
    else
        how->code = (int)(status >> 8 & 0xffu);
    return true;
}
