/* process/zygote.c: the asker's side of a zygote: requests, replies, and reports of how its children ended.
 *
 * One socket carries both. Whoever waits for something reads what comes and puts it where it belongs: replies are told
 * apart by number, exits by pid. One thread reads at a time, in slices, the others look at what it found. A zygote that
 * is gone reads as end of file: from then on starts fail with -EPIPE and unknown exits with -ECHILD. What was forked
 * for a request runs nothing before we let it (zygote.h): so a start that failed never runs. The server's side is
 * zygote_serve.c.
 */
#include "process/zygote.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

struct news {
    struct news *next;
    struct zygote_reply reply;
    int fd; /* the pidfd that came with it, or -1 */
};

struct shoal_zygote {
    _Atomic uint32_t holders; /* the asker, and each process that asks it how it ended */
    int socket;
    pid_t owner;          /* the process that asks: a child of fork shares the socket, and must not read from it */
    pthread_mutex_t lock; /* of all below, and of the socket */
    uint64_t next_request;
    struct news *news; /* replies nobody has taken yet */
    bool gone;
};

int shoal_zygote_attach(int socket, pid_t pid, shoal_zygote **out)
{
    (void)pid; /* its end shows on the socket */
    shoal_zygote *zygote = calloc(1, sizeof *zygote);
    if (zygote == NULL)
        return -ENOMEM;
    atomic_init(&zygote->holders, 1);
    zygote->socket = socket;
    zygote->owner = getpid();
    zygote->next_request = 1;
    pthread_mutex_init(&zygote->lock, NULL);
    *out = zygote;
    return 0;
}

void zygote_release(shoal_zygote *zygote)
{
    /* acq_rel: the last holder frees what all others wrote */
    if (atomic_fetch_sub_explicit(&zygote->holders, 1, memory_order_acq_rel) != 1)
        return;
    while (zygote->news != NULL) {
        struct news *next = zygote->news->next;
        if (zygote->news->fd >= 0)
            close(zygote->news->fd);
        free(zygote->news);
        zygote->news = next;
    }
    pthread_mutex_destroy(&zygote->lock);
    free(zygote);
}

void shoal_zygote_close(shoal_zygote *zygote)
{
    if (zygote == NULL)
        return;
    pthread_mutex_lock(&zygote->lock);
    if (zygote->socket >= 0)
        close(zygote->socket);
    zygote->socket = -1;
    zygote->gone = true;
    pthread_mutex_unlock(&zygote->lock);
    zygote_release(zygote);
}

/* The descriptor that came with a message, or -1. */
static int descriptor_of(struct msghdr *message)
{
    int fd = -1;
    for (struct cmsghdr *part = CMSG_FIRSTHDR(message); part != NULL; part = CMSG_NXTHDR(message, part)) {
        if (part->cmsg_level == SOL_SOCKET && part->cmsg_type == SCM_RIGHTS && part->cmsg_len == CMSG_LEN(sizeof fd))
            memcpy(&fd, CMSG_DATA(part), sizeof fd);
    }
    return fd;
}

/* Take one message off the socket, if one is there. Locked. */
static void read_news(shoal_zygote *zygote)
{
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control;
    struct zygote_reply reply;
    struct iovec part = {&reply, sizeof reply};
    struct msghdr message = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof control.bytes};
    ssize_t size = recvmsg(zygote->socket, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (size == 0 || (size < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR))
        zygote->gone = true;
    if (size <= 0)
        return;
    int fd = descriptor_of(&message);
    struct news *news = NULL;
    /* What our zygote does not say is passed over; without memory, the exit that it tells of stays unknown. */
    if (size == (ssize_t)sizeof reply && reply.magic == ZYGOTE_MAGIC)
        news = malloc(sizeof *news);
    if (news == NULL) {
        if (fd >= 0)
            close(fd);
        return;
    }
    *news = (struct news){.next = zygote->news, .reply = reply, .fd = fd};
    zygote->news = news;
}

static bool take_news(shoal_zygote *zygote, enum zygote_reply_kind kind, uint64_t key, struct zygote_reply *out,
                      int *fd)
{
    for (struct news **at = &zygote->news; *at != NULL; at = &(*at)->next) {
        struct news *news = *at;
        if (news->reply.kind == (uint32_t)kind && news->reply.key == key) {
            *out = news->reply;
            *fd = news->fd;
            *at = news->next;
            free(news);
            return true;
        }
    }
    return false;
}

/* Wait for the news of this kind and key. 0, -ETIMEDOUT, -EPIPE. */
static int await_news(shoal_zygote *zygote, enum zygote_reply_kind kind, uint64_t key, int64_t timeout,
                      struct zygote_reply *out, int *fd)
{
    const int64_t deadline = shoal_clock_now() + timeout;
    for (;;) {
        pthread_mutex_lock(&zygote->lock);
        if (!zygote->gone)
            read_news(zygote);
        bool found = take_news(zygote, kind, key, out, fd);
        bool gone = zygote->gone;
        int socket = zygote->socket;
        pthread_mutex_unlock(&zygote->lock);
        if (found)
            return 0;
        if (gone)
            return -EPIPE;
        if (shoal_clock_now() >= deadline)
            return -ETIMEDOUT;
        /* In slices: another thread may take our news off the socket, and then nothing comes any more. */
        struct pollfd ready = {.fd = socket, .events = POLLIN};
        (void)poll(&ready, 1, 5);
    }
}

int zygote_exit_of(shoal_zygote *zygote, pid_t pid, int64_t timeout, shoal_exit *out)
{
    struct zygote_reply reply;
    if (zygote->owner != getpid())
        return -ECHILD;
    int fd = -1;
    if (await_news(zygote, ZYGOTE_EXITED, (uint64_t)pid, timeout, &reply, &fd) != 0)
        return -ECHILD;
    if (fd >= 0)
        close(fd); /* an exit has none */
    *out = (shoal_exit){.code = reply.code, .signal = reply.signal};
    return 0;
}

/* Send a request with its descriptors, `go` first. */
static int send_request(shoal_zygote *zygote, const struct zygote_request *head, const void *request, int go,
                        const int *fds)
{
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof(int) * (SHOAL_ZYGOTE_FDS + 1))];
    } control;
    const size_t fds_size = sizeof(int) * head->fds;
    struct zygote_request copy = *head;
    struct iovec parts[2] = {{&copy, sizeof copy}, {(void *)(uintptr_t)request, head->size}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = head->size > 0 ? 2 : 1};
    memset(&control, 0, sizeof control);
    message.msg_control = control.bytes;
    message.msg_controllen = CMSG_SPACE(sizeof go + fds_size);
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof go + fds_size);
    memcpy(CMSG_DATA(header), &go, sizeof go);
    if (fds_size > 0)
        memcpy(CMSG_DATA(header) + sizeof go, fds, fds_size);
    for (;;) {
        if (sendmsg(zygote->socket, &message, MSG_NOSIGNAL) >= 0)
            return 0;
        if (errno != EINTR)
            return errno == ECONNRESET ? -EPIPE : -errno;
    }
}

/* Have a process forked that waits for the go-ahead at the other end of `go`. */
static int ask(shoal_zygote *zygote, struct zygote_request *head, const void *request, int go, const int *fds,
               shoal_process **out)
{
    pthread_mutex_lock(&zygote->lock);
    int error = -EPIPE;
    if (!zygote->gone) {
        head->number = zygote->next_request++;
        error = send_request(zygote, head, request, go, fds);
    }
    pthread_mutex_unlock(&zygote->lock);
    if (error != 0)
        return error;
    struct zygote_reply reply;
    /* The zygote may still be importing what it preloads. */
    int pidfd = -1;
    error = await_news(zygote, ZYGOTE_STARTED, head->number, 60 * SHOAL_SECOND, &reply, &pidfd);
    if (error != 0)
        return error;
    if (reply.pid <= 0 || pidfd < 0) {
        if (pidfd >= 0)
            close(pidfd);
        return reply.code < 0 ? reply.code : -EAGAIN;
    }
    shoal_process *process;
    error = process_handle(reply.pid, pidfd, &process);
    if (error != 0) {
        close(pidfd);
        return error;
    }
    atomic_fetch_add_explicit(&zygote->holders, 1, memory_order_relaxed);
    process->zygote = zygote;
    *out = process;
    return 0;
}

int shoal_zygote_start_process(shoal_zygote *zygote, const void *request, size_t size, const int *fds,
                               uint32_t fd_count, uint32_t flags, shoal_process **out)
{
    if (size > SHOAL_ZYGOTE_REQUEST || fd_count > SHOAL_ZYGOTE_FDS)
        return -EMSGSIZE;
    if (zygote->owner != getpid())
        return -EPIPE;
    int go[2];
    if (pipe2(go, O_CLOEXEC) != 0)
        return -errno;
    struct zygote_request head = {.magic = ZYGOTE_MAGIC, .size = (uint32_t)size, .fds = fd_count, .flags = flags};
    int error = ask(zygote, &head, request, go[0], fds, out);
    /* Our own read end is still open: there is room for one byte, and no SIGPIPE where the process is gone. */
    const char answer = error == 0 ? ZYGOTE_GO : ZYGOTE_DO_NOT;
    while (write(go[1], &answer, 1) < 0 && errno == EINTR) {
    }
    close(go[0]);
    close(go[1]);
    return error;
}
