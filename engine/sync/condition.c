/* sync/condition.c: waiting for a change that somebody announces, with a lock given up meanwhile.
 *
 * Each waiter has a slot of its own, whose word names it and changes by compare-and-swap only:
 *
 *     FREE -> WAITING(waiter, number) -> NOTIFIED(waiter, time) -> FREE
 *                 \-> FREE   given up       \-> NOTIFIED(another)   waiter died: taken over
 *
 * A slot is claimed before the lock is released and given up after it was taken again, so that no notification that is
 * made under the lock falls between. `number` counts the waits, and `time` is the number of the first wait that came
 * after the notification: only waits with lower numbers may take over what a dead waiter got. A waiter is woken by its
 * own slot's eventcount, nobody else is.
 *
 * Waiters sleep in slices; after each they look for slots of the dead: a notification is taken over by naming oneself
 * in the dead one's slot (one step, so that it can be taken over again), a dead waiter's slot is freed. They also look
 * whether the lock's owner has died, as nobody could notify then. Notifying never blocks and asks nobody.
 *
 * Called by the binding and users.
 */
#include <errno.h>
#include <stdlib.h>

#include "base/clock.h"
#include "sync/lock.h"
#include "sync/object.h"
#include "sync/spin.h"

#define SLOTS 4096u
#define LOOKS 8u      /* how many others a waiter asks for at a time, at 20 us each */
#define SWEEP_FROM 8u /* slots; fewer are not worth it */

enum slot_state { SLOT_FREE = 0, SLOT_WAITING = 1, SLOT_NOTIFIED = 2 };
enum stage { STAGE_NONE = 0, STAGE_WAITING = 1, STAGE_LOCKING = 2 };

/* The word: bits 0-1 state, 2-21 number or time, 22-63 the waiter's process (identity_compact). 0: free. */
#define NUMBER_BITS 20u
#define NUMBER_MASK ((1u << NUMBER_BITS) - 1)
static_assert(2 + NUMBER_BITS == IDENTITY_THREAD_BITS, "the process lies where an owner's name has it");

static inline uint64_t slot_word(uint64_t process, uint32_t number, enum slot_state state)
{
    return process << IDENTITY_THREAD_BITS | (uint64_t)(number & NUMBER_MASK) << 2 | (uint64_t)state;
}
static inline enum slot_state slot_state_of(uint64_t word)
{
    return (enum slot_state)(word & 3u);
}
static inline uint32_t slot_number_of(uint64_t word)
{
    return (uint32_t)(word >> 2) & NUMBER_MASK;
}
/* Numbers wrap: of two waits, those half a million apart are told in the wrong order, which costs fairness only. */
static inline bool is_before(uint32_t number, uint32_t other)
{
    return number != other && ((other - number) & NUMBER_MASK) <= NUMBER_MASK / 2;
}

struct condition_slot {
    _Atomic uint64_t word;
    struct eventcount notified;
    uint32_t unused;
};
static_assert(sizeof(struct condition_slot) == 16, "as its offset is computed");

struct condition_shared {
    struct sync_header header; /* count: slots; other: the lock's number */
    uint8_t unused0[128 - 40];
    _Atomic uint32_t waits; /* the number that the next wait gets */
    _Atomic uint32_t used;  /* slots that were ever claimed: no others need be looked at */
    uint8_t unused1[128 - 8];
    struct condition_slot slots[SLOTS];
};
static_assert(offsetof(struct condition_shared, slots) == 256, "what is written lies apart from what is read only");

struct shoal_condition {
    shoal_region *region;
    struct condition_shared *shared;
    shoal_lock *lock;
    struct spin_budget spin;
};

/* ------------------------------------------------------------- construction ---- */

static void point_into(shoal_condition *condition, shoal_lock *lock)
{
    condition->shared = shoal_region_base(condition->region);
    condition->lock = lock;
    condition->spin = (struct spin_budget)SPIN_INITIALIZER;
}

int shoal_condition_create(shoal_lock *lock, shoal_condition **out)
{
    struct sync_header header = {
        .kind = SYNC_CONDITION,
        .size = sizeof(struct condition_shared),
        .count = SLOTS,
    };
    int error = lock_number(lock, &header.other);
    if (error != 0)
        return error;
    shoal_condition *condition = calloc(1, sizeof *condition);
    if (condition == NULL)
        return -ENOMEM;
    error = sync_create("shoal-condition", header, &condition->region);
    if (error != 0) {
        free(condition);
        return error;
    }
    point_into(condition, lock);
    *out = condition;
    return 0;
}

int shoal_condition_attach(int fd, shoal_lock *lock, shoal_condition **out)
{
    uint64_t number;
    int error = lock_number(lock, &number);
    if (error != 0)
        return error;
    shoal_condition *condition = calloc(1, sizeof *condition);
    if (condition == NULL)
        return -ENOMEM;
    struct sync_header header;
    error = sync_attach(fd, SYNC_CONDITION, &header, &condition->region);
    if (error != 0)
        goto free_condition;
    error = SHOAL_ECORRUPT;
    if (header.size != sizeof(struct condition_shared) || header.count != SLOTS || header.flags != 0)
        goto close_region;
    error = -EINVAL;
    if (header.other != number)
        goto close_region;
    point_into(condition, lock);
    *out = condition;
    return 0;

close_region:
    shoal_region_close(condition->region);
free_condition:
    free(condition);
    return error;
}

int shoal_condition_fd(const shoal_condition *condition)
{
    return shoal_region_fd(condition->region);
}

void shoal_condition_close(shoal_condition *condition)
{
    if (condition == NULL)
        return;
    shoal_region_close(condition->region);
    free(condition);
}

/* ------------------------------------------------------------------ notifying ---- */

/* How many slots may be in use; read once, checked. */
static uint32_t slots_used(const struct condition_shared *shared)
{
    /* acquire: pairs with the release in note_used(); the slots below were claimed by then */
    const uint32_t used = atomic_load_explicit(&shared->used, memory_order_acquire);
    return used < SLOTS ? used : SLOTS;
}

/* Notify the one in `slot`, whose word was `word`. False: the word has changed. */
static bool notify_slot(struct condition_slot *slot, uint64_t word, uint32_t time)
{
    const uint64_t next = slot_word(owner_process(word), time, SLOT_NOTIFIED);
    /* release: pairs with the acquire in has_been_notified() */
    if (!atomic_compare_exchange_strong_explicit(&slot->word, &word, next, memory_order_release, memory_order_relaxed))
        return false;
    (void)eventcount_notify_all(&slot->notified);
    return true;
}

static bool waits_before(uint64_t word, uint32_t time)
{
    return slot_state_of(word) == SLOT_WAITING && is_before(slot_number_of(word), time);
}

/* Notify the longest-waiting one whose wait is before `time`. False: there is none. */
static bool notify_first(struct condition_shared *shared, uint32_t time)
{
    const uint32_t used = slots_used(shared);
    for (;;) {
        struct condition_slot *first = NULL;
        uint64_t first_word = 0;
        for (uint32_t i = 0; i < used; i++) {
            const uint64_t word = atomic_load_explicit(&shared->slots[i].word, memory_order_relaxed);
            if (waits_before(word, time) &&
                (first == NULL || is_before(slot_number_of(word), slot_number_of(first_word)))) {
                first = &shared->slots[i];
                first_word = word;
            }
        }
        if (first == NULL)
            return false;
        if (notify_slot(first, first_word, time))
            return true;
    }
}

int shoal_condition_notify(shoal_condition *condition, uint32_t count)
{
    const int mine = lock_is_mine(condition->lock);
    if (mine != 1)
        return mine == 0 ? -EPERM : mine;
    struct condition_shared *shared = condition->shared;
    const uint32_t time = atomic_load_explicit(&shared->waits, memory_order_relaxed);
    for (uint32_t i = 0; i < count && notify_first(shared, time); i++) {
    }
    return 0;
}

int shoal_condition_notify_all(shoal_condition *condition)
{
    const int mine = lock_is_mine(condition->lock);
    if (mine != 1)
        return mine == 0 ? -EPERM : mine;
    struct condition_shared *shared = condition->shared;
    const uint32_t time = atomic_load_explicit(&shared->waits, memory_order_relaxed);
    const uint32_t used = slots_used(shared);
    for (uint32_t i = 0; i < used; i++) {
        const uint64_t word = atomic_load_explicit(&shared->slots[i].word, memory_order_relaxed);
        if (waits_before(word, time))
            (void)notify_slot(&shared->slots[i], word, time); /* if it changed, the wait is over, or was notified */
    }
    return 0;
}

uint32_t shoal_condition_waiting(const shoal_condition *condition)
{
    const uint32_t used = slots_used(condition->shared);
    uint32_t count = 0;
    for (uint32_t i = 0; i < used; i++) {
        const uint64_t word = atomic_load_explicit(&condition->shared->slots[i].word, memory_order_relaxed);
        count += slot_state_of(word) == SLOT_WAITING;
    }
    return count;
}

/* -------------------------------------------------------------------- waiting ---- */

static void note_used(struct condition_shared *shared, uint32_t count)
{
    uint32_t used = atomic_load_explicit(&shared->used, memory_order_relaxed);
    /* release: pairs with the acquire in slots_used() */
    while (used < count && !atomic_compare_exchange_weak_explicit(&shared->used, &used, count, memory_order_release,
                                                                  memory_order_relaxed)) {
    }
}

/* Whether somebody waits who could take over a notification of that time. */
static bool has_heir(struct condition_shared *shared, uint32_t time)
{
    const uint32_t used = slots_used(shared);
    for (uint32_t i = 0; i < used; i++)
        if (waits_before(atomic_load_explicit(&shared->slots[i].word, memory_order_relaxed), time))
            return true;
    return false;
}

/* Free the slots of the dead, but for notifications that somebody can take over. */
static void sweep(struct condition_shared *shared, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        uint64_t word = atomic_load_explicit(&shared->slots[i].word, memory_order_relaxed);
        if (word == 0 || identity_lives_compact(owner_process(word)) ||
            (slot_state_of(word) == SLOT_NOTIFIED && has_heir(shared, slot_number_of(word))))
            continue;
        atomic_compare_exchange_strong_explicit(&shared->slots[i].word, &word, 0, memory_order_relaxed,
                                                memory_order_relaxed);
    }
}

/* The first free slot. When all that were ever used are taken, the dead are swept first, at each doubling: their slots
 * would make every look at all slots longer, and one question to the kernel for each new slot is a fair price. */
static uint32_t find_free(struct condition_shared *shared)
{
    const uint32_t used = slots_used(shared);
    for (int round = 0; round < 2; round++) {
        for (uint32_t i = 0; i < used; i++)
            if (atomic_load_explicit(&shared->slots[i].word, memory_order_relaxed) == 0)
                return i;
        if (used < SWEEP_FROM || (used & (used - 1)) != 0)
            break;
        sweep(shared, used);
    }
    return used;
}

/* Claim a slot for the calling thread, which holds the lock. */
static int claim(struct condition_shared *shared, shoal_condition_turn *turn)
{
    const uint64_t process = identity_compact(identity_self());
    for (;;) {
        const uint32_t index = find_free(shared);
        if (index >= SLOTS)
            return -EUSERS;
        const uint32_t number = atomic_fetch_add_explicit(&shared->waits, 1, memory_order_relaxed);
        const uint64_t word = slot_word(process, number, SLOT_WAITING);
        uint64_t found = 0;
        note_used(shared, index + 1);
        /* acquire: the slot's last user is through with it. The lock's release, which follows, publishes the claim. */
        if (atomic_compare_exchange_strong_explicit(&shared->slots[index].word, &found, word, memory_order_acquire,
                                                    memory_order_relaxed)) {
            turn->slot = index;
            turn->word = word;
            return 0;
        }
    }
}

/* A turn comes from the caller: its index is checked before it is used. */
static struct condition_slot *slot_of(struct condition_shared *shared, const shoal_condition_turn *turn)
{
    return &shared->slots[turn->slot % SLOTS];
}

static bool has_been_notified(struct condition_shared *shared, const shoal_condition_turn *turn)
{
    if (slot_state_of(turn->word) == SLOT_NOTIFIED)
        return true; /* by taking over */
    /* acquire: pairs with the release in notify_slot() */
    return atomic_load_explicit(&slot_of(shared, turn)->word, memory_order_acquire) != turn->word;
}

/* Give the slot up. True: it had a notification. With `hands_on` that goes to another first: who is killed between the
 * two leaves it told twice, which a waiter must bear, and not lost, which nobody could mend. */
static bool give_up(struct condition_shared *shared, const shoal_condition_turn *turn, bool hands_on)
{
    struct condition_slot *slot = slot_of(shared, turn);
    uint64_t word = turn->word;
    /* acq_rel: as in has_been_notified(); and the slot's next user comes after us */
    if (slot_state_of(word) == SLOT_WAITING &&
        atomic_compare_exchange_strong_explicit(&slot->word, &word, 0, memory_order_acq_rel, memory_order_acquire))
        return false;
    if (hands_on)
        (void)notify_first(shared, slot_number_of(word));
    /* From NOTIFIED on nobody but the waiter changes it while the waiter lives. release: as above */
    atomic_store_explicit(&slot->word, 0, memory_order_release);
    return true;
}

/* Take over the notification of a dead waiter. */
static bool take_over(struct condition_shared *shared, uint32_t index, uint64_t word, shoal_condition_turn *turn)
{
    const uint64_t mine = slot_word(owner_process(turn->word), slot_number_of(word), SLOT_NOTIFIED);
    /* acquire: pairs with the release in notify_slot() */
    if (!atomic_compare_exchange_strong_explicit(&shared->slots[index].word, &word, mine, memory_order_acquire,
                                                 memory_order_relaxed))
        return false;                  /* another was faster */
    (void)give_up(shared, turn, true); /* if it was notified as well meanwhile, one is for another */
    turn->slot = index;
    turn->word = mine;
    return true;
}

/* Look for dead waiters: whether one has a notification that the caller may take over (true: it did), and whether the
 * next in the slots is dead. In a ring of live and dead some live one has a dead neighbour, so all are found. */
static bool look_around(struct condition_shared *shared, shoal_condition_turn *turn, uint32_t *cursor)
{
    const uint32_t used = slots_used(shared);
    const uint64_t self = owner_process(turn->word);
    const uint32_t begin = *cursor;
    uint32_t looks = 0;
    for (uint32_t step = 0; step < used; step++) {
        const uint32_t index = (begin + step) % used;
        const uint64_t word = atomic_load_explicit(&shared->slots[index].word, memory_order_relaxed);
        if (slot_state_of(word) != SLOT_NOTIFIED || owner_process(word) == self ||
            !is_before(slot_number_of(turn->word), slot_number_of(word)))
            continue;
        *cursor = index;
        if (looks++ == LOOKS)
            break; /* the others next time */
        if (!identity_lives_compact(owner_process(word)) && take_over(shared, index, word, turn))
            return true;
    }
    looks = 0;
    for (uint32_t step = 1; step < used && looks < LOOKS; step++) {
        const uint32_t index = (turn->slot + step) % used;
        uint64_t word = atomic_load_explicit(&shared->slots[index].word, memory_order_relaxed);
        if (slot_state_of(word) != SLOT_WAITING || owner_process(word) == self)
            continue;
        looks++;
        if (identity_lives_compact(owner_process(word)))
            break;
        atomic_compare_exchange_strong_explicit(&shared->slots[index].word, &word, 0, memory_order_relaxed,
                                                memory_order_relaxed);
    }
    return false;
}

/* 0: go on to the lock. */
static int await(shoal_condition *condition, shoal_condition_turn *turn, int64_t deadline, bool interruptible)
{
    const int64_t patience_ends = sync_patience_ends(interruptible, turn->patience);
    struct condition_shared *shared = condition->shared;
    bool notified = has_been_notified(shared, turn);
    if (!notified && !sync_is_over(deadline)) {
        struct spin spin = spin_begin(&condition->spin, SPIN_UNKNOWN_CPU);
        while (!(notified = has_been_notified(shared, turn)) && spin_again(&spin)) {
        }
        spin_end(&spin, notified);
    }
    struct slices slices = SLICES_BEGIN;
    uint32_t cursor = 0;
    while (!notified) {
        struct eventcount *ec = &slot_of(shared, turn)->notified;
        const uint32_t seen = eventcount_prepare(ec);
        if (has_been_notified(shared, turn))
            break;
        const int error = sync_sleep(ec, seen, &slices, deadline < patience_ends ? deadline : patience_ends);
        notified = has_been_notified(shared, turn);
        if (notified)
            break;
        if (error == -EINTR && interruptible)
            return error;
        if (error != -ETIMEDOUT)
            continue;
        if (look_around(shared, turn, &cursor) || sync_is_over(deadline) || lock_owner_has_died(condition->lock))
            break;
        if (sync_is_over(patience_ends))
            return -EINTR;
    }
    return 0;
}

int shoal_condition_wait(shoal_condition *condition, int64_t timeout, shoal_condition_turn *turn)
{
    shoal_condition_turn own = {0};
    const bool interruptible = turn != NULL;
    if (turn == NULL)
        turn = &own;
    if (turn->stage == STAGE_NONE) {
        const int mine = lock_is_mine(condition->lock);
        if (mine != 1)
            return mine == 0 ? -EPERM : mine;
        int error = claim(condition->shared, turn);
        if (error != 0)
            return error;
        turn->stage = STAGE_WAITING;
        turn->depth = lock_leave(condition->lock);
    }
    const int64_t deadline = clock_deadline(timeout);
    int result;
    for (;;) {
        if (turn->stage == STAGE_WAITING) {
            int error = await(condition, turn, deadline, interruptible);
            if (error != 0)
                return error;
            turn->stage = STAGE_LOCKING;
        }
        const int64_t patience = interruptible && turn->patience > 0 ? turn->patience : SHOAL_FOREVER;
        do
            result = lock_return(condition->lock, turn->depth, patience);
        while (result == -EINTR && !interruptible);
        if (result == -EINTR || result == -ETIMEDOUT)
            return -EINTR;
        if (result != 0 || has_been_notified(condition->shared, turn) || sync_is_over(deadline))
            break;
        /* The lock's owner had died, and another was faster to inherit the lock: wait on. */
        turn->stage = STAGE_WAITING;
        (void)lock_leave(condition->lock);
    }
    const bool notified = give_up(condition->shared, turn, false);
    *turn = (shoal_condition_turn){.depth = turn->depth, .patience = turn->patience};
    if (result != 0)
        return result;
    return notified ? 0 : -ETIMEDOUT;
}

void shoal_condition_cancel(shoal_condition *condition, shoal_condition_turn *turn)
{
    if (turn->stage == STAGE_NONE)
        return;
    (void)give_up(condition->shared, turn, true);
    *turn = (shoal_condition_turn){.depth = turn->depth, .patience = turn->patience};
}
