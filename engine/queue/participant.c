/* queue/participant.c: who uses a queue, and whether they still live.
 *
 * An owner in a slot's word is an index into this table. An entry holds pid and start time in one word, so it is taken
 * by one compare-and-swap and is not fooled by a pid that is used again. A child of fork is another user than its
 * parent: a generation, counted by an atfork handler, tells it that the index in its handle is not its own.
 */
#include "queue/queue.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* Global to the process, and documented as such: how many forks deep it is. Written by the handler alone, in a child
 * that has one thread. */
static _Atomic uint32_t fork_generation;
static pthread_once_t fork_once = PTHREAD_ONCE_INIT;

static void in_child(void)
{
    atomic_fetch_add_explicit(&fork_generation, 1, memory_order_relaxed);
}

static void watch_forks(void)
{
    pthread_atfork(NULL, NULL, in_child);
}

/* The time a process started, in clock ticks since boot; 0: there is no such process, or only its corpse. */
static uint64_t start_time(pid_t pid)
{
    char path[40], text[1024];
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    FILE *file = fopen(path, "re");
    if (file == NULL)
        return 0;
    size_t size = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[size] = '\0';
    /* The second field is the program's name in parentheses, which may itself hold spaces and parentheses. */
    const char *at = strrchr(text, ')');
    char state = '\0';
    unsigned long long started = 0;
    if (at == NULL || sscanf(at + 1, " %c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %llu",
                             &state, &started) != 2)
        return 0;
    return state == 'Z' || state == 'X' ? 0 : (uint64_t)started;
}

#define TIME_MASK ((UINT64_C(1) << 42) - 1)

static uint64_t identity_of(pid_t pid)
{
    uint64_t started = start_time(pid);
    return started == 0 ? 0 : (uint64_t)pid << 42 | (started & TIME_MASK);
}

static bool identity_lives(uint64_t identity)
{
    return identity != 0 && identity_of((pid_t)(identity >> 42)) == identity;
}

bool participant_alive(const shoal_queue *queue, uint32_t index)
{
    return identity_lives(atomic_load_explicit(&queue->participants[index].identity, memory_order_relaxed));
}

/* A place that is being vacated. Nobody's identity: pid 0 has none. A process killed meanwhile costs the queue one
 * place. */
#define VACATING UINT64_C(1)

/* A dead user's place: what it owned in the heap is freed before somebody else gets its number. The one that changes
 * the entry does it: a second sweep could hit the blocks of the number's next user. */
static void vacate(shoal_queue *queue, uint32_t index, uint64_t identity)
{
    _Atomic uint64_t *entry = &queue->participants[index].identity;
    if (!atomic_compare_exchange_strong_explicit(entry, &identity, VACATING, memory_order_relaxed,
                                                 memory_order_relaxed))
        return;
    (void)shoal_heap_sweep(queue->heap, index + 1, NULL);
    /* release: whoever takes the place finds its blocks swept */
    atomic_store_explicit(entry, 0, memory_order_release);
}

/* Whether some slot between head and tail is still in the hands of this user: then its place must stay, so that it is
 * known for dead. */
static bool holds_a_slot(shoal_queue *queue, uint32_t index)
{
    uint64_t tail = atomic_load_explicit(&queue->header->tail, memory_order_acquire);
    uint64_t head = atomic_load_explicit(&queue->header->head, memory_order_acquire);
    for (uint64_t position = head; position < tail + 1; position++) {
        struct queue_slot *slot = slot_find(queue, position);
        if (slot == NULL)
            continue;
        uint64_t word = atomic_load_explicit(&slot->state, memory_order_relaxed);
        enum queue_slot_state state = qslot_state(word);
        if ((state == QSLOT_WRITING || state == QSLOT_READING) && qslot_owner(word) == index)
            return true;
    }
    return false;
}

void participants_sweep(shoal_queue *queue)
{
    for (uint32_t i = 0; i < PARTICIPANTS; i++) {
        uint64_t identity = atomic_load_explicit(&queue->participants[i].identity, memory_order_relaxed);
        if (identity > VACATING && !identity_lives(identity) && !holds_a_slot(queue, i))
            vacate(queue, i, identity);
    }
}

static int register_self(shoal_queue *queue, uint32_t *index)
{
    uint64_t identity = identity_of(getpid());
    if (identity == 0)
        return -ENOSYS; /* no /proc: who lives cannot be known */
    for (int round = 0; round < 2; round++) {
        for (uint32_t i = 0; i < PARTICIPANTS; i++) {
            uint64_t found = atomic_load_explicit(&queue->participants[i].identity, memory_order_relaxed);
            if (found == 0)
                /* acquire: pairs with the release in vacate */
                atomic_compare_exchange_strong_explicit(&queue->participants[i].identity, &found, identity,
                                                        memory_order_acquire, memory_order_relaxed);
            else if (found != identity)
                continue;
            if (atomic_load_explicit(&queue->participants[i].identity, memory_order_relaxed) == identity) {
                *index = i;
                return 0;
            }
        }
        participants_sweep(queue);
    }
    return -EUSERS;
}

int participant_self(shoal_queue *queue, uint32_t *index)
{
    uint64_t known = atomic_load_explicit(&queue->self, memory_order_relaxed);
    uint32_t generation = atomic_load_explicit(&fork_generation, memory_order_relaxed);
    if ((uint32_t)known != 0 && (uint32_t)(known >> 32) == generation) {
        *index = (uint32_t)known - 1;
        return 0;
    }
    pthread_once(&fork_once, watch_forks);
    int error = register_self(queue, index);
    if (error == 0)
        atomic_store_explicit(&queue->self, (uint64_t)generation << 32 | (*index + 1), memory_order_relaxed);
    return error;
}
