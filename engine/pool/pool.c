/* pool/pool.c: the owner's side of a pool: makes it, hands tasks out, collects what is done, waits.
 *
 * A submitted slot is published three times, in this order: its state word (READY), its entry in the ready ring, the
 * ring's tail. A done slot: its state word (DONE), its entry in the worker's completion ring, that ring's head, then a
 * look whether anybody sleeps for it. Only the state words count; supervise.c makes good what a dead worker left out of
 * the rest.
 */
#include "pool/pool.h"
#include "pool/batch.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define DEFAULT_SLOTS 1024u
/* What is done may be told late (workers group short tasks, and tell nobody while enough is left to be taken), so a
 * sleep is cut into slices that double from the first to the last, and begin the longer the longer the caller has
 * waited: it is late by at most the time it has waited already, and a long wait costs 50 looks a second (twice that
 * where the caller cuts its wait into slices of its own). */
#define FIRST_SLICE (200 * SHOAL_MICROSECOND)
#define LAST_SLICE (20 * SHOAL_MILLISECOND)
#define TURNS_FOR_WHO_LOOKS 16

bool pool_is_owner(const shoal_pool *pool)
{
    return pool->owner_process == getpid();
}

static uint32_t round_up_to_power_of_2(uint32_t value)
{
    uint32_t power = 1;
    while (power < value)
        power *= 2;
    return power;
}

static void pool_free(shoal_pool *pool)
{
    if (pool->attention >= 0)
        close(pool->attention);
    if (pool->epoll >= 0)
        close(pool->epoll);
    if (pool->places != NULL) {
        for (uint32_t i = 0; i < pool->table.worker_count; i++) {
            if (pool->places[i].pidfd >= 0)
                close(pool->places[i].pidfd);
        }
    }
    free(pool->places);
    free(pool->done);
    free(pool->notes);
    free(pool->orders);
    free(pool->free_slots);
    if (pool->heap != NULL)
        shoal_heap_release(pool->heap);
    if (pool->table.region != NULL)
        table_close(&pool->table);
    pthread_mutex_destroy(&pool->lock);
    free(pool);
}

int shoal_pool_create(const shoal_pool_options *options, shoal_pool **out)
{
    if (options->workers == 0 || options->workers > SHOAL_POOL_WORKERS || options->slots > POOL_SLOTS_MOST)
        return -EINVAL;
    uint32_t slots = options->slots;
    if (slots == 0)
        slots = options->workers * 4 > DEFAULT_SLOTS ? options->workers * 4 : DEFAULT_SLOTS;
    slots = round_up_to_power_of_2(slots);

    shoal_pool *pool = calloc(1, sizeof *pool);
    if (pool == NULL)
        return -ENOMEM;
    pthread_mutex_init(&pool->lock, NULL);
    pool->epoll = pool->attention = -1;
    pool->owner_process = getpid();
    pool->spin = (struct spin_budget)SPIN_INITIALIZER;
    pool->next_owner = 1;
    pool->next_check = SHOAL_FOREVER;

    int error = table_create(slots, options->workers, &pool->table);
    if (error != 0)
        goto failed;
    error = shoal_heap_create(options->heap_limit, &pool->heap);
    if (error != 0)
        goto failed;
    error = -ENOMEM;
    pool->free_slots = malloc(slots * sizeof *pool->free_slots);
    pool->notes = calloc(slots, sizeof *pool->notes);
    pool->orders = calloc(slots, sizeof *pool->orders);
    pool->done = malloc(slots * sizeof *pool->done);
    pool->places = calloc(options->workers, sizeof *pool->places);
    if (pool->free_slots == NULL || pool->notes == NULL || pool->orders == NULL || pool->done == NULL ||
        pool->places == NULL)
        goto failed;
    for (uint32_t i = 0; i < slots; i++)
        pool->free_slots[i] = slots - 1 - i;
    pool->free_count = slots;
    for (uint32_t i = 0; i < options->workers; i++)
        pool->places[i].pidfd = -1;

    pool->epoll = epoll_create1(EPOLL_CLOEXEC);
    pool->attention = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = UINT32_MAX};
    if (pool->epoll < 0 || pool->attention < 0 || epoll_ctl(pool->epoll, EPOLL_CTL_ADD, pool->attention, &event) != 0) {
        error = -errno;
        goto failed;
    }
    *out = pool;
    return 0;

failed:
    pool_free(pool);
    return error;
}

void shoal_pool_close(shoal_pool *pool)
{
    if (pool == NULL || !pool_is_owner(pool))
        return;
    /* Arrays may go on living in the heap; what is free in it need not. */
    (void)shoal_heap_trim(pool->heap);
    pool_free(pool);
}

shoal_heap *shoal_pool_heap(const shoal_pool *pool)
{
    return pool->heap;
}

void shoal_pool_fds(const shoal_pool *pool, int fds[3])
{
    fds[0] = shoal_region_fd(pool->table.region);
    fds[1] = shoal_heap_fd(pool->heap);
    fds[2] = pool->attention;
}

/* ------------------------------------------------------------ handing out ---- */

int shoal_pool_share(shoal_pool *pool, const shoal_item *item, uint32_t *id)
{
    shoal_block block;
    const size_t span = item_span(item->size, item->block_count);
    int error = item_check(item);
    if (error == 0)
        error = shoal_heap_allocate(pool->heap, span, 0, &block);
    if (error != 0)
        return error;
    size_t run = ITEM_NO_RUN;
    /* Allocated just now and of this size: the pointer is never NULL. */
    (void)item_append(shoal_heap_pointer(pool->heap, block, NULL), 0, &run, item);

    error = -EAGAIN;
    pthread_mutex_lock(&pool->lock);
    for (uint32_t tried = 0; tried < POOL_SHARES && error != 0; tried++) {
        uint32_t number = pool->next_share++;
        struct share_record *share = &pool->table.shares[number % POOL_SHARES];
        uint32_t candidate = number % POOL_SHARES | (number / POOL_SHARES + 1) << 12;
        if (atomic_load_explicit(&share->id, memory_order_relaxed) != 0 || candidate >> 12 == 0)
            continue;
        share->block = block;
        share->size = span;
        /* release: pairs with the acquire in shoal_worker_shared; publishes block and size */
        atomic_store_explicit(&share->id, candidate, memory_order_release);
        *id = candidate;
        error = 0;
    }
    pthread_mutex_unlock(&pool->lock);
    if (error != 0)
        (void)shoal_heap_free(pool->heap, block);
    return error;
}

void shoal_pool_unshare(shoal_pool *pool, uint32_t id)
{
    struct share_record *share = &pool->table.shares[id % POOL_SHARES];
    pthread_mutex_lock(&pool->lock);
    shoal_block block = 0;
    if (id != 0 && atomic_load_explicit(&share->id, memory_order_relaxed) == id) {
        block = share->block;
        atomic_store_explicit(&share->id, 0, memory_order_relaxed);
    }
    pthread_mutex_unlock(&pool->lock);
    if (block == 0)
        return;
    const uint8_t *at = shoal_heap_pointer(pool->heap, block, NULL);
    struct item_reader reader = {.at = at, .end = at == NULL ? NULL : at + share->size};
    shoal_item item;
    if (item_next(&reader, &item) == 0) {
        for (uint32_t i = 0; i < item.block_count; i++)
            (void)shoal_heap_free(pool->heap, item.blocks[i]);
    }
    (void)shoal_heap_free(pool->heap, block);
}

/* Put a slot whose contents are complete into the ready ring. Locked. */
static void publish(shoal_pool *pool, uint32_t index)
{
    struct table *table = &pool->table;
    struct slot *slot = &table->slots[index];
    uint64_t word = atomic_load_explicit(&slot->state, memory_order_relaxed);
    uint32_t generation = slot_generation_of(word);
    pool->notes[index] = (struct slot_note){0};
    /* release: pairs with the acquire of the claim in worker.c; publishes the slot's contents */
    atomic_store_explicit(&slot->state, slot_word(generation, 0, SLOT_READY), memory_order_release);
    /* release: a worker that reads the entry must find the slot READY or later, not FREE */
    atomic_store_explicit(&table->ready[pool->ready_tail & table_ready_mask(table)], (uint64_t)generation << 32 | index,
                          memory_order_release);
    /* release: pairs with the acquire in worker.c; publishes the entry */
    atomic_store_explicit(&table->header->ready_tail, ++pool->ready_tail, memory_order_release);
}

/* The ring has room for twice the slots, and entries that are taken are passed by workers only when they look. Locked.
 */
static bool ring_has_room(shoal_pool *pool)
{
    uint64_t head = atomic_load_explicit(&pool->table.header->ready_head, memory_order_relaxed);
    return pool->ready_tail - head < (uint64_t)pool->table.slot_count * 2;
}

int shoal_pool_submit(shoal_pool *pool, const shoal_batch *batch, const shoal_task_options *options)
{
    if (batch->count == 0)
        return -EINVAL;
    shoal_block block = 0;
    if (batch->size > SLOT_INLINE) {
        int error = shoal_heap_allocate(pool->heap, batch->size, 0, &block);
        if (error == 0)
            error = shoal_heap_write(pool->heap, block, 0, batch->bytes, batch->size);
        if (error != 0) {
            if (block != 0)
                (void)shoal_heap_free(pool->heap, block);
            return error;
        }
    }
    int error = 0;
    pthread_mutex_lock(&pool->lock);
    if (atomic_load_explicit(&pool->table.header->shut, memory_order_relaxed) == 2)
        error = -ESHUTDOWN;
    else if (pool->free_count == 0 || !ring_has_room(pool))
        error = -EAGAIN;
    if (error != 0) {
        pthread_mutex_unlock(&pool->lock);
        if (block != 0)
            (void)shoal_heap_free(pool->heap, block);
        return error;
    }
    uint32_t index = pool->free_slots[--pool->free_count];
    struct slot *slot = &pool->table.slots[index];
    struct slot_order *order = &pool->orders[index];
    *order = (struct slot_order){
        .tag = options->tag,
        .group = options->group,
        .shared = options->shared,
        .flags = options->flags,
        .items = batch->count,
        .args_block = block,
        .args_size = batch->size,
        .time_limit = options->time_limit > 0 ? options->time_limit : 0,
    };
    slot->limited = order->time_limit > 0;
    slot->shared = order->shared;
    slot->flags = order->flags;
    slot->items = order->items;
    slot->first = 0;
    slot->args_block = block;
    slot->args_size = order->args_size;
    slot->results_from = 0;
    if (block == 0) {
        memcpy(slot->bytes, batch->bytes, batch->size);
        slot->results_from = (uint32_t)batch->size;
    }
    atomic_store_explicit(&slot->finished, 0, memory_order_relaxed);
    atomic_store_explicit(&slot->taken, 0, memory_order_relaxed);
    atomic_store_explicit(&slot->handing, 0, memory_order_relaxed);
    atomic_store_explicit(&slot->stop, 0, memory_order_relaxed);
    atomic_store_explicit(&slot->began, 0, memory_order_relaxed);
    atomic_store_explicit(&slot->results_block, 0, memory_order_relaxed);
    atomic_store_explicit(&slot->results_size, 0, memory_order_relaxed);
    slot->elapsed = 0;
    atomic_fetch_add_explicit(&pool->outstanding, 1, memory_order_relaxed);
    bool look_sooner = false;
    if (order->time_limit > 0) {
        pool->limited++;
        const int64_t now = shoal_clock_now();
        look_sooner = order->time_limit < SHOAL_FOREVER - now && now + order->time_limit < pool->next_check;
    }
    publish(pool, index);
    pthread_mutex_unlock(&pool->lock);
    if (look_sooner)
        shoal_pool_request_attention(pool, 0, 1);
    return 0;
}

/* Take back a slot that no worker has claimed. Locked. */
static bool take_back(shoal_pool *pool, uint32_t index)
{
    struct slot *slot = &pool->table.slots[index];
    uint64_t word = atomic_load_explicit(&slot->state, memory_order_relaxed);
    if (slot_state_of(word) != SLOT_READY)
        return false;
    /* relaxed: what lies in the slot is this process's own; a worker that loses this race does not touch it */
    if (!atomic_compare_exchange_strong_explicit(&slot->state, &word, slot_word(slot_generation_of(word), 0, SLOT_DONE),
                                                 memory_order_relaxed, memory_order_relaxed))
        return false;
    pool->notes[index].outcome = SHOAL_ECANCELLED;
    pool_list(pool, index);
    return true;
}

uint32_t shoal_pool_cancel(shoal_pool *pool, uint64_t group, int kill)
{
    uint32_t taken_back = 0, running = 0;
    pthread_mutex_lock(&pool->lock);
    for (uint32_t i = 0; i < pool->table.slot_count; i++) {
        struct slot *slot = &pool->table.slots[i];
        if (pool->orders[i].group != group)
            continue;
        if (take_back(pool, i)) {
            taken_back++;
            continue;
        }
        const uint64_t word = atomic_load_explicit(&slot->state, memory_order_relaxed);
        if (slot_state_of(word) != SLOT_RUNNING)
            continue;
        atomic_store_explicit(&slot->stop, 1, memory_order_relaxed);
        const uint32_t finished = atomic_load_explicit(&slot->finished, memory_order_relaxed);
        if (kill)
            pool_condemn(pool, slot_owner_of(word), i, finished, SHOAL_ECANCELLED);
        /* Of a task with one item left, that is at hand, nothing is taken back. */
        running += kill || (finished < UINT32_MAX && finished + 1 < pool->orders[i].items);
    }
    pthread_mutex_unlock(&pool->lock);
    if (taken_back + running > 0)
        shoal_pool_nudge(pool);
    return taken_back + running;
}

uint32_t shoal_pool_recall(shoal_pool *pool, uint64_t group)
{
    uint32_t recalled = 0;
    pthread_mutex_lock(&pool->lock);
    for (uint32_t i = 0; i < pool->table.slot_count; i++) {
        if (pool->orders[i].group == group && take_back(pool, i))
            recalled++;
    }
    pthread_mutex_unlock(&pool->lock);
    if (recalled > 0)
        shoal_pool_nudge(pool);
    return recalled;
}

int shoal_pool_begun(shoal_pool *pool, uint64_t group)
{
    bool begun = false;
    pthread_mutex_lock(&pool->lock);
    for (uint32_t i = 0; i < pool->table.slot_count && !begun; i++) {
        const struct slot *slot = &pool->table.slots[i];
        const enum slot_state state = slot_state_of(atomic_load_explicit(&slot->state, memory_order_relaxed));
        begun = pool->orders[i].group == group && state != SLOT_FREE && state != SLOT_READY;
    }
    pthread_mutex_unlock(&pool->lock);
    return begun;
}

int shoal_pool_full(shoal_pool *pool)
{
    pthread_mutex_lock(&pool->lock);
    bool full = pool->free_count == 0 || !ring_has_room(pool);
    pthread_mutex_unlock(&pool->lock);
    return full;
}

/* Where this process runs: a worker on the same core does not look for work but leaves the core to it. */
static void note_owner_cpu(shoal_pool *pool)
{
    struct table_header *header = pool->table.header;
    uint32_t cpu = spin_current_cpu();
    if (atomic_load_explicit(&header->owner_cpu, memory_order_relaxed) != cpu)
        atomic_store_explicit(&header->owner_cpu, cpu, memory_order_relaxed);
}

/* A worker that looks for work takes what was handed out within a fraction of a microsecond, and waking another costs
 * some ten: so it is given that fraction. Bounded, as the one that looked may have been stopped. */
static void leave_it_to_who_looks(const shoal_pool *pool)
{
    const struct table_header *header = pool->table.header;
    for (int turn = 0; turn < TURNS_FOR_WHO_LOOKS; turn++) {
        if (atomic_load_explicit(&header->looking, memory_order_relaxed) == 0 || shoal_pool_ready(pool) == 0)
            return;
        spin_pause();
    }
}

void shoal_pool_wake(shoal_pool *pool)
{
    note_owner_cpu(pool);
    if (shoal_pool_ready(pool) == 0 || !eventcount_has_sleepers(&pool->table.header->work))
        return;
    leave_it_to_who_looks(pool);
    if (shoal_pool_ready(pool) > 0)
        (void)eventcount_notify_one(&pool->table.header->work);
}

uint32_t shoal_pool_ready(const shoal_pool *pool)
{
    const struct table_header *header = pool->table.header;
    uint64_t head = atomic_load_explicit(&header->ready_head, memory_order_relaxed);
    uint64_t tail = atomic_load_explicit(&header->ready_tail, memory_order_relaxed);
    return tail > head ? (uint32_t)(tail - head) : 0;
}

uint32_t shoal_pool_outstanding(const shoal_pool *pool)
{
    return atomic_load_explicit(&pool->outstanding, memory_order_relaxed);
}

/* ------------------------------------------------------------- collecting ---- */

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
    pthread_mutex_lock(&pool->lock);
    if (!ring_has_room(pool)) {
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
    publish(pool, completion->slot);
unlock:
    pthread_mutex_unlock(&pool->lock);
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
    note_owner_cpu(pool);

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
