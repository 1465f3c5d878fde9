/* queue/watch.c: a descriptor that is readable while something is in the queue.
 *
 * An eventfd of the queue's, which nobody touches until somebody asks for it (shoal_queue_watch sets `watched`). From
 * then on a producer writes to it while its slot is still WRITING: killed before that, it leaves no item, and killed
 * after it, an item that was told of. Who finds the queue empty (head at tail) reads it, and writes again where a
 * producer came between. A consumer killed between these two calls leaves that one item untold, until the next put.
 */
#include <errno.h>
#include <fcntl.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "queue/queue.h"

int watch_open(shoal_queue *queue, int handed_over)
{
    queue->watch_fd = handed_over < 0 ? eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK) : fcntl(handed_over, F_DUPFD_CLOEXEC, 3);
    return queue->watch_fd < 0 ? -errno : 0;
}

static bool is_watched(const shoal_queue *queue)
{
    /* seq_cst: after the claim, whose step of the tail is seq_cst too. Either this sees the flag, or who set it sees
     * the tail. */
    return atomic_load_explicit(&queue->header->watched, memory_order_seq_cst) != 0;
}

static void make_readable(const shoal_queue *queue)
{
    static const uint64_t one = 1;
    ssize_t written = write(queue->watch_fd, &one, sizeof one);
    (void)written; /* EAGAIN: the counter is full, so it is readable */
}

void watch_tell(shoal_queue *queue)
{
    if (is_watched(queue))
        make_readable(queue);
}

/* Whether some position is claimed and not done with. */
static bool holds_any(const shoal_queue *queue)
{
    /* seq_cst: after the read of the descriptor, or the setting of the flag */
    uint64_t head = atomic_load_explicit(&queue->header->head, memory_order_seq_cst);
    return atomic_load_explicit(&queue->header->tail, memory_order_seq_cst) > head;
}

void watch_settle(shoal_queue *queue)
{
    if (!is_watched(queue) || holds_any(queue))
        return;
    uint64_t told;
    if (read(queue->watch_fd, &told, sizeof told) < 0)
        return; /* nothing was told, or another process has just read it and looks by itself */
    if (holds_any(queue))
        make_readable(queue);
}

int shoal_queue_watch(shoal_queue *queue)
{
    if (!is_watched(queue)) {
        atomic_store_explicit(&queue->header->watched, 1, memory_order_seq_cst);
        if (holds_any(queue))
            make_readable(queue);
    }
    return queue->watch_fd;
}
