/* queue/participant.c: who uses a queue, and whether they still live.
 *
 * An owner in a slot's word is an index into this table. An entry holds pid and start time in one word, so it is taken
 * by one compare-and-swap and is not fooled by a pid that is used again. A child of fork is another user than its
 * parent: the generation that base/identity.c counts tells it that the index in its handle is not its own.
 */
#include "queue/queue.h"

#include <errno.h>

#include "base/identity.h"

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
 * known for dead. Or of who drops an item, which may be this user's: then its memory must stay, as that one reads it.
 */
static bool holds_a_slot(shoal_queue *queue, uint32_t index)
{
    uint64_t tail = atomic_load_explicit(&queue->header->tail, memory_order_acquire);
    uint64_t head = atomic_load_explicit(&queue->header->head, memory_order_acquire);
    for (uint64_t position = head; position < tail + 1; position++) {
        struct queue_slot *slot = slot_find(queue, position);
        if (slot == NULL)
            continue;
        /* acquire: pairs with the release in drop(); who is through with the item reads nothing of it any more */
        uint64_t word = atomic_load_explicit(&slot->state, memory_order_acquire);
        if (qslot_state(word) == QSLOT_DROPPING || (qslot_is_held(word) && qslot_owner(word) == index))
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
    uint64_t identity = identity_self();
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
    uint32_t generation = identity_generation();
    if ((uint32_t)known != 0 && (uint32_t)(known >> 32) == generation) {
        *index = (uint32_t)known - 1;
        return 0;
    }
    int error = register_self(queue, index);
    if (error != 0)
        return error;
    /* Where places are vacated meanwhile, another thread may have found an earlier one: all that goes through this
     * handle goes under one number, as blocks are given by it. The other place stays, until this process ends. */
    if (!atomic_compare_exchange_strong_explicit(&queue->self, &known, (uint64_t)generation << 32 | (*index + 1),
                                                 memory_order_relaxed, memory_order_relaxed))
        *index = (uint32_t)known - 1;
    return 0;
}
