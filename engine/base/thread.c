/* base/thread.c: starts the engine's own threads. */
#include "base/thread.h"

#include <signal.h>

int thread_start(pthread_t *thread, void *(*function)(void *), void *argument, size_t stack)
{
    pthread_attr_t attributes;
    int error = pthread_attr_init(&attributes);
    if (error != 0)
        return -error;
    if (stack != 0)
        (void)pthread_attr_setstacksize(&attributes, stack); /* one that it refuses is no reason to do without */
    if (thread == NULL)
        (void)pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    /* A thread begins with its maker's mask: blocked here, there is no instant at which it could take one. */
    sigset_t all, before;
    sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_t detached;
    error = pthread_create(thread != NULL ? thread : &detached, &attributes, function, argument);
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    (void)pthread_attr_destroy(&attributes);
    return -error;
}
