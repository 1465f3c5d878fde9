/* process/start.c: starts processes and tells how they ended, through pidfds: no pid is ever mistaken for another's.
 * Called by pool/crew.c and by users; the zygote (zygote.c) makes the handles of its children here.
 */
#include "process/process.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/pidfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

bool process_is_main_thread(void)
{
    return (pid_t)syscall(SYS_gettid) == getpid();
}

int process_handle(pid_t pid, int pidfd, shoal_process **out)
{
    shoal_process *process = calloc(1, sizeof *process);
    if (process == NULL)
        return -ENOMEM;
    process->pid = pid;
    process->pidfd = pidfd;
    process->owner = getpid();
    pthread_mutex_init(&process->lock, NULL);
    *out = process;
    return 0;
}

int shoal_process_start(const shoal_process_options *options, shoal_process **out)
{
    const pid_t parent = getpid();
    const bool main_thread = process_is_main_thread();
    shoal_process *process;
    int error = process_handle(0, -1, &process);
    if (error != 0)
        return error;
    pid_t pid = options->fork != NULL ? options->fork(options->context) : fork();
    if (pid == 0) {
        if (options->die_with_parent && process_die_with(parent, main_thread) != 0)
            _exit(127);
        _exit(options->main(options->context));
    }
    if (pid < 0) {
        error = errno != 0 ? -errno : -EAGAIN;
        goto close_process;
    }
    process->pid = pid;
    process->pidfd = pidfd_open(pid, 0);
    if (process->pidfd < 0) {
        /* Without it the child cannot be watched: undo. It is our child and not reaped, so the pid is its own. */
        error = -errno;
        kill(pid, 9);
        waitpid(pid, NULL, 0);
        goto close_process;
    }
    *out = process;
    return 0;

close_process:
    shoal_process_close(process);
    return error;
}

int shoal_process_adopt(pid_t pid, shoal_process **out)
{
    int pidfd = pidfd_open(pid, 0);
    if (pidfd < 0)
        return -errno;
    int error = process_handle(pid, pidfd, out);
    if (error != 0)
        close(pidfd);
    return error;
}

pid_t shoal_process_pid(const shoal_process *process)
{
    return process->pid;
}

int shoal_process_fd(const shoal_process *process)
{
    return process->pidfd;
}

/* Wait for the pidfd. 0, -ETIMEDOUT, -EINTR. */
static int wait_end(int pidfd, int64_t timeout)
{
    struct pollfd end = {.fd = pidfd, .events = POLLIN};
    struct timespec limit = {.tv_sec = (time_t)(timeout / SHOAL_SECOND), .tv_nsec = (long)(timeout % SHOAL_SECOND)};
    int ready = ppoll(&end, 1, timeout == SHOAL_FOREVER ? NULL : &limit, NULL);
    if (ready < 0)
        return -errno;
    return ready == 0 ? -ETIMEDOUT : 0;
}

/* Reap a child that has ended. -ECHILD: it is not ours, or somebody else reaped it. */
static int reap(int pidfd, shoal_exit *out)
{
    siginfo_t info = {0};
    while (waitid(P_PIDFD, (id_t)pidfd, &info, WEXITED) != 0) {
        if (errno != EINTR)
            return -errno;
    }
    *out = (shoal_exit){0};
    if (info.si_code == CLD_EXITED)
        out->code = info.si_status;
    else
        out->signal = info.si_status;
    return 0;
}

int shoal_process_wait(shoal_process *process, int64_t timeout, shoal_exit *out)
{
    int error = wait_end(process->pidfd, timeout < 0 ? 0 : timeout);
    if (error != 0)
        return error;
    if (process->owner == getpid())
        pthread_mutex_lock(&process->lock);
    else if (pthread_mutex_trylock(&process->lock) != 0)
        return -ECHILD; /* forked as a thread had it that is not here: and what it tells of is no child of ours */
    if (!process->ended) {
        error = process->zygote != NULL ? zygote_exit_of(process->zygote, process->pid, SHOAL_SECOND, &process->exit)
                                        : reap(process->pidfd, &process->exit);
        if (error == 0 || error == -ECHILD) {
            process->ended = true;
            process->unknown = error != 0;
        }
    }
    if (process->ended)
        error = process->unknown ? -ECHILD : 0;
    if (error == 0)
        *out = process->exit;
    pthread_mutex_unlock(&process->lock);
    return error;
}

int shoal_process_signal(shoal_process *process, int signal)
{
    return pidfd_send_signal(process->pidfd, signal, NULL, 0) == 0 ? 0 : -errno;
}

void shoal_process_close(shoal_process *process)
{
    if (process == NULL)
        return;
    if (process->pidfd >= 0)
        close(process->pidfd);
    if (process->zygote != NULL)
        zygote_release(process->zygote);
    pthread_mutex_destroy(&process->lock);
    free(process);
}
