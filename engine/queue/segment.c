/* queue/segment.c: where positions lie: segments of slots, taken from a free list and given back.
 *
 * A segment is set up (each slot FREE, with its position) before the directory names it. It is retired by the one
 * process that moved the head over its last slot, when all of its slots are DONE. A process killed between two of these
 * steps loses the queue one segment of 32 KB, and nothing else.
 *
 * A producer that was stopped after it had found no segment may name one when all positions in it are over: the segment
 * comes too late. It is retired by the one who named it, and nothing claimed in it counts (position_is_passed).
 * tests/models/segment.pml has both.
 */
#include "queue/queue.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>

#define SPARE_MOST 256u /* segments kept warm; past that their memory goes back to the machine */

static uint64_t entry_of(uint64_t number, uint32_t index)
{
    return number << 32 | (uint64_t)(index + 1);
}

struct queue_slot *slot_find(shoal_queue *queue, uint64_t position)
{
    uint64_t number = position / SEGMENT_SLOTS;
    /* acquire: pairs with the release in segment_provide; the slots' first states come with it */
    uint64_t entry = atomic_load_explicit(&queue->directory[number % SEGMENTS], memory_order_acquire);
    uint32_t index = (uint32_t)entry - 1;
    if ((uint32_t)entry == 0 || (uint32_t)(entry >> 32) != (uint32_t)number || index >= SEGMENTS)
        return NULL;
    return &queue->segments[index].slots[position % SEGMENT_SLOTS];
}

bool position_is_passed(const shoal_queue *queue, uint64_t position)
{
    /* acquire: the slot that made the head pass is seen as DONE */
    return atomic_load_explicit(&queue->header->head, memory_order_acquire) > position;
}

/* Take a segment off the free list, or a fresh one. */
static bool take_segment(shoal_queue *queue, uint32_t *index)
{
    struct queue_header *header = queue->header;
    /* acquire: pairs with the release in put_segment; the list's links come with it */
    uint64_t top = atomic_load_explicit(&header->free_segments, memory_order_acquire);
    while ((uint32_t)top != 0) {
        uint32_t found = (uint32_t)top - 1;
        if (found >= SEGMENTS)
            return false;
        uint32_t next = atomic_load_explicit(&queue->next_free[found], memory_order_relaxed);
        uint64_t below = ((top >> 32) + 1) << 32 | next; /* the count makes a reused top another value */
        if (atomic_compare_exchange_weak_explicit(&header->free_segments, &top, below, memory_order_acquire,
                                                  memory_order_acquire)) {
            atomic_fetch_sub_explicit(&header->spare_segments, 1, memory_order_relaxed);
            *index = found;
            return true;
        }
    }
    uint32_t fresh = atomic_load_explicit(&header->fresh_segments, memory_order_relaxed);
    while (fresh < SEGMENTS) {
        if (atomic_compare_exchange_weak_explicit(&header->fresh_segments, &fresh, fresh + 1, memory_order_relaxed,
                                                  memory_order_relaxed)) {
            *index = fresh;
            return true;
        }
    }
    return false;
}

static void put_segment(shoal_queue *queue, uint32_t index)
{
    struct queue_header *header = queue->header;
    if (atomic_fetch_add_explicit(&header->spare_segments, 1, memory_order_relaxed) >= SPARE_MOST) {
        off_t at = (off_t)((uint8_t *)&queue->segments[index] - (uint8_t *)queue->header);
        (void)fallocate(shoal_region_fd(queue->region), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at,
                        sizeof(struct queue_segment));
    }
    uint64_t top = atomic_load_explicit(&header->free_segments, memory_order_relaxed), above;
    do {
        atomic_store_explicit(&queue->next_free[index], (uint32_t)top, memory_order_relaxed);
        above = ((top >> 32) + 1) << 32 | (index + 1);
        /* release: pairs with the acquire in take_segment; publishes the link */
    } while (!atomic_compare_exchange_weak_explicit(&header->free_segments, &top, above, memory_order_release,
                                                    memory_order_relaxed));
}

int segment_provide(shoal_queue *queue, uint64_t position)
{
    uint64_t number = position / SEGMENT_SLOTS;
    _Atomic uint64_t *place = &queue->directory[number % SEGMENTS];
    uint64_t entry = atomic_load_explicit(place, memory_order_acquire);
    if ((uint32_t)entry != 0 && (uint32_t)(entry >> 32) == (uint32_t)number)
        return 0;
    if ((uint32_t)entry != 0) {
        /* The directory has come round. An older segment that the head has passed was left by a process that died. */
        uint64_t older = number - (uint32_t)((uint32_t)number - (uint32_t)(entry >> 32));
        uint64_t last = (older + 1) * SEGMENT_SLOTS - 1;
        if (older >= number || last >= atomic_load_explicit(&queue->header->head, memory_order_acquire))
            return -ENOMEM;
        segment_retire(queue, last);
        entry = 0;
    }
    uint32_t index;
    if (!take_segment(queue, &index))
        return -ENOMEM;
    struct queue_segment *segment = &queue->segments[index];
    for (uint32_t i = 0; i < SEGMENT_SLOTS; i++) {
        /* What the slot's last item referred to is not what a producer that dies early in the next one left. */
        segment->slots[i].block = 0;
        segment->slots[i].form = 0;
        atomic_store_explicit(&segment->slots[i].state, qslot_word(number * SEGMENT_SLOTS + i, 0, QSLOT_FREE),
                              memory_order_relaxed);
    }
    const uint64_t last = (number + 1) * SEGMENT_SLOTS - 1;
    /* release: pairs with the acquire in slot_find; publishes the states. acquire: if another's segment of this number
     * was retired before, the head that it was retired for is seen below. */
    if (!atomic_compare_exchange_strong_explicit(place, &entry, entry_of(number, index), memory_order_acq_rel,
                                                 memory_order_relaxed))
        put_segment(queue, index); /* another producer was quicker */
    else if (position_is_passed(queue, last))
        segment_retire(queue, last); /* ours came too late and holds nothing. Not to be told by `position`: while this
                                      * process was stopped, others may have used the first slots of ours. */
    return 0;
}

void segment_retire(shoal_queue *queue, uint64_t last_position)
{
    uint64_t number = last_position / SEGMENT_SLOTS;
    _Atomic uint64_t *place = &queue->directory[number % SEGMENTS];
    uint64_t entry = atomic_load_explicit(place, memory_order_acquire);
    if ((uint32_t)entry == 0 || (uint32_t)(entry >> 32) != (uint32_t)number)
        return;
    if (atomic_compare_exchange_strong_explicit(place, &entry, 0, memory_order_acq_rel, memory_order_relaxed))
        put_segment(queue, (uint32_t)entry - 1); /* acq_rel: reads of the slots came before, reuse comes after */
}
