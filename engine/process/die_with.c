/* process/die_with.c: have the kernel end this process when another one ends.
 *
 * The parent-death signal is sent when the *thread* that forked ends, not only when its process does. So it serves
 * where the parent's main thread forked; else a thread of this process, with all signals blocked, waits on the parent's
 * pidfd. Either way the end is SIGKILL, whatever this process is doing at that moment. Called in the child by start.c
 * and zygote_serve.c, and by users' processes.
 */
#include "process/process.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/thread.h"

#define GUARDIAN_STACK ((size_t)65536)

/* Above the standard streams: a program that puts its own there must not take the guardian's. */
static int open_guarded(pid_t parent)
{
    int low = pidfd_open(parent, 0);
    if (low < 0 || low > 2)
        return low >= 0 ? low : -errno;
    int fd = fcntl(low, F_DUPFD_CLOEXEC, 3);
    int error = -errno;
    close(low);
    return fd >= 0 ? fd : error;
}

struct guarded {
    pid_t parent;
    int fd;
};

static void *guard(void *argument)
{
    struct guarded guarded = *(struct guarded *)argument;
    free(argument);
    for (;;) {
        struct pollfd end = {.fd = guarded.fd, .events = POLLIN};
        if (poll(&end, 1, -1) < 0)
            continue;
        if ((end.revents & POLLNVAL) == 0)
            break;
        /* The program closed every descriptor it could find, as daemons do. */
        guarded.fd = open_guarded(guarded.parent);
        if (guarded.fd < 0)
            break;
    }
    kill(getpid(), SIGKILL);
    return NULL;
}

static int start_guardian(pid_t parent)
{
    struct guarded *guarded = malloc(sizeof *guarded);
    if (guarded == NULL)
        return -ENOMEM;
    *guarded = (struct guarded){parent, open_guarded(parent)};
    if (guarded->fd < 0) {
        int error = guarded->fd;
        free(guarded);
        return error;
    }
    int error = thread_start(NULL, guard, guarded, GUARDIAN_STACK);
    if (error != 0) {
        close(guarded->fd);
        free(guarded);
    }
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
