/* pool/collect.c: the owner's side of a pool: collects what is done, gives slots back, waits.
 *
 * A done slot was published by its worker in this order: its state word (DONE), its entry in the worker's completion
 * ring, that ring's head, then a look whether anybody sleeps for it. Only the state word counts; supervise.c makes good
 * what a dead worker left out of the rest. What lies in a slot was written by a worker: it is checked before it is
 * used.
 */
#include "pool/pool.h"

#include <errno.h>

/* What is done may be told late (workers group short tasks, and tell nobody while enough is left to be taken), so a
 * sleep is cut into slices that double from the first to the last, and begin the longer the longer the caller has
 * waited: it is late by at most the time it has waited already, and a long wait costs 50 looks a second (twice that
 * where the caller cuts its wait into slices of its own). */
#define FIRST_SLICE (200 * SHOAL_MICROSECOND)
#define LAST_SLICE (20 * SHOAL_MILLISECOND)

void pool_list(shoal_pool *pool, uint32_t slot)
{
    if (pool->notes[slot].listed)
        return;
    pool->notes[slot].listed = true;
    pool->done[pool->done_head++ & (pool->table.slot_count - 1)] = slot;
}

void pool_drain(shoal_pool *pool, uint32_t place)
{
    struct table *table = &pool->table;
    /* acquire: pairs with the release in shoal_task_finish; the slots' state words and results come with it */
    uint64_t head = atomic_load_explicit(&table->workers[place].completions, memory_order_acquire);
    _Atomic uint32_t *ring = table->completions + (size_t)place * table->slot_count;
    uint64_t *tail = &pool->places[place].collected;
    if (head - *tail > table->slot_count)
        *tail =
            head - table->slot_count; /* more than there can be: overwritten memory; what is lost is found by state */
    for (; *tail != head; ++*tail) {
        uint32_t index = atomic_load_explicit(&ring[*tail & (table->slot_count - 1)], memory_order_relaxed);
        if (index >= table->slot_count)
            continue;
        /* acquire: as above, for a ring whose entry was overwritten: the word alone says that the slot is done */
        uint64_t word = atomic_load_explicit(&table->slots[index].state, memory_order_acquire);
        if (slot_state_of(word) == SLOT_DONE)
            pool_list(pool, index);
    }
}

bool pool_results(shoal_pool *pool, const struct slot *slot, struct item_reader *out)
{
    shoal_block block = atomic_load_explicit(&slot->results_block, memory_order_relaxed);
    uint64_t size = atomic_load_explicit(&slot->results_size, memory_order_relaxed);
    if (block == 0) {
        if (slot->results_from > SLOT_INLINE || size > SLOT_INLINE - slot->results_from)
            return false;
        *out = (struct item_reader){.at = slot->bytes + slot->results_from};
    } else {
        *out = (struct item_reader){.at = block_bytes(pool->heap, block, size)};
        if (out->at == NULL)
            return false;
    }
    out->end = out->at + size;
    return true;
}

/* The results' blocks go from the worker to the owner (0), at the latest here. */
static void take_over_blocks(shoal_pool *pool, uint32_t worker, struct item_reader *results, uint32_t count)
{
    shoal_item item;
    while (count > 0) {
        const uint32_t skipped = item_skip_run(results, count);
        count -= skipped;
        if (skipped > 0)
            continue;
        if (item_next(results, &item) != 0)
            return;
        count--;
        for (uint32_t i = 0; i < item.block_count; i++)
            (void)shoal_heap_give(pool->heap, item.blocks[i], worker, 0); /* -EPERM: taken over at a burial */
    }
}

void pool_take_over(shoal_pool *pool, uint32_t index)
{
    struct slot *slot = &pool->table.slots[index];
    const uint32_t first = pool->orders[index].first;
    uint32_t worker = slot_owner_of(atomic_load_explicit(&slot->state, memory_order_relaxed));
    uint32_t finished = atomic_load_explicit(&slot->finished, memory_order_relaxed);
    shoal_block block = atomic_load_explicit(&slot->results_block, memory_order_relaxed);
    struct item_reader results;
    if (block != 0)
        (void)shoal_heap_give(pool->heap, block, worker, 0);
    if (finished >= first && pool_results(pool, slot, &results))
        take_over_blocks(pool, worker, &results, finished - first);
}

int shoal_pool_collect(shoal_pool *pool, shoal_completion *out)
{
    pthread_mutex_lock(&pool->lock);
    if (pool->done_head == pool->done_tail) {
        for (uint32_t i = 0; i < pool->table.worker_count; i++)
            pool_drain(pool, i);
    }
    if (pool->done_head == pool->done_tail) {
        pthread_mutex_unlock(&pool->lock);
        return -EAGAIN;
    }
    uint32_t index = pool->done[pool->done_tail++ & (pool->table.slot_count - 1)];
    struct slot *slot = &pool->table.slots[index];
    const struct slot_note note = pool->notes[index];
    if (atomic_load_explicit(&slot->results_block, memory_order_relaxed) != 0 ||
        atomic_load_explicit(&slot->results_size, memory_order_relaxed) > 0)
        pool_take_over(pool, index);
    pthread_mutex_unlock(&pool->lock);

    const struct slot_order *order = &pool->orders[index];
    uint32_t finished = atomic_load_explicit(&slot->finished, memory_order_relaxed);
    if (finished > order->items || finished < order->first)
        finished = order->first;
    *out = (shoal_completion){
        .tag = order->tag,
        .shared = order->shared,
        .first = order->first,
        .finished = finished,
        .items = order->items,
        .outcome = note.outcome != 0 ? note.outcome
                   : note.pid != 0   ? SHOAL_EWORKERDIED
                                     : 0,
        .blameless = note.blameless,
        .worker_pid = note.pid,
        .exit = note.exit,
        .elapsed = slot->elapsed,
        .slot = index,
        .left = finished - order->first,
    };
    if (finished < order->items && out->outcome == 0)
        out->outcome = atomic_load_explicit(&slot->stop, memory_order_relaxed) != 0 ? SHOAL_ECANCELLED : SHOAL_ECORRUPT;
    struct item_reader results;
    if (pool_results(pool, slot, &results)) {
        out->next_result = results.at;
        out->results_end = results.end;
    } else {
        out->outcome = SHOAL_ECORRUPT;
        out->finished = out->first;
        out->left = 0;
    }
    return 0;
}

int shoal_completion_next(shoal_completion *completion, shoal_item *out)
{
    if (completion->left == 0)
        return -ENODATA;
    struct item_reader reader = {completion->next_result, completion->results_end, completion->run, completion->kind};
    if (item_next(&reader, out) != 0)
        return SHOAL_ECORRUPT;
    completion->next_result = reader.at;
    completion->run = reader.run;
    completion->kind = reader.kind;
    completion->left--;
    return 0;
}

uint32_t shoal_completion_words(shoal_completion *completion, uint32_t *kind, const void **words)
{
    struct item_reader reader = {completion->next_result, completion->results_end, completion->run, completion->kind};
    const uint32_t count = item_skip_run(&reader, completion->left);
    if (count == 0)
        return 0;
    *words = reader.at - count * ITEM_WORD;
    *kind = completion->kind = reader.kind;
    completion->next_result = reader.at;
    completion->run = reader.run;
    completion->left -= count;
    return count;
}

/* A task's items; false: they are malformed. */
static bool task_items(shoal_pool *pool, uint32_t index, struct item_reader *out)
{
    const struct slot_order *order = &pool->orders[index];
    const uint8_t *begin = order->args_block == 0 ? pool->table.slots[index].bytes
                                                  : block_bytes(pool->heap, order->args_block, order->args_size);
    if (begin == NULL || (order->args_block == 0 && order->args_size > SLOT_INLINE))
        return false;
    *out = (struct item_reader){.at = begin, .end = begin + order->args_size};
    return true;
}

/* Free the blocks that a task still holds of its items before number `limit`: all of them where it keeps its blocks,
 * else those of items which no worker began. A begun item's blocks are the worker's: freed by it, or swept with it, and
 * perhaps somebody else's by now. */
static void free_item_blocks(shoal_pool *pool, uint32_t index, uint32_t limit)
{
    struct item_reader items;
    if (!task_items(pool, index, &items))
        return;
    const bool kept = (pool->orders[index].flags & SHOAL_TASK_KEEPS_BLOCKS) != 0;
    const uint32_t taken = atomic_load_explicit(&pool->table.slots[index].taken, memory_order_relaxed);
    shoal_item item;
    for (uint32_t i = 0; i < limit && item_next(&items, &item) == 0; i++) {
        for (uint32_t j = 0; (kept || i >= taken) && j < item.block_count; j++)
            (void)shoal_heap_free(pool->heap, item.blocks[j]);
    }
}

/* The `number`th item of a task. False: the task is malformed, or shorter. */
static bool find_item(shoal_pool *pool, uint32_t index, uint32_t number, shoal_item *item)
{
    struct item_reader items;
    return task_items(pool, index, &items) && item_skip(&items, number) == 0 && item_next(&items, item) == 0;
}

void pool_finish_handing(shoal_pool *pool, uint32_t index, uint32_t worker)
{
    struct slot *slot = &pool->table.slots[index];
    const uint32_t handing = atomic_load_explicit(&slot->handing, memory_order_relaxed);
    shoal_item item;
    if (handing <= atomic_load_explicit(&slot->taken, memory_order_relaxed) ||
        !find_item(pool, index, handing - 1, &item))
        return;
    for (uint32_t i = 0; i < item.block_count; i++)
        (void)shoal_heap_give(pool->heap, item.blocks[i], 0, worker); /* -EPERM: the worker had done it */
    atomic_store_explicit(&slot->taken, handing, memory_order_relaxed);
}

bool pool_keeps_item(shoal_pool *pool, uint32_t index, uint32_t number)
{
    shoal_item item;
    return (pool->orders[index].flags & SHOAL_TASK_KEEPS_BLOCKS) != 0 ||
           number >= atomic_load_explicit(&pool->table.slots[index].taken, memory_order_relaxed) ||
           (find_item(pool, index, number, &item) && item.block_count == 0);
}

static void free_results(shoal_pool *pool, struct slot *slot)
{
    shoal_block block = atomic_load_explicit(&slot->results_block, memory_order_relaxed);
    if (block != 0)
        (void)shoal_heap_free(pool->heap, block);
    atomic_store_explicit(&slot->results_block, 0, memory_order_relaxed);
    atomic_store_explicit(&slot->results_size, 0, memory_order_relaxed);
}

void shoal_pool_release(shoal_pool *pool, shoal_completion *completion)
{
    struct slot *slot = &pool->table.slots[completion->slot];
    free_results(pool, slot);
    /* A task that all of its items were done of has given its blocks away, unless it keeps them. */
    struct slot_order *order = &pool->orders[completion->slot];
    if (completion->finished < completion->items || (order->flags & SHOAL_TASK_KEEPS_BLOCKS) != 0)
        free_item_blocks(pool, completion->slot, UINT32_MAX);
    if (order->args_block != 0)
        (void)shoal_heap_free(pool->heap, order->args_block);

    pthread_mutex_lock(&pool->lock);
    uint64_t word = atomic_load_explicit(&slot->state, memory_order_relaxed);
    /* relaxed: the next to write the slot is this process, under the lock; no worker claims a slot that is not READY */
    atomic_store_explicit(&slot->state, slot_word(slot_generation_of(word) + 1, 0, SLOT_FREE), memory_order_relaxed);
    pool->notes[completion->slot] = (struct slot_note){0};
    pool->free_slots[pool->free_count++] = completion->slot;
    if (order->time_limit > 0)
        pool->limited--;
    *order = (struct slot_order){0};
    atomic_fetch_sub_explicit(&pool->outstanding, 1, memory_order_relaxed);
    pthread_mutex_unlock(&pool->lock);
}

int shoal_pool_resume(shoal_pool *pool, shoal_completion *completion, uint32_t from)
{
    struct slot *slot = &pool->table.slots[completion->slot];
    if (from < completion->finished || from >= completion->items)
        return -EINVAL;
    free_results(pool, slot);
    int error = 0;
    bool look_sooner = false;
    pthread_mutex_lock(&pool->lock);
    if (!pool_ring_has_room(pool)) {
        error = -EAGAIN;
        goto unlock;
    }
    /* An item that is left out, and was claimed with its task but not begun, still has its blocks. */
    if ((pool->orders[completion->slot].flags & SHOAL_TASK_KEEPS_BLOCKS) == 0) {
        free_item_blocks(pool, completion->slot, from);
        if (atomic_load_explicit(&slot->taken, memory_order_relaxed) < from)
            atomic_store_explicit(&slot->taken, from, memory_order_relaxed);
    }
    pool->orders[completion->slot].first = from;
    slot->first = from;
    atomic_store_explicit(&slot->finished, from, memory_order_relaxed);
    atomic_store_explicit(&slot->began, 0, memory_order_relaxed);
    slot->elapsed = 0;
    uint64_t word = atomic_load_explicit(&slot->state, memory_order_relaxed);
    /* A new generation: entries of the ready ring that name the old one must not be taken for this round. */
    atomic_store_explicit(&slot->state, slot_word(slot_generation_of(word) + 1, 0, SLOT_FREE), memory_order_relaxed);
    /* While the task was done there was nothing to look for. */
    look_sooner = pool_looks_too_late(pool, pool->orders[completion->slot].time_limit);
    pool_publish(pool, completion->slot);
unlock:
    pthread_mutex_unlock(&pool->lock);
    if (look_sooner)
        shoal_pool_request_attention(pool, 0, 1);
    return error;
}

/* ----------------------------------------------------------------- waiting ---- */

static bool has_completions(shoal_pool *pool)
{
    bool found = false;
    pthread_mutex_lock(&pool->lock);
    found = pool->done_head != pool->done_tail;
    for (uint32_t i = 0; i < pool->table.worker_count && !found; i++)
        found = atomic_load_explicit(&pool->table.workers[i].completions, memory_order_relaxed) !=
                pool->places[i].collected;
    pthread_mutex_unlock(&pool->lock);
    return found;
}

/* Tell the workers what the sleeping threads of this process want. Locked. */
static void post_low_water(shoal_pool *pool)
{
    uint32_t mark = pool->waiting_for_any > 0 ? 0 : pool->low_water;
    atomic_store_explicit(&pool->table.header->low_water, mark, memory_order_relaxed);
}

static void announce(shoal_pool *pool, uint32_t low_water)
{
    pthread_mutex_lock(&pool->lock);
    if (low_water == 0) {
        pool->waiting_for_any++;
    } else {
        pool->low_water = pool->waiting_for_low++ == 0 || low_water > pool->low_water ? low_water : pool->low_water;
    }
    post_low_water(pool);
    pthread_mutex_unlock(&pool->lock);
}

static void retract(shoal_pool *pool, uint32_t low_water)
{
    pthread_mutex_lock(&pool->lock);
    if (low_water == 0)
        pool->waiting_for_any--;
    else
        pool->waiting_for_low--;
    post_low_water(pool);
    pthread_mutex_unlock(&pool->lock);
}

/* Whether the tasks left to be taken are so few that a caller that waits with `low_water` wants to know. */
static bool is_low(const shoal_pool *pool, uint32_t low_water)
{
    return low_water == 0 || shoal_pool_ready(pool) < low_water;
}

/* The first slice of a sleep: see FIRST_SLICE. */
static int64_t first_slice(int64_t waited)
{
    if (waited / 8 <= FIRST_SLICE)
        return FIRST_SLICE;
    return waited / 8 < LAST_SLICE ? waited / 8 : LAST_SLICE;
}

int shoal_pool_wait(shoal_pool *pool, uint32_t low_water, uint64_t nudges, int64_t waited, int64_t timeout)
{
    struct table_header *header = pool->table.header;
    int64_t now = shoal_clock_now();
    const int64_t deadline = timeout >= SHOAL_FOREVER - now ? SHOAL_FOREVER : now + timeout;
    int64_t slice = first_slice(waited);
    pool_note_owner_cpu(pool);

#define READY_TO_LOOK()                                                                                                \
    (atomic_load_explicit(&pool->nudges, memory_order_relaxed) != nudges ||                                            \
     (is_low(pool, low_water) && has_completions(pool)))

    if (READY_TO_LOOK())
        return 0;
    /* Every worker that is awake needs a core before this thread may look on one of its own. */
    if (timeout > 0 && atomic_load_explicit(&header->awake, memory_order_relaxed) < spin_cpu_count(now)) {
        bool ready = false;
        struct spin spin = spin_begin(&pool->spin, SPIN_UNKNOWN_CPU);
        while (!(ready = READY_TO_LOOK()) && spin_again(&spin)) {
        }
        spin_end(&spin, ready);
        if (ready)
            return 0;
    }
    announce(pool, low_water);
    int result = 0;
    for (;;) {
        uint32_t seen = eventcount_prepare(&header->collect);
        if (READY_TO_LOOK())
            break;
        now = shoal_clock_now();
        if (now >= deadline) {
            result = -ETIMEDOUT;
            break;
        }
        int64_t until = deadline;
        if (now < deadline - slice)
            until = now + slice;
        result = eventcount_wait(&header->collect, seen, until);
        if (result == -EINTR)
            break;
        result = 0;
        if (slice < LAST_SLICE)
            slice = slice * 2 > LAST_SLICE ? LAST_SLICE : slice * 2;
        /* After a slice whatever is done counts, low water or not. */
        if (atomic_load_explicit(&pool->nudges, memory_order_relaxed) != nudges || has_completions(pool))
            break;
    }
    retract(pool, low_water);
#undef READY_TO_LOOK
    return result;
}

void shoal_pool_nudge(shoal_pool *pool)
{
    atomic_fetch_add_explicit(&pool->nudges, 1, memory_order_relaxed);
    (void)eventcount_notify_all(&pool->table.header->collect);
}

uint64_t shoal_pool_nudges(const shoal_pool *pool)
{
    return atomic_load_explicit(&pool->nudges, memory_order_relaxed);
}
