/* process/zygote.c: the asker's side of a zygote: requests, replies, and reports of how its children ended.
 *
 * One socket carries both. Whoever waits for something reads what comes and puts it where it belongs: replies are told
 * apart by number, exits by pid. One thread reads at a time, in slices, the others look at what it found. A zygote that
 * is gone reads as end of file: from then on starts fail with -EPIPE and unknown exits with -ECHILD. What was forked
 * for a request runs nothing before we let it (zygote.h): so a start that failed never runs. The server's side is
 * zygote_serve.c.
 *
 * A zygote may also be stopped, or be slow. Who asks for a start says as long as it waits whether it is still wanted,
 * and nothing here waits with the lock. An exit that a stopped zygote does not tell of is soon called unknown, and a
 * start that it does not answer is given up after a second.
 */
#include "base/identity.h"
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

/* A start that waits for its reply; on the stack of its thread. */
struct waiter {
    uint64_t number;
    struct waiter *next;
};

struct shoal_zygote {
    _Atomic uint32_t holders; /* the asker, and each process that asks it how it ended */
    int socket;
    pid_t pid;            /* the zygote's */
    pid_t owner;          /* the process that asks: a child of fork shares the socket, and must not read from it */
    pthread_mutex_t lock; /* of all below, and of the socket */
    uint64_t next_request;
    struct news *news; /* replies nobody has taken yet */
    struct waiter *waiters;
    int64_t stopped_since;  /* 0: it ran when we last looked */
    int64_t last_look;      /* of those that wait for a start, whoever it was */
    uint32_t stopped_looks; /* how many of these in a row found it stopped */
    bool gone;
};

#define SLICE (5 * SHOAL_MILLISECOND)       /* of a wait: another thread may have taken our news off the socket */
#define LOOK_AFTER (50 * SHOAL_MILLISECOND) /* until a start asks whether it is still wanted */
/* Until a start is not waited for any more: by looks and not by the clock, as Ctrl-Z stops us both, for however long,
 * and the zygote may go on a little later than we do. */
#define STOPPED_LOOKS 20
#define STOP_GRACE (250 * SHOAL_MILLISECOND) /* until a stopped zygote's word is not waited for any more */

int shoal_zygote_attach(int socket, pid_t pid, shoal_zygote **out)
{
    shoal_zygote *zygote = calloc(1, sizeof *zygote);
    if (zygote == NULL)
        return -ENOMEM;
    atomic_init(&zygote->holders, 1);
    zygote->socket = socket;
    zygote->pid = pid;
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
    /* In a child of fork the lock may be held by a thread that is not here; nobody there uses what it guards. */
    const bool ours = zygote->owner == getpid();
    if (ours)
        pthread_mutex_lock(&zygote->lock);
    if (zygote->socket >= 0)
        close(zygote->socket);
    zygote->socket = -1;
    zygote->gone = true;
    if (ours)
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

/* Whether somebody waits for this message. A reply to a start that was given up is for nobody. */
static bool is_awaited(const shoal_zygote *zygote, const struct zygote_reply *reply)
{
    const struct waiter *waiter = zygote->waiters;
    while (waiter != NULL && waiter->number != reply->key)
        waiter = waiter->next;
    return waiter != NULL || reply->kind != ZYGOTE_STARTED;
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
    zygote->stopped_looks = 0;
    int fd = descriptor_of(&message);
    struct news *news = NULL;
    /* What our zygote does not say is passed over; without memory, the exit that it tells of stays unknown. */
    if (size == (ssize_t)sizeof reply && reply.magic == ZYGOTE_MAGIC && is_awaited(zygote, &reply))
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

/* Take the news of this kind and key. 0, -EAGAIN: not there yet, -EPIPE. */
static int look_for_news(shoal_zygote *zygote, enum zygote_reply_kind kind, uint64_t key, struct zygote_reply *out,
                         int *fd)
{
    pthread_mutex_lock(&zygote->lock);
    if (!zygote->gone)
        read_news(zygote);
    int error = take_news(zygote, kind, key, out, fd) ? 0 : zygote->gone ? -EPIPE : -EAGAIN;
    pthread_mutex_unlock(&zygote->lock);
    return error;
}

/* Sleep a slice, or until the socket is ready for this. */
static void wait_a_slice(const shoal_zygote *zygote, short events)
{
    struct pollfd ready = {.fd = zygote->socket, .events = events};
    (void)poll(&ready, 1, (int)(SLICE / SHOAL_MILLISECOND));
}

int shoal_zygote_is_stopped(const shoal_zygote *zygote)
{
    return identity_is_stopped(zygote->pid);
}

/* Whether the zygote has been stopped for so long that its word is not waited for. */
static bool is_held_up(shoal_zygote *zygote)
{
    const bool stopped = identity_is_stopped(zygote->pid);
    const int64_t now = shoal_clock_now();
    pthread_mutex_lock(&zygote->lock);
    if (!stopped)
        zygote->stopped_since = 0;
    else if (zygote->stopped_since == 0)
        zygote->stopped_since = now;
    const bool held_up = stopped && now - zygote->stopped_since >= STOP_GRACE;
    pthread_mutex_unlock(&zygote->lock);
    return held_up;
}

int zygote_exit_of(shoal_zygote *zygote, pid_t pid, int64_t timeout, shoal_exit *out)
{
    const int64_t begin = shoal_clock_now();
    struct zygote_reply reply;
    if (zygote->owner != getpid())
        return -ECHILD;
    int error, fd = -1;
    while ((error = look_for_news(zygote, ZYGOTE_EXITED, (uint64_t)pid, &reply, &fd)) == -EAGAIN) {
        if (shoal_clock_now() - begin >= timeout || is_held_up(zygote))
            break;
        wait_a_slice(zygote, POLLIN);
    }
    if (error != 0)
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
        if (sendmsg(zygote->socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT) >= 0)
            return 0;
        if (errno != EINTR)
            return errno == ECONNRESET ? -EPIPE : -errno;
    }
}

/* How long a start waits, and who is asked meanwhile whether it is still wanted. */
struct patience {
    int (*wanted)(void *context); /* NULL: it is */
    void *context;
    int64_t next_look, deadline;
};

/* Whether the zygote was found stopped so many times in a row that no start is waited for. Starts that are given up for
 * now and asked for again count on: a crew whose lock others need asks twenty times a second. */
static bool is_stopped_for_good(shoal_zygote *zygote, int64_t now)
{
    const bool stopped = identity_is_stopped(zygote->pid);
    pthread_mutex_lock(&zygote->lock);
    if (!stopped) {
        zygote->stopped_looks = 0;
    } else if (now - zygote->last_look >= LOOK_AFTER) {
        zygote->last_look = now;
        zygote->stopped_looks++;
    }
    const bool for_good = zygote->stopped_looks >= STOPPED_LOOKS;
    pthread_mutex_unlock(&zygote->lock);
    return for_good;
}

static int check_patience(shoal_zygote *zygote, struct patience *patience)
{
    const int64_t now = shoal_clock_now();
    if (now >= patience->deadline)
        return -ETIMEDOUT;
    if (now < patience->next_look)
        return 0;
    patience->next_look = now + LOOK_AFTER;
    if (patience->wanted != NULL && patience->wanted(patience->context) == 0)
        return -ECANCELED;
    return is_stopped_for_good(zygote, now) ? -ETIMEDOUT : 0;
}

/* Send the request, which may have to wait for others that the zygote has not read yet, and become a waiter. */
static int begin_start(shoal_zygote *zygote, struct zygote_request *head, const void *request, int go, const int *fds,
                       struct patience *patience, struct waiter *waiter)
{
    for (;;) {
        pthread_mutex_lock(&zygote->lock);
        int error = -EPIPE;
        if (!zygote->gone) {
            head->number = zygote->next_request++;
            error = send_request(zygote, head, request, go, fds);
        }
        if (error == 0) {
            *waiter = (struct waiter){head->number, zygote->waiters};
            zygote->waiters = waiter;
        }
        pthread_mutex_unlock(&zygote->lock);
        if (error != -EAGAIN)
            return error;
        error = check_patience(zygote, patience);
        if (error != 0)
            return error;
        wait_a_slice(zygote, POLLOUT);
    }
}

/* Not a waiter any more; a reply that came too late is dropped. */
static void end_start(shoal_zygote *zygote, const struct waiter *waiter)
{
    struct zygote_reply reply;
    int fd = -1;
    pthread_mutex_lock(&zygote->lock);
    struct waiter **at = &zygote->waiters;
    while (*at != waiter)
        at = &(*at)->next;
    *at = waiter->next;
    if (take_news(zygote, ZYGOTE_STARTED, waiter->number, &reply, &fd) && fd >= 0)
        close(fd);
    pthread_mutex_unlock(&zygote->lock);
}

/* Have a process forked that waits for the go-ahead at the other end of `go`. */
static int ask(shoal_zygote *zygote, struct zygote_request *head, const void *request, int go, const int *fds,
               struct patience *patience, shoal_process **out)
{
    struct waiter waiter;
    int error = begin_start(zygote, head, request, go, fds, patience, &waiter);
    if (error != 0)
        return error;
    struct zygote_reply reply = {0};
    int pidfd = -1;
    while ((error = look_for_news(zygote, ZYGOTE_STARTED, head->number, &reply, &pidfd)) == -EAGAIN) {
        error = check_patience(zygote, patience);
        if (error != 0)
            break;
        wait_a_slice(zygote, POLLIN);
    }
    end_start(zygote, &waiter);
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
    return shoal_zygote_start_process_while(zygote, request, size, fds, fd_count, flags, NULL, NULL, out);
}

int shoal_zygote_start_process_while(shoal_zygote *zygote, const void *request, size_t size, const int *fds,
                                     uint32_t fd_count, uint32_t flags, int (*wanted)(void *context), void *context,
                                     shoal_process **out)
{
    if (size > SHOAL_ZYGOTE_REQUEST || fd_count > SHOAL_ZYGOTE_FDS)
        return -EMSGSIZE;
    if (zygote->owner != getpid())
        return -EPIPE;
    int go[2];
    if (pipe2(go, O_CLOEXEC) != 0)
        return -errno;
    struct zygote_request head = {.magic = ZYGOTE_MAGIC, .size = (uint32_t)size, .fds = fd_count, .flags = flags};
    const int64_t now = shoal_clock_now();
    /* The zygote may still be importing what it preloads. */
    struct patience patience = {wanted, context, now + LOOK_AFTER, now + 60 * SHOAL_SECOND};
    int error = ask(zygote, &head, request, go[0], fds, &patience, out);
    /* Our own read end is still open: there is room for one byte, and no SIGPIPE where the process is gone. */
    const char answer = error == 0 ? ZYGOTE_GO : ZYGOTE_DO_NOT;
    while (write(go[1], &answer, 1) < 0 && errno == EINTR) {
    }
    close(go[0]);
    close(go[1]);
    return error;
}
