/* base/thread.h: threads of the engine's own, beside those of the program that it is part of. */
#ifndef SHOAL_BASE_THREAD_H
#define SHOAL_BASE_THREAD_H

#include <pthread.h>
#include <stddef.h>

/* Start a thread that runs `function(argument)` with all signals blocked; the caller's own mask is as it was.
 *
 * A signal is for the program: it is handled in the one of its threads that it expects, which may rely on being
 * interrupted, and not in one that it does not know of, at an instant at which that may hold a lock.
 *
 * thread  out: for pthread_join; NULL: nobody joins it, it is detached
 * stack   bytes of its stack; 0: as many as the C library gives
 *
 * 0, or what pthread_create says as a negative code. Any thread. */
int thread_start(pthread_t *thread, void *(*function)(void *), void *argument, size_t stack);

#endif
