/* process/zygote_serve.c: the zygote: forks a process for each request and reports how each ended.
 *
 * Single-threaded, so that a fork copies nothing that runs. It waits for requests and for SIGCHLD (blocked, read from a
 * signalfd) at once. It ends when the asker's end of the socket is closed, and kills its children then. When the asker
 * is killed, each child sees that by itself (a guardian thread on the asker's pidfd): so a zygote that is killed does
 * its children no harm, and they still end with the asker.
 */
#include "process/zygote.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

struct child {
    pid_t pid;
    bool outlives; /* the asker, and us */
};

struct server {
    int socket, signals;
    pid_t asker;
    struct child *children; /* that have not ended */
    size_t child_count, child_room;
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
            return errno == ECONNRESET ? -EPIPE : -errno; /* it is said once, where we had told it something unread */
    }
    return 0;
}

static int note_child(struct server *server, pid_t pid, bool outlives)
{
    if (server->child_count == server->child_room) {
        size_t room = server->child_room == 0 ? 64 : server->child_room * 2;
        struct child *children = realloc(server->children, room * sizeof *children);
        if (children == NULL)
            return -ENOMEM;
        server->children = children;
        server->child_room = room;
    }
    server->children[server->child_count++] = (struct child){pid, outlives};
    return 0;
}

static void forget_child(struct server *server, pid_t pid)
{
    for (size_t i = 0; i < server->child_count; i++) {
        if (server->children[i].pid == pid) {
            server->children[i] = server->children[--server->child_count];
            return;
        }
    }
}

static void report_ends(struct server *server)
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
        forget_child(server, pid);
        (void)tell(server, &reply, -1); /* the asker is gone: seen at the next receive */
    }
}

/* In the child: wait until the asker knows of it, or does not want it any more. */
static bool may_run(int go)
{
    char answer = ZYGOTE_DO_NOT;
    ssize_t size;
    while ((size = read(go, &answer, 1)) < 0 && errno == EINTR) {
    }
    close(go);
    return size == 1 && answer == ZYGOTE_GO;
}

/* The child: leaves the zygote's things behind and does what the request says, once the asker lets it. */
static void run_child(const struct server *server, const struct zygote_request *head, const uint8_t *request, int go,
                      const int *fds)
{
    const bool outlives = (head->flags & SHOAL_ZYGOTE_OUTLIVES) != 0;
    close(server->socket);
    close(server->signals);
    if (!outlives && process_die_with(server->asker, false) != 0)
        _exit(127);
    /* Bound to the asker before: a fork of it may hold the pipe open when it is gone. */
    if (!may_run(go))
        _exit(ZYGOTE_NOT_RUN);
    sigprocmask(SIG_SETMASK, &server->before, NULL);
    _exit(server->service->main(server->service->context, request, head->size, fds, head->fds));
}

static int start_child(struct server *server, const struct zygote_request *head, const uint8_t *request, int go,
                       const int *fds)
{
    const bool outlives = (head->flags & SHOAL_ZYGOTE_OUTLIVES) != 0;
    pid_t pid = server->service->fork != NULL ? server->service->fork(server->service->context) : fork();
    if (pid == 0)
        run_child(server, head, request, go, fds);
    int code = pid > 0 ? 0 : -EAGAIN;
    /* Opened here, where the child cannot be reaped meanwhile: the asker might come too late for one that ends at once.
     */
    int pidfd = pid > 0 ? pidfd_open(pid, 0) : -1;
    if (pid > 0 && pidfd < 0)
        code = -errno;
    if (pidfd >= 0 && (code = note_child(server, pid, outlives)) != 0) {
        close(pidfd);
        pidfd = -1;
    }
    if (pid > 0 && pidfd < 0)
        kill(pid, SIGKILL);
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

static int refuse(const struct server *server, const struct zygote_request *head, int code)
{
    const struct zygote_reply reply = {
        .magic = ZYGOTE_MAGIC, .kind = ZYGOTE_STARTED, .key = head->number, .code = code};
    return tell(server, &reply, -1);
}

/* Take one request and serve it. 0, 1: the asker is gone; or a negative code. */
static int serve_request(struct server *server)
{
    enum { MOST_FDS = SHOAL_ZYGOTE_FDS + 1 }; /* the go-ahead pipe's goes first */
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof(int) * MOST_FDS)];
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
    int fds[MOST_FDS];
    uint32_t count = 0;
    for (struct cmsghdr *part = CMSG_FIRSTHDR(&message); part != NULL; part = CMSG_NXTHDR(&message, part)) {
        if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS)
            continue;
        uint32_t here = (uint32_t)((part->cmsg_len - CMSG_LEN(0)) / sizeof(int));
        for (uint32_t i = 0; i < here; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(part) + i * sizeof fd, sizeof fd);
            if (count < MOST_FDS)
                fds[count++] = fd;
            else
                close(fd);
        }
    }
    int error = 0;
    /* What no asker of ours sends is dropped. */
    const bool ours = (size_t)size >= sizeof head && head.magic == ZYGOTE_MAGIC &&
                      head.size == (size_t)size - sizeof head && (message.msg_flags & MSG_TRUNC) == 0;
    if (ours && (message.msg_flags & MSG_CTRUNC) != 0)
        error = refuse(server, &head, -EMFILE); /* our limit is the asker's, which may have lowered it */
    else if (ours && count > 0 && head.fds == count - 1)
        error = start_child(server, &head, server->buffer, fds[0], fds + 1);
    for (uint32_t i = 0; i < count; i++)
        close(fds[i]);
    return error == -EPIPE ? 1 : error;
}

/* Who made the socket pair: the asker, or this process itself where that is not known. */
static pid_t asker_of(int socket)
{
    struct ucred peer;
    socklen_t size = sizeof peer;
    return getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 && peer.pid > 0 ? peer.pid : getpid();
}

int shoal_zygote_serve(int socket, const shoal_zygote_service *service)
{
    struct server server = {.socket = socket, .service = service, .asker = asker_of(socket)};
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
    for (size_t i = 0; i < server.child_count; i++) {
        if (!server.children[i].outlives)
            kill(server.children[i].pid, SIGKILL); /* ours and not reaped: the pid is its own */
    }
    free(server.children);
    close(server.signals);
restore_signals:
    sigprocmask(SIG_SETMASK, &server.before, NULL);
    free(server.buffer);
    return result;
}
