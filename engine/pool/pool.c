/* pool/pool.c: the owner's side of a pool: makes it, hands tasks out, takes them back (collect.c gets what is done).
 *
 * A submitted slot is published three times, in this order: its state word (READY), its entry in the ready ring, the
 * ring's tail. Only the state words count; supervise.c makes good what a dead worker left out of the rest.
 */
#include "pool/pool.h"
#include "pool/batch.h"
#include "pool/deaths.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define DEFAULT_SLOTS 1024u
#define TURNS_FOR_WHO_LOOKS 16
/* A pool that is gone again in a moment needs no thread for the deaths of its workers. */
#define YOUTH (20 * SHOAL_MILLISECOND)

void pool_signal(int eventfd)
{
    const uint64_t one = 1;
    ssize_t written = write(eventfd, &one, sizeof one);
    (void)written; /* only a full counter makes it fail, and then the descriptor is readable anyway */
}

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
    deaths_end(pool);
    if (pool->death >= 0)
        close(pool->death);
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
    pool->epoll = pool->attention = pool->death = -1;
    pool->owner_process = getpid();
    pool->spin = (struct spin_budget)SPIN_INITIALIZER;
    pool->next_owner = 1;
    pool->next_check = SHOAL_FOREVER;
    pool->deaths_from = shoal_clock_now() + YOUTH;

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
    pool->death = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    struct epoll_event attention = {.events = EPOLLIN, .data.u32 = EPOLL_ATTENTION};
    struct epoll_event death = {.events = EPOLLIN, .data.u32 = EPOLL_DEATH};
    if (pool->epoll < 0 || pool->attention < 0 || pool->death < 0 ||
        epoll_ctl(pool->epoll, EPOLL_CTL_ADD, pool->attention, &attention) != 0 ||
        epoll_ctl(pool->epoll, EPOLL_CTL_ADD, pool->death, &death) != 0) {
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

void pool_publish(shoal_pool *pool, uint32_t index)
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

bool pool_looks_too_late(const shoal_pool *pool, int64_t time_limit)
{
    if (time_limit <= 0)
        return false;
    const int64_t now = shoal_clock_now();
    return time_limit < SHOAL_FOREVER - now && now + time_limit < pool->next_check;
}

bool pool_ring_has_room(shoal_pool *pool)
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
    else if (pool->free_count == 0 || !pool_ring_has_room(pool))
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
    if (order->time_limit > 0)
        pool->limited++;
    const bool look_sooner = pool_looks_too_late(pool, order->time_limit);
    pool_publish(pool, index);
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
        if (slot_state_of(word) == SLOT_FREE)
            continue;
        /* Also one that is done: what is left of it may be about to be given out again. */
        atomic_store_explicit(&slot->stop, 1, memory_order_relaxed);
        if (slot_state_of(word) != SLOT_RUNNING)
            continue;
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
    bool full = pool->free_count == 0 || !pool_ring_has_room(pool);
    pthread_mutex_unlock(&pool->lock);
    return full;
}

void pool_note_owner_cpu(shoal_pool *pool)
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
    pool_note_owner_cpu(pool);
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
