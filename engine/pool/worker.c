/* pool/worker.c: the worker's side of a pool: takes tasks, hands items to the caller, publishes results.
 *
 * The loop may be killed at any instruction. What counts is written in this order: a claim is one compare-and-swap that
 * names the worker; a result is complete before `finished` counts it; a task is DONE after its last result. Rings and
 * counters that only speed things up come after what counts.
 */
#include "pool/deaths.h"
#include "pool/pool.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Short tasks are told of in groups: waking the owner costs 17 us of this worker's time. */
#define GROUP_TIME (30 * SHOAL_MICROSECOND)
#define GROUP_TASKS 64u

struct shoal_task {
    struct slot *slot;
    uint32_t index;
    uint32_t flags, shared, items;
    bool limited;                  /* its items have a time limit */
    uint32_t given, finished;      /* items handed to the caller, and answered */
    struct item_reader left;       /* the items left */
    uint8_t *results;              /* where results go */
    size_t results_size, capacity; /* written; there is room for */
    size_t run;                    /* item_append's */
    shoal_block results_block;
    int64_t started;
};

struct shoal_worker {
    struct table table;
    shoal_heap *heap;
    int attention;
    bool attached; /* mapped the table by itself, rather than inheriting the pool's mapping */
    uint32_t place, owner;
    struct worker_record *record;
    struct shoal_task task;
    struct spin_budget spin;
    uint32_t untold;      /* tasks done that a sleeping owner was not told of */
    int64_t untold_since; /* when the first of them was done */
    int64_t now;          /* the clock, when the last task was done: that is when the next begins */
    uint64_t bytes_in, bytes_out;
};

static int worker_begin(shoal_worker *worker)
{
    if (worker->place >= worker->table.worker_count)
        return -EINVAL;
    worker->record = &worker->table.workers[worker->place];
    if (atomic_load_explicit(&worker->record->owner, memory_order_relaxed) != worker->owner)
        return -ESTALE;
    worker->spin = (struct spin_budget)SPIN_INITIALIZER;
    atomic_store_explicit(&worker->record->pid, (int32_t)getpid(), memory_order_relaxed);
    atomic_store_explicit(&worker->record->since, shoal_clock_now(), memory_order_relaxed);
    atomic_store_explicit(&worker->record->awake, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&worker->table.header->awake, 1, memory_order_relaxed);
    life_hold(worker->record);
    return 0;
}

static void worker_free(shoal_worker *worker)
{
    if (worker->attention >= 0)
        close(worker->attention);
    if (worker->heap != NULL)
        shoal_heap_release(worker->heap);
    if (worker->attached && worker->table.region != NULL)
        table_close(&worker->table);
    free(worker);
}

int shoal_worker_attach(const int fds[3], uint32_t place, uint32_t owner, shoal_worker **out)
{
    shoal_worker *worker = calloc(1, sizeof *worker);
    if (worker == NULL)
        return -ENOMEM;
    worker->attached = true;
    worker->place = place;
    worker->owner = owner;
    worker->attention = fcntl(fds[2], F_DUPFD_CLOEXEC, 3);
    int error = worker->attention < 0 ? -errno : table_attach(fds[0], &worker->table);
    if (error == 0)
        error = shoal_heap_attach(fds[1], &worker->heap);
    if (error == 0)
        error = worker_begin(worker);
    if (error != 0) {
        worker_free(worker);
        return error;
    }
    *out = worker;
    return 0;
}

int shoal_worker_open(shoal_pool *pool, uint32_t place, uint32_t owner, shoal_worker **out)
{
    shoal_worker *worker = calloc(1, sizeof *worker);
    if (worker == NULL)
        return -ENOMEM;
    worker->table = pool->table;
    worker->heap = pool->heap;
    shoal_heap_retain(pool->heap);
    worker->place = place;
    worker->owner = owner;
    worker->attention = fcntl(pool->attention, F_DUPFD_CLOEXEC, 3);
    int error = worker->attention < 0 ? -errno : worker_begin(worker);
    if (error != 0) {
        worker_free(worker);
        return error;
    }
    *out = worker;
    return 0;
}

static void go_to_sleep(shoal_worker *worker)
{
    if (atomic_exchange_explicit(&worker->record->awake, 0, memory_order_relaxed) != 0)
        atomic_fetch_sub_explicit(&worker->table.header->awake, 1, memory_order_relaxed);
}

static void wake_up(shoal_worker *worker)
{
    if (atomic_exchange_explicit(&worker->record->awake, 1, memory_order_relaxed) == 0)
        atomic_fetch_add_explicit(&worker->table.header->awake, 1, memory_order_relaxed);
}

void shoal_worker_close(shoal_worker *worker)
{
    if (worker == NULL)
        return;
    go_to_sleep(worker);
    life_release(worker->record);
    worker_free(worker);
}

shoal_heap *shoal_worker_heap(const shoal_worker *worker)
{
    return worker->heap;
}

uint32_t shoal_worker_owner(const shoal_worker *worker)
{
    return worker->owner;
}

/* ----------------------------------------------------------------- claiming ---- */

static uint32_t left_to_take(const struct table_header *header)
{
    uint64_t head = atomic_load_explicit(&header->ready_head, memory_order_relaxed);
    uint64_t tail = atomic_load_explicit(&header->ready_tail, memory_order_relaxed);
    return tail > head ? (uint32_t)(tail - head) : 0;
}

/* Claim the first slot of the ready ring that is still READY. False: none is. */
static bool try_claim(shoal_worker *worker, uint32_t *index)
{
    struct table *table = &worker->table;
    struct table_header *header = table->header;
    for (;;) {
        uint64_t head = atomic_load_explicit(&header->ready_head, memory_order_relaxed);
        /* acquire: pairs with the release in publish(); the entries before the tail come with it */
        uint64_t tail = atomic_load_explicit(&header->ready_tail, memory_order_acquire);
        if ((int64_t)(tail - head) <= 0)
            return false;
        uint64_t entry = atomic_load_explicit(&table->ready[head & table_ready_mask(table)], memory_order_acquire);
        uint32_t slot = (uint32_t)entry & (table->slot_count - 1);
        uint64_t ready = slot_word((uint32_t)(entry >> 32), 0, SLOT_READY);
        uint64_t mine = slot_word((uint32_t)(entry >> 32), worker->owner, SLOT_RUNNING);
        bool claimed = false;
        if (atomic_load_explicit(&table->slots[slot].state, memory_order_relaxed) == ready)
            /* acquire: pairs with the release in publish(); the slot's contents come with it */
            claimed = atomic_compare_exchange_strong_explicit(&table->slots[slot].state, &ready, mine,
                                                              memory_order_acquire, memory_order_relaxed);
        /* Whoever took it may be dead: everybody helps the head past a slot that is taken. */
        uint64_t expected = head;
        atomic_compare_exchange_strong_explicit(&header->ready_head, &expected, head + 1, memory_order_relaxed,
                                                memory_order_relaxed);
        if (claimed) {
            *index = slot;
            return true;
        }
    }
}

/* Whether no other worker that has something to do ran on this cpu last. */
static bool has_cpu_alone(const shoal_worker *worker)
{
    const uint32_t cpu = spin_current_cpu();
    for (uint32_t i = 0; i < worker->table.worker_count; i++) {
        const struct worker_record *other = &worker->table.workers[i];
        if (i != worker->place && atomic_load_explicit(&other->awake, memory_order_relaxed) != 0 &&
            atomic_load_explicit(&other->cpu, memory_order_relaxed) == cpu)
            return false;
    }
    return true;
}

/* Whether there is a core for this worker beside the owner and the workers that have something to do. Where it may use
 * fewer cpus than the owner, most of these are elsewhere, and count only if they are on its own. */
static bool has_core(const shoal_worker *worker)
{
    const struct table_header *header = worker->table.header;
    const uint32_t busy = atomic_load_explicit(&header->awake, memory_order_relaxed) + 1; /* this one is among them */
    const uint32_t cpus = spin_cpu_count(shoal_clock_now());
    if (busy <= cpus)
        return true;
    return cpus < header->cpus && busy <= header->cpus && has_cpu_alone(worker);
}

/* Only one worker at a time looks instead of sleeping. */
static bool may_look(shoal_worker *worker)
{
    struct table_header *header = worker->table.header;
    if (!has_core(worker))
        return false;
    uint32_t nobody = 0;
    return atomic_compare_exchange_strong_explicit(&header->looking, &nobody, worker->owner, memory_order_relaxed,
                                                   memory_order_relaxed);
}

static bool look(shoal_worker *worker, uint32_t *index)
{
    struct table_header *header = worker->table.header;
    if (!may_look(worker))
        return false;
    bool claimed = false;
    struct spin spin = spin_begin(&worker->spin, atomic_load_explicit(&header->owner_cpu, memory_order_relaxed));
    while (!(claimed = try_claim(worker, index)) && spin_again(&spin)) {
    }
    spin_end(&spin, claimed);
    atomic_store_explicit(&header->looking, 0, memory_order_relaxed);
    return claimed;
}

/* Tell the sleeping owner what it was not told yet. */
static void tell(shoal_worker *worker)
{
    worker->untold = 0;
    (void)eventcount_notify_all(&worker->table.header->collect);
}

static int wait_for_work(shoal_worker *worker, int64_t deadline, uint32_t *index)
{
    struct table_header *header = worker->table.header;
    if (worker->untold > 0)
        tell(worker);
    if (look(worker, index))
        return 0;
    go_to_sleep(worker);
    int result = 0;
    for (;;) {
        uint32_t seen = eventcount_prepare(&header->work);
        /* Before the look for a task: one that was handed out before the pool was shut is not left. acquire: pairs with
         * the release in shoal_pool_shut; whoever sees the word sees that task. */
        const uint32_t shut = atomic_load_explicit(&header->shut, memory_order_acquire);
        if (try_claim(worker, index))
            break;
        if (shut != 0) {
            result = -ESHUTDOWN;
            break;
        }
        result = eventcount_wait(&header->work, seen, deadline);
        if (result != 0)
            break;
    }
    wake_up(worker);
    return result;
}

static int begin_task(shoal_worker *worker, uint32_t index)
{
    struct shoal_task *task = &worker->task;
    struct slot *slot = &worker->table.slots[index];
    task->slot = slot;
    task->index = index;
    task->flags = slot->flags;
    task->shared = slot->shared;
    task->items = slot->items;
    task->limited = slot->limited != 0;
    task->started = worker->now != 0 ? worker->now : shoal_clock_now();
    uint64_t size = slot->args_size;
    uint32_t first = slot->first, results_from = slot->results_from;
    shoal_block block = slot->args_block;
    const uint8_t *begin = block == 0 ? slot->bytes : block_bytes(worker->heap, block, size);
    if (begin == NULL || (block == 0 && size > SLOT_INLINE) || results_from > SLOT_INLINE || first > task->items)
        return SHOAL_ECORRUPT;
    task->left = (struct item_reader){.at = begin, .end = begin + size};
    task->given = task->finished = first;
    task->results = slot->bytes + results_from;
    task->results_size = 0;
    task->capacity = SLOT_INLINE - results_from;
    task->results_block = 0;
    task->run = ITEM_NO_RUN;
    return item_skip(&task->left, first) == 0 ? 0 : SHOAL_ECORRUPT;
}

int shoal_worker_claim(shoal_worker *worker, int64_t timeout, shoal_task **out)
{
    struct table_header *header = worker->table.header;
    uint32_t index;
    if (atomic_load_explicit(&header->shut, memory_order_relaxed) == 2)
        return -ESHUTDOWN;
    if (!try_claim(worker, &index)) {
        if (timeout == 0)
            return -ETIMEDOUT;
        int64_t now = shoal_clock_now();
        int64_t deadline = timeout >= SHOAL_FOREVER - now ? SHOAL_FOREVER : now + timeout;
        int result = wait_for_work(worker, deadline, &index);
        if (result != 0)
            return result;
        worker->now = 0;
    }
    uint32_t cpu = spin_current_cpu();
    if (atomic_load_explicit(&worker->record->cpu, memory_order_relaxed) != cpu)
        atomic_store_explicit(&worker->record->cpu, cpu, memory_order_relaxed);
    /* Pass the call on: the submitter woke one worker, however much there is to do. */
    if (left_to_take(header) > 0)
        (void)eventcount_notify_one(&header->work);
    int error = begin_task(worker, index);
    if (error != 0) {
        shoal_task_finish(&worker->task); /* what was not answered shows as such at the owner */
        return error;
    }
    *out = &worker->task;
    return 0;
}

/* ---------------------------------------------------------------- the task ---- */

static shoal_worker *worker_of(shoal_task *task)
{
    return (shoal_worker *)(void *)((uint8_t *)task - offsetof(struct shoal_worker, task));
}

uint32_t shoal_task_flags(const shoal_task *task)
{
    return task->flags;
}

uint32_t shoal_task_shared(const shoal_task *task)
{
    return task->shared;
}

int shoal_worker_shared(shoal_worker *worker, uint32_t id, shoal_item *out)
{
    const struct share_record *share = &worker->table.shares[id % POOL_SHARES];
    /* acquire: pairs with the release in shoal_pool_share; block and size come with it */
    if (id == 0 || atomic_load_explicit(&share->id, memory_order_acquire) != id)
        return -ENOENT;
    uint64_t size = share->size;
    const uint8_t *at = block_bytes(worker->heap, share->block, size);
    struct item_reader reader = {.at = at, .end = at == NULL ? NULL : at + size};
    return item_next(&reader, out) == 0 ? 0 : SHOAL_ECORRUPT;
}

static inline uint64_t bytes_of(const shoal_worker *worker, const shoal_item *item)
{
    uint64_t bytes = item->size;
    size_t size;
    for (uint32_t i = 0; i < item->block_count; i++) {
        if (shoal_heap_pointer(worker->heap, item->blocks[i], &size) != NULL)
            bytes += size;
    }
    return bytes;
}

/* Make the item's blocks this worker's. If it dies half way, the owner, who sees that `taken` lags behind `handing`,
 * does it to the end (pool_finish_handing), so that they are swept. */
static void hand_over(shoal_worker *worker, struct shoal_task *task, const shoal_item *item)
{
    atomic_store_explicit(&task->slot->handing, task->given, memory_order_relaxed);
    atomic_signal_fence(memory_order_seq_cst); /* a dead process's stores are all there, in the order it made them */
    for (uint32_t i = 0; i < item->block_count; i++)
        (void)shoal_heap_give(worker->heap, item->blocks[i], 0, worker->owner);
}

int shoal_task_next(shoal_task *task, shoal_item *out)
{
    if (task->given >= task->items || atomic_load_explicit(&task->slot->stop, memory_order_relaxed) != 0)
        return -ENODATA;
    shoal_worker *worker = worker_of(task);
    if (item_next(&task->left, out) != 0)
        return SHOAL_ECORRUPT;
    task->given++;
    worker->bytes_in += bytes_of(worker, out);
    if (task->limited)
        /* release: who sees the time sees the number of items finished before it */
        atomic_store_explicit(&task->slot->began, shoal_clock_now(), memory_order_release);
    if (out->block_count > 0 && (task->flags & SHOAL_TASK_KEEPS_BLOCKS) == 0) {
        hand_over(worker, task, out);
        /* release: who sees it sees that the blocks were handed over */
        atomic_store_explicit(&task->slot->taken, task->given, memory_order_release);
    }
    return 0;
}

int shoal_task_next_word(shoal_task *task, uint32_t *kind, uint64_t *word)
{
    /* An item with a time limit is stamped; that is not worth a second path. */
    if (task->left.run == 0 || task->limited || task->given >= task->items ||
        atomic_load_explicit(&task->slot->stop, memory_order_relaxed) != 0)
        return -ENODATA;
    memcpy(word, task->left.at, sizeof *word);
    *kind = task->left.kind;
    task->left.at += sizeof *word;
    task->left.run--;
    task->given++;
    worker_of(task)->bytes_in += sizeof *word;
    return 0;
}

/* Move the results to a block with room for `more` bytes. The old block stays readable until the new one is named. */
static int enlarge(shoal_task *task, size_t more)
{
    shoal_worker *worker = worker_of(task);
    size_t wanted = task->capacity * 2 < 1024 ? 1024 : task->capacity * 2;
    /* Results are often about as long as what they come from: one growth then does. */
    size_t items_left = (size_t)(task->left.end - task->left.at);
    if (wanted < task->results_size + more + items_left)
        wanted = task->results_size + more + items_left;
    shoal_block block;
    int error = shoal_heap_allocate(worker->heap, wanted, worker->owner, &block);
    if (error != 0 && wanted > task->results_size + more)
        error = shoal_heap_allocate(worker->heap, task->results_size + more, worker->owner, &block);
    if (error != 0)
        return error;
    size_t capacity;
    uint8_t *bytes = shoal_heap_pointer(worker->heap, block, &capacity);
    memcpy(bytes, task->results, task->results_size);
    /* release: the owner reads it once this process is dead; the copy must be there by then */
    atomic_store_explicit(&task->slot->results_block, block, memory_order_release);
    if (task->results_block != 0)
        (void)shoal_heap_free(worker->heap, task->results_block);
    task->results_block = block;
    task->results = bytes;
    task->capacity = capacity;
    return 0;
}

int shoal_task_answer(shoal_task *task, const shoal_item *result)
{
    if (task->finished >= task->given)
        return -EINVAL;
    int error = item_check(result);
    const size_t span = item_span(result->size, result->block_count);
    if (error == 0 && task->capacity - task->results_size < span)
        error = enlarge(task, span);
    if (error != 0)
        return error;
    worker_of(task)->bytes_out += bytes_of(worker_of(task), result);
    task->results_size = item_append(task->results, task->results_size, &task->run, result);
    atomic_store_explicit(&task->slot->results_size, task->results_size, memory_order_relaxed);
    if (task->limited) /* before `finished`: nobody may take this item's time for the next one's */
        atomic_store_explicit(&task->slot->began, 0, memory_order_relaxed);
    /* release: counts the result as given; its bytes and their size come before */
    atomic_store_explicit(&task->slot->finished, ++task->finished, memory_order_release);
    return 0;
}

int shoal_task_answer_word(shoal_task *task, uint32_t kind, uint64_t word)
{
    if (task->limited || task->finished >= task->given || task->capacity - task->results_size < sizeof word ||
        !item_continue_run(task->results, task->results_size, task->run, kind, word)) {
        const shoal_item item = {.data = &word, .size = sizeof word, .kind = kind};
        return shoal_task_answer(task, &item);
    }
    worker_of(task)->bytes_out += sizeof word;
    task->results_size += sizeof word;
    atomic_store_explicit(&task->slot->results_size, task->results_size, memory_order_relaxed);
    /* release: as in shoal_task_answer */
    atomic_store_explicit(&task->slot->finished, ++task->finished, memory_order_release);
    return 0;
}

/* Whether to write the attention descriptor or wake the owner's sleepers, now that a task is done. */
static bool owner_wants_to_know(const shoal_worker *worker, uint32_t low_water, uint32_t left, bool grouped)
{
    if (low_water > 0)
        return left < low_water;
    return left == 0 || !grouped || worker->untold >= GROUP_TASKS || worker->now - worker->untold_since > GROUP_TIME;
}

static void announce_done(shoal_worker *worker, int64_t elapsed)
{
    struct table_header *header = worker->table.header;
    /* A full barrier in it: the completion was pushed before the look. */
    bool sleepers = eventcount_has_sleepers(&header->collect);
    bool attention = atomic_load_explicit(&header->attention, memory_order_relaxed) != 0;
    if (!sleepers && !attention) {
        worker->untold = 0;
        return;
    }
    if (worker->untold++ == 0)
        worker->untold_since = worker->now;
    const bool grouped = elapsed < GROUP_TIME;
    const uint32_t left = left_to_take(header);
    if (sleepers &&
        owner_wants_to_know(worker, atomic_load_explicit(&header->low_water, memory_order_relaxed), left, grouped))
        tell(worker);
    /* The wish for attention is taken back with the first write, so a burst costs one: no grouping. */
    const uint32_t attention_mark = atomic_load_explicit(&header->attention_low_water, memory_order_relaxed);
    if (attention && (attention_mark == 0 || left < attention_mark) &&
        atomic_exchange_explicit(&header->attention, 0, memory_order_relaxed) != 0) {
        pool_signal(worker->attention);
    }
}

void shoal_task_finish(shoal_task *task)
{
    shoal_worker *worker = worker_of(task);
    struct table *table = &worker->table;
    struct slot *slot = task->slot;
    worker->now = shoal_clock_now();
    int64_t elapsed = worker->now - task->started;
    slot->elapsed = elapsed;
    struct worker_record *record = worker->record;
    atomic_store_explicit(&record->tasks, atomic_load_explicit(&record->tasks, memory_order_relaxed) + 1,
                          memory_order_relaxed);
    atomic_store_explicit(&record->items,
                          atomic_load_explicit(&record->items, memory_order_relaxed) + task->finished - slot->first,
                          memory_order_relaxed);
    atomic_store_explicit(&record->busy, atomic_load_explicit(&record->busy, memory_order_relaxed) + elapsed,
                          memory_order_relaxed);
    atomic_store_explicit(&record->bytes_in, worker->bytes_in, memory_order_relaxed);
    atomic_store_explicit(&record->bytes_out, worker->bytes_out, memory_order_relaxed);

    uint64_t word = atomic_load_explicit(&slot->state, memory_order_relaxed);
    uint64_t done = slot_word(slot_generation_of(word), worker->owner, SLOT_DONE);
    /* release: pairs with the acquire in pool_drain; publishes results and times. The word is this worker's alone, so
     * the swap fails only where the table was overwritten, and then the owner finds the slot when it buries this
     * worker. */
    if (!atomic_compare_exchange_strong_explicit(&slot->state, &word, done, memory_order_release, memory_order_relaxed))
        return;
    uint64_t head = atomic_load_explicit(&record->completions, memory_order_relaxed);
    _Atomic uint32_t *ring = table->completions + (size_t)worker->place * table->slot_count;
    atomic_store_explicit(&ring[head & (table->slot_count - 1)], task->index, memory_order_relaxed);
    /* release: pairs with the acquire in pool_drain; publishes the entry and the state word */
    atomic_store_explicit(&record->completions, head + 1, memory_order_release);
    announce_done(worker, elapsed);
}
