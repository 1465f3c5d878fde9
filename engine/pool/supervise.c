/* pool/supervise.c: who works in a pool, what happens when one of them ends, and what the owner's supervising thread
 * waits for.
 *
 * A death is seen by epoll on the worker's pidfd, and mostly before that by deaths.c. Settling reads from the table
 * which slots the dead worker held, by their state words alone: those RUNNING become DONE with a note of the death;
 * those DONE that it had not announced are listed. The results it had given are taken over before its blocks are swept.
 * Nothing is in doubt at any instruction it may have died at.
 */
#include "pool/deaths.h"
#include "pool/pool.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/pidfd.h>
#include <unistd.h>

int shoal_pool_enlist(shoal_pool *pool, uint32_t place, uint32_t *owner)
{
    if (place >= pool->table.worker_count)
        return -EINVAL;
    int error = 0;
    pthread_mutex_lock(&pool->lock);
    struct place *entry = &pool->places[place];
    if (entry->state == PLACE_WATCHED || entry->state == PLACE_ENDED) {
        error = -EBUSY;
    } else {
        struct worker_record *record = &pool->table.workers[place];
        uint32_t number = pool->next_owner++;
        if (pool->next_owner > 0xffffffu)
            pool->next_owner = 1;
        atomic_store_explicit(&record->pid, 0, memory_order_relaxed);
        atomic_store_explicit(&record->tasks, 0, memory_order_relaxed);
        atomic_store_explicit(&record->items, 0, memory_order_relaxed);
        atomic_store_explicit(&record->busy, 0, memory_order_relaxed);
        atomic_store_explicit(&record->since, 0, memory_order_relaxed);
        atomic_store_explicit(&record->bytes_in, 0, memory_order_relaxed);
        atomic_store_explicit(&record->bytes_out, 0, memory_order_relaxed);
        atomic_store_explicit(&record->awake, 0, memory_order_relaxed);
        atomic_store_explicit(&record->owner, number, memory_order_relaxed);
        entry->state = PLACE_ENLISTED;
        entry->dying = entry->told = entry->doomed = false;
        entry->held = 0;
        entry->condemned_for = 0;
        entry->pid = 0;
        *owner = entry->owner = number;
    }
    pthread_mutex_unlock(&pool->lock);
    return error;
}

int shoal_pool_watch(shoal_pool *pool, uint32_t place, pid_t pid, int pidfd)
{
    if (place >= pool->table.worker_count)
        return -EINVAL;
    int copy = fcntl(pidfd, F_DUPFD_CLOEXEC, 3);
    if (copy < 0)
        return -errno;
    int error = 0;
    pthread_mutex_lock(&pool->lock);
    struct place *entry = &pool->places[place];
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = place};
    if (entry->state != PLACE_ENLISTED) {
        error = -EINVAL;
    } else if (epoll_ctl(pool->epoll, EPOLL_CTL_ADD, copy, &event) != 0) {
        error = -errno;
    } else {
        entry->state = PLACE_WATCHED;
        entry->pid = pid;
        entry->pidfd = copy;
        /* It may have taken a task as soon as it was there, and be to blame for it already. */
        if (entry->doomed)
            pool_kill(entry);
    }
    pthread_mutex_unlock(&pool->lock);
    if (error != 0)
        close(copy);
    return error;
}

static void empty(int counter)
{
    uint64_t count;
    while (read(counter, &count, sizeof count) == (ssize_t)sizeof count) {
    }
}

/* A worker ended: its pidfd stays readable for ever, so it leaves the set. False: known already. */
static bool note_end(shoal_pool *pool, uint32_t place, shoal_pool_event *event)
{
    bool news = false;
    pthread_mutex_lock(&pool->lock);
    struct place *entry = &pool->places[place];
    if (entry->state == PLACE_WATCHED) {
        epoll_ctl(pool->epoll, EPOLL_CTL_DEL, entry->pidfd, NULL);
        entry->state = PLACE_ENDED;
        *event = (shoal_pool_event){.kind = SHOAL_POOL_WORKER_ENDED, .place = place, .pid = entry->pid};
        news = true;
    }
    pthread_mutex_unlock(&pool->lock);
    return news;
}

/* Which workers are dying, of those that nobody was told of: up to `capacity` events; how many. The rest end with no
 * notice before. */
static uint32_t note_dying(shoal_pool *pool, shoal_pool_event *events, uint32_t capacity)
{
    uint32_t told = 0;
    pthread_mutex_lock(&pool->lock);
    for (uint32_t place = 0; place < pool->table.worker_count && told < capacity; place++) {
        struct place *entry = &pool->places[place];
        if (entry->state != PLACE_WATCHED || !entry->dying || entry->told)
            continue;
        entry->told = true;
        events[told++] = (shoal_pool_event){SHOAL_POOL_WORKER_DYING, place, entry->pid, entry->exit};
    }
    pthread_mutex_unlock(&pool->lock);
    return told;
}

/* ------------------------------------------------------------------ time limits ---- */

void pool_kill(struct place *entry)
{
    if (entry->state == PLACE_ENLISTED)
        entry->doomed = true;
    else if (entry->state == PLACE_WATCHED)
        (void)pidfd_send_signal(entry->pidfd, SIGKILL, NULL, 0);
}

void pool_condemn(shoal_pool *pool, uint32_t owner, uint32_t slot, uint32_t item, int32_t outcome)
{
    for (uint32_t place = 0; place < pool->table.worker_count; place++) {
        struct place *entry = &pool->places[place];
        if (entry->owner != owner || entry->condemned_for != 0 ||
            (entry->state != PLACE_ENLISTED && entry->state != PLACE_WATCHED))
            continue;
        entry->condemned_for = outcome;
        entry->condemned_slot = slot;
        entry->condemned_item = item;
        pool_kill(entry);
    }
}

/* When the item at hand of this slot is overdue, and which it is; SHOAL_FOREVER: it has no limit. */
static int64_t due_at(const struct slot *slot, int64_t limit, int64_t now, uint32_t *item)
{
    *item = 0;
    if (limit <= 0)
        return SHOAL_FOREVER;
    int64_t began, again = atomic_load_explicit(&slot->began, memory_order_relaxed);
    do {
        began = again;
        /* acquire: pairs with the release in shoal_task_answer, which comes after `began` was cleared: the same time
         * before and after this look is the time of this very item */
        *item = atomic_load_explicit(&slot->finished, memory_order_acquire);
        again = atomic_load_explicit(&slot->began, memory_order_relaxed);
    } while (again != began);
    if (began == 0 || began > now)
        began = now;
    return limit >= SHOAL_FOREVER - began ? SHOAL_FOREVER : began + limit;
}

/* Kill the workers whose item is overdue; when to look again. Locked. */
static int64_t enforce_limits(shoal_pool *pool)
{
    int64_t next = SHOAL_FOREVER;
    const int64_t now = shoal_clock_now();
    for (uint32_t i = 0; i < pool->table.slot_count; i++) {
        const struct slot *slot = &pool->table.slots[i];
        /* acquire: the slot's limit comes with its state */
        const uint64_t word = atomic_load_explicit(&slot->state, memory_order_acquire);
        if (slot_state_of(word) != SLOT_RUNNING && slot_state_of(word) != SLOT_READY)
            continue;
        uint32_t item;
        const int64_t due = due_at(slot, pool->orders[i].time_limit, now, &item);
        if (due > now || slot_state_of(word) == SLOT_READY)
            next = due < next ? due : next;
        else
            pool_condemn(pool, slot_owner_of(word), i, item, SHOAL_ETASKTIMEOUT);
    }
    return next;
}

/* Milliseconds until `deadline` or until a time limit may be over. */
static int milliseconds_to_wait(shoal_pool *pool, int64_t deadline)
{
    pthread_mutex_lock(&pool->lock);
    int64_t until = pool->limited > 0 ? enforce_limits(pool) : SHOAL_FOREVER;
    pool->next_check = until;
    pthread_mutex_unlock(&pool->lock);
    if (deadline < until)
        until = deadline;
    if (until == SHOAL_FOREVER)
        return -1;
    int64_t left = until - shoal_clock_now();
    if (left <= 0)
        return 0;
    int64_t rounded = (left + SHOAL_MILLISECOND - 1) / SHOAL_MILLISECOND;
    return rounded > INT32_MAX ? INT32_MAX : (int)rounded;
}

int shoal_pool_supervise(shoal_pool *pool, int64_t timeout, shoal_pool_event *events, uint32_t capacity,
                         uint32_t *count)
{
    struct epoll_event ready[64];
    int most = capacity < 64 ? (int)capacity : 64;
    const int64_t now = shoal_clock_now();
    const int64_t deadline = timeout >= SHOAL_FOREVER - now ? SHOAL_FOREVER : now + timeout;
    uint32_t told = 0;
    do {
        if (pool->deaths_from != 0 && shoal_clock_now() >= pool->deaths_from) {
            pool->deaths_from = 0;
            deaths_begin(pool);
        }
        const int64_t until = pool->deaths_from != 0 && pool->deaths_from < deadline ? pool->deaths_from : deadline;
        const int found = epoll_wait(pool->epoll, ready, most, milliseconds_to_wait(pool, until));
        if (found < 0)
            return -errno;
        if (found == 0 && shoal_clock_now() >= deadline)
            return -ETIMEDOUT;
        for (int i = 0; i < found; i++) {
            if (ready[i].data.u32 == EPOLL_ATTENTION) {
                empty(pool->attention);
                events[told++] = (shoal_pool_event){.kind = SHOAL_POOL_ATTENTION};
            } else if (ready[i].data.u32 == EPOLL_DEATH) {
                empty(pool->death);
                told += note_dying(pool, &events[told], capacity - told - (uint32_t)(found - 1 - i));
            } else if (ready[i].data.u32 < pool->table.worker_count &&
                       note_end(pool, ready[i].data.u32, &events[told])) {
                told++;
            }
        }
    } while (told == 0); /* what was known already is no event */
    *count = told;
    return 0;
}

void shoal_pool_request_attention(shoal_pool *pool, uint32_t low_water, int now)
{
    struct table_header *header = pool->table.header;
    if (!now) {
        atomic_store_explicit(&header->attention_low_water, low_water, memory_order_relaxed);
        /* seq_cst: the wish must be seen by workers before this process looks whether something is done already */
        atomic_store_explicit(&header->attention, 1, memory_order_seq_cst);
        bool done = false;
        pthread_mutex_lock(&pool->lock);
        done = pool->done_head != pool->done_tail;
        for (uint32_t i = 0; i < pool->table.worker_count && !done; i++)
            done = atomic_load_explicit(&pool->table.workers[i].completions, memory_order_seq_cst) !=
                   pool->places[i].collected;
        pthread_mutex_unlock(&pool->lock);
        if (!done || (low_water > 0 && shoal_pool_ready(pool) >= low_water))
            return;
        if (atomic_exchange_explicit(&header->attention, 0, memory_order_relaxed) == 0)
            return; /* a worker was quicker */
    }
    pool_signal(pool->attention);
}

void shoal_pool_forgo_attention(shoal_pool *pool)
{
    /* relaxed: a worker that still sees the wish writes once in vain */
    atomic_store_explicit(&pool->table.header->attention, 0, memory_order_relaxed);
}

/* What the dead worker's running slot is told of its end. */
static void note_death(shoal_pool *pool, uint32_t index, const struct place *place, const shoal_exit *how)
{
    struct slot_note *note = &pool->notes[index];
    note->pid = place->pid != 0 ? place->pid : 1;
    if (how != NULL)
        note->exit = *how;
    if (place->condemned_for == 0)
        return;
    const uint32_t finished = atomic_load_explicit(&pool->table.slots[index].finished, memory_order_relaxed);
    if (index == place->condemned_slot && finished == place->condemned_item)
        note->outcome = place->condemned_for;
    else
        note->blameless = pool_keeps_item(pool, index, finished);
}

/* The dead worker's slots. Locked. */
static uint32_t settle_slots(shoal_pool *pool, uint32_t owner, const struct place *place, const shoal_exit *how)
{
    uint32_t held = 0;
    for (uint32_t i = 0; i < pool->table.slot_count; i++) {
        struct slot *slot = &pool->table.slots[i];
        /* acquire: pairs with the release that made it DONE, and with nothing where it is RUNNING: the owner is dead */
        uint64_t word = atomic_load_explicit(&slot->state, memory_order_acquire);
        if (slot_owner_of(word) != owner)
            continue;
        if (slot_state_of(word) == SLOT_RUNNING) {
            pool_finish_handing(pool, i, owner);
            note_death(pool, i, place, how);
            atomic_store_explicit(&slot->state, slot_word(slot_generation_of(word), owner, SLOT_DONE),
                                  memory_order_relaxed);
            held++;
        } else if (slot_state_of(word) != SLOT_DONE) {
            continue;
        }
        pool_take_over(pool, i);
        pool_list(pool, i);
    }
    return held;
}

/* Set the number of workers that are awake right: one that was killed in the middle of its change left it wrong. A live
 * worker that changes meanwhile makes it wrong by one until the next death; it decides over spinning alone. */
static void count_awake(shoal_pool *pool)
{
    uint32_t awake = 0;
    for (uint32_t i = 0; i < pool->table.worker_count; i++)
        awake += atomic_load_explicit(&pool->table.workers[i].awake, memory_order_relaxed) != 0;
    atomic_store_explicit(&pool->table.header->awake, awake, memory_order_relaxed);
}

/* A wake meant for the dead worker is lost with it, and the word says that nobody sleeps: say that somebody may. */
static void wake_the_living(shoal_pool *pool)
{
    (void)eventcount_prepare(&pool->table.header->work);
    shoal_pool_wake(pool);
    shoal_pool_nudge(pool);
}

/* What the dead worker holds has an outcome. Locked. */
static void settle(shoal_pool *pool, uint32_t place, const shoal_exit *how)
{
    pool_drain(pool, place);
    pool->places[place].held += settle_slots(pool, pool->places[place].owner, &pool->places[place], how);
}

bool pool_see_dying(shoal_pool *pool, uint32_t place)
{
    bool dying = false, settled = false, waiting = false;
    pthread_mutex_lock(&pool->lock);
    struct place *entry = &pool->places[place];
    if (entry->state == PLACE_WATCHED && !entry->dying && deaths_tell(entry->pid, entry->pidfd, &entry->exit)) {
        entry->dying = dying = true;
        /* No worker can have left word of this end: the owner has nothing to do before it is told. */
        settled = entry->exit.signal == SIGKILL;
        if (settled)
            settle(pool, place, &entry->exit);
        waiting = pool->waiting_for_any + pool->waiting_for_low > 0;
    }
    pthread_mutex_unlock(&pool->lock);
    if (settled)
        wake_the_living(pool);
    return dying && !(settled && waiting); /* who waits sees to it by himself */
}

int shoal_pool_settle(shoal_pool *pool, uint32_t place, const shoal_exit *how, uint32_t *held)
{
    if (place >= pool->table.worker_count)
        return -EINVAL;
    int error = 0;
    pthread_mutex_lock(&pool->lock);
    struct place *entry = &pool->places[place];
    if (entry->dying && (entry->state == PLACE_WATCHED || entry->state == PLACE_ENDED))
        settle(pool, place, how);
    else
        error = -EINVAL; /* it may live */
    *held = entry->held;
    pthread_mutex_unlock(&pool->lock);
    if (error == 0)
        wake_the_living(pool);
    return error;
}

int shoal_pool_bury(shoal_pool *pool, uint32_t place, const shoal_exit *how, uint32_t *held)
{
    if (place >= pool->table.worker_count)
        return -EINVAL;
    struct table_header *header = pool->table.header;
    struct worker_record *record = &pool->table.workers[place];
    pthread_mutex_lock(&pool->lock);
    struct place *entry = &pool->places[place];
    if (entry->state == PLACE_EMPTY) {
        pthread_mutex_unlock(&pool->lock);
        return -EINVAL;
    }
    if (entry->state == PLACE_WATCHED)
        epoll_ctl(pool->epoll, EPOLL_CTL_DEL, entry->pidfd, NULL);
    if (entry->pidfd >= 0)
        close(entry->pidfd);
    const uint32_t owner = entry->owner;
    settle(pool, place, how);
    *held = entry->held;
    entry->pidfd = -1;
    entry->state = PLACE_EMPTY;
    atomic_store_explicit(&record->awake, 0, memory_order_relaxed);
    count_awake(pool);
    uint32_t looker = owner;
    atomic_compare_exchange_strong_explicit(&header->looking, &looker, 0, memory_order_relaxed, memory_order_relaxed);
    pthread_mutex_unlock(&pool->lock);

    (void)shoal_heap_sweep(pool->heap, owner, NULL);
    wake_the_living(pool);
    return 0;
}

void shoal_pool_shut(shoal_pool *pool, int how)
{
    struct eventcount *work = &pool->table.header->work;
    /* release: pairs with the acquire in wait_for_work; what was handed out before is seen */
    atomic_store_explicit(&pool->table.header->shut, (uint32_t)how, memory_order_release);
    /* A worker that was killed just as it was woken, and is not buried yet, leaves a word that says that nobody sleeps,
     * while others do. This call is the last one, and must reach them all: so say that somebody may. */
    (void)eventcount_prepare(work);
    (void)eventcount_notify_all(work); /* a full barrier comes first */
}

int shoal_pool_worker_numbers(const shoal_pool *pool, uint32_t place, shoal_worker_numbers *out)
{
    if (place >= pool->table.worker_count)
        return -EINVAL;
    const struct worker_record *record = &pool->table.workers[place];
    *out = (shoal_worker_numbers){
        .pid = atomic_load_explicit(&record->pid, memory_order_relaxed),
        .owner = pool->places[place].owner,
        .tasks = atomic_load_explicit(&record->tasks, memory_order_relaxed),
        .items = atomic_load_explicit(&record->items, memory_order_relaxed),
        .busy = atomic_load_explicit(&record->busy, memory_order_relaxed),
        .since = atomic_load_explicit(&record->since, memory_order_relaxed),
        .bytes_in = atomic_load_explicit(&record->bytes_in, memory_order_relaxed),
        .bytes_out = atomic_load_explicit(&record->bytes_out, memory_order_relaxed),
    };
    return 0;
}
