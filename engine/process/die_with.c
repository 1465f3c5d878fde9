/* process/die_with.c: have the kernel end this process when another one ends.
 *
 * The parent-death signal is sent when the *thread* that forked ends, not only when its process does. So it serves
 * where the parent's main thread forked; else a thread of this process, with all signals blocked, waits on the parent's
 * pidfd. Either way the end is SIGKILL, whatever this process is doing at that moment. Called in the child by start.c
 * and zygote.c, and by users' processes.
 */
#include "process/process.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define GUARDIAN_STACK ((size_t)65536)

static void *guard(void *argument)
{
    struct pollfd parent = {.fd = (int)(intptr_t)argument, .events = POLLIN};
    while (poll(&parent, 1, -1) < 0) {
    }
    kill(getpid(), SIGKILL);
    return NULL;
}

static int start_guardian(pid_t parent)
{
    int fd = pidfd_open(parent, 0);
    if (fd < 0)
        return -errno;
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, GUARDIAN_STACK);
    /* Signals are for the program's own threads. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_t thread;
    int error = -pthread_create(&thread, &attributes, guard, (void *)(intptr_t)fd);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    if (error != 0)
        close(fd);
    return error;
}

int process_die_with(pid_t parent, bool forked_by_main_thread)
{
    int error = 0;
    if (forked_by_main_thread && getppid() == parent)
        error = prctl(PR_SET_PDEATHSIG, SIGKILL) == 0 ? 0 : -errno;
    else
        error = start_guardian(parent);
    /* It may have ended before we asked; then we are somebody else's child, or it is nowhere. */
    if (error == -ESRCH || (forked_by_main_thread && getppid() != parent))
        kill(getpid(), SIGKILL);
    return error;
}

int shoal_process_die_with(pid_t parent)
{
    /* Which of its threads started us is not known: the guardian is right in every case. */
    return process_die_with(parent, false);
}
