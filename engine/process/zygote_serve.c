/* process/zygote_serve.c: the zygote: forks a process for each request and reports how each ended.
 *
 * Single-threaded, so that a fork copies nothing that runs. It waits for requests and for SIGCHLD (blocked, read from a
 * signalfd) at once. Its children ask the kernel to be killed with it, and it ends when the asker's end of the socket
 * is closed: so when the asker is gone, however that happened, all are gone.
 */
#include "process/zygote.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

struct server {
    int socket, signals;
    const shoal_zygote_service *service;
    sigset_t before; /* the signal mask that children get back */
    uint8_t *buffer;
};

/* Send a reply, with a descriptor unless that is -1. */
static int tell(const struct server *server, const struct zygote_reply *reply, int fd)
{
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = {0};
    struct iovec part = {(void *)(uintptr_t)reply, sizeof *reply};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    if (fd >= 0) {
        message.msg_control = control.bytes;
        message.msg_controllen = sizeof control.bytes;
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(sizeof fd);
        memcpy(CMSG_DATA(header), &fd, sizeof fd);
    }
    while (sendmsg(server->socket, &message, MSG_NOSIGNAL) < 0) {
        if (errno != EINTR)
            return -errno;
    }
    return 0;
}

static void report_ends(const struct server *server)
{
    struct signalfd_siginfo signals;
    while (read(server->signals, &signals, sizeof signals) > 0) {
    }
    int status;
    pid_t pid;
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
        const struct zygote_reply reply = {
            .magic = ZYGOTE_MAGIC,
            .kind = ZYGOTE_EXITED,
            .key = (uint64_t)pid,
            .pid = pid,
            .code = WIFEXITED(status) ? WEXITSTATUS(status) : 0,
            .signal = WIFSIGNALED(status) ? WTERMSIG(status) : 0,
        };
        (void)tell(server, &reply, -1); /* the asker is gone: seen at the next receive */
    }
}

/* The child: leaves the zygote's things behind and does what the request says. */
static void run_child(const struct server *server, const uint8_t *request, size_t size, const int *fds, uint32_t count,
                      pid_t zygote)
{
    close(server->socket);
    close(server->signals);
    if (process_die_with(zygote, true) != 0)
        _exit(127);
    sigprocmask(SIG_SETMASK, &server->before, NULL);
    _exit(server->service->main(server->service->context, request, size, fds, count));
}

static int start_child(const struct server *server, const struct zygote_request *head, const uint8_t *request,
                       const int *fds, uint32_t count)
{
    const pid_t zygote = getpid();
    pid_t pid = server->service->fork != NULL ? server->service->fork(server->service->context) : fork();
    if (pid == 0)
        run_child(server, request, head->size, fds, count, zygote);
    int code = pid > 0 ? 0 : -EAGAIN;
    /* Opened here, where the child cannot be reaped meanwhile: the asker might come too late for one that ends at once.
     */
    int pidfd = pid > 0 ? pidfd_open(pid, 0) : -1;
    if (pid > 0 && pidfd < 0) {
        code = -errno;
        kill(pid, SIGKILL);
    }
    const struct zygote_reply reply = {
        .magic = ZYGOTE_MAGIC,
        .kind = ZYGOTE_STARTED,
        .key = head->number,
        .pid = pidfd >= 0 ? pid : 0,
        .code = code,
    };
    int error = tell(server, &reply, pidfd);
    if (pidfd >= 0)
        close(pidfd);
    return error;
}

/* Take one request and serve it. 0, 1: the asker is gone; or a negative code. */
static int serve_request(const struct server *server)
{
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof(int) * SHOAL_ZYGOTE_FDS)];
    } control;
    struct zygote_request head = {0};
    struct iovec parts[2] = {{&head, sizeof head}, {server->buffer, SHOAL_ZYGOTE_REQUEST}};
    struct msghdr message = {
        .msg_iov = parts, .msg_iovlen = 2, .msg_control = control.bytes, .msg_controllen = sizeof control.bytes};
    ssize_t size = recvmsg(server->socket, &message, MSG_CMSG_CLOEXEC);
    if (size < 0)
        return errno == EINTR || errno == EAGAIN ? 0 : errno == ECONNRESET ? 1 : -errno;
    if (size == 0)
        return 1;
    int fds[SHOAL_ZYGOTE_FDS];
    uint32_t count = 0;
    for (struct cmsghdr *part = CMSG_FIRSTHDR(&message); part != NULL; part = CMSG_NXTHDR(&message, part)) {
        if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS)
            continue;
        uint32_t here = (uint32_t)((part->cmsg_len - CMSG_LEN(0)) / sizeof(int));
        for (uint32_t i = 0; i < here; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(part) + i * sizeof fd, sizeof fd);
            if (count < SHOAL_ZYGOTE_FDS)
                fds[count++] = fd;
            else
                close(fd);
        }
    }
    int error = 0;
    /* What no asker of ours sends is dropped; an asker whose request was cut waits in vain for a time, not for ever. */
    if ((size_t)size >= sizeof head && head.magic == ZYGOTE_MAGIC && head.size == (size_t)size - sizeof head &&
        head.fds == count && (message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) == 0)
        error = start_child(server, &head, server->buffer, fds, count);
    for (uint32_t i = 0; i < count; i++)
        close(fds[i]);
    return error == -EPIPE ? 1 : error;
}

int shoal_zygote_serve(int socket, const shoal_zygote_service *service)
{
    struct server server = {.socket = socket, .service = service};
    server.buffer = malloc(SHOAL_ZYGOTE_REQUEST);
    if (server.buffer == NULL)
        return -ENOMEM;
    sigset_t child;
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    sigprocmask(SIG_BLOCK, &child, &server.before);
    int result = 0;
    server.signals = signalfd(-1, &child, SFD_CLOEXEC | SFD_NONBLOCK);
    if (server.signals < 0) {
        result = -errno;
        goto restore_signals;
    }
    while (result == 0) {
        struct pollfd ready[2] = {{.fd = socket, .events = POLLIN}, {.fd = server.signals, .events = POLLIN}};
        if (poll(ready, 2, -1) < 0) {
            result = errno == EINTR ? 0 : -errno;
            continue;
        }
        if (ready[1].revents != 0)
            report_ends(&server);
        if (ready[0].revents != 0)
            result = serve_request(&server);
    }
    /* The asker is gone: so are the children, at once, and not only when this process has ended. */
    if (result == 1)
        result = 0;
    close(server.signals);
restore_signals:
    sigprocmask(SIG_SETMASK, &server.before, NULL);
    free(server.buffer);
    return result;
}
