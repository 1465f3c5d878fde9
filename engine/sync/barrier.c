/* sync/barrier.c: a number of parties that wait for each other, round after round.
 *
 * Each party claims a slot, which names its process and the round; all that counts the arrived is the slots. The state
 * word holds the round and how it stands, and changes by compare-and-swap only:
 *
 *     FILLING(r) -> FILLING(r + 1)                          all have come
 *              \--> ACTING(r) -> FILLING(r + 1)             the same, with an action in between
 *     any     ----> BROKEN(r) or DIED(r) -> FILLING(r + 1)  broken; reset
 *
 * Within a round no slot is given up, so a party that sees all slots claimed for its round, and moves the state on from
 * that round, is the last one. A party leaves its slot when its round is over; the next round cannot be complete
 * before, so "the round completed last", which the state word holds too, tells a slow party how its own round ended.
 * A free slot still names the round that it was used in last: it cannot be claimed for that round twice, so a claim
 * that succeeds is part of its round, also when the round is over before the claimer looks again. Who acts on a slot's
 * word looks at the slot first and at the state after that: a slot seen later may be one of rounds that came between.
 *
 * Parties sleep in slices. After each, a party asks whether its neighbour in the slots lives: in a ring with a live and
 * a dead process some live one has a dead neighbour. If not, it breaks the barrier for all. So does the last to come,
 * where a party that has waited for some time is dead. The slot of a process that died on its way out is freed by who
 * needs it. Called by the binding and users.
 */
#include <errno.h>
#include <stdlib.h>

#include "base/clock.h"
#include "sync/object.h"
#include "sync/spin.h"

/* Whether a process lives takes some 10 us to ask: the last to come asks it of those that came so much earlier. */
#define ASKED_AFTER SHOAL_MILLISECOND

enum phase { PHASE_FILLING = 0, PHASE_ACTING = 1, PHASE_BROKEN = 2, PHASE_DIED = 3 };
enum stage { STAGE_NONE = 0, STAGE_ENTERING = 1, STAGE_WAITING = 2 };

/* The state: bits 0-1 phase, 2-23 round, 32-53 the round that was completed last. */
#define ROUND_MASK IDENTITY_THREAD_MASK

static inline uint64_t state_word(uint64_t round, uint64_t completed, enum phase phase)
{
    return (completed & ROUND_MASK) << 32 | (round & ROUND_MASK) << 2 | (uint64_t)phase;
}
static inline enum phase phase_of(uint64_t state)
{
    return (enum phase)(state & 3u);
}
static inline uint64_t round_of(uint64_t state)
{
    return state >> 2 & ROUND_MASK;
}
static inline uint64_t completed_of(uint64_t state)
{
    return state >> 32 & ROUND_MASK;
}

/* A slot: bits 0-21 round, 22-63 the party's process, as an owner's name has it (object.h), or 0: free, used last in
 * that round. */
static inline uint64_t slot_round(uint64_t word)
{
    return word & ROUND_MASK;
}
static inline bool slot_is_free(uint64_t word)
{
    return owner_process(word) == 0;
}

struct barrier_shared {
    struct sync_header header; /* count: parties */
    uint8_t unused0[128 - 40];
    _Atomic uint64_t state;
    struct eventcount moved; /* parties that have arrived sleep here */
    struct eventcount left;  /* those that came too early */
    uint8_t unused1[128 - 16];
    _Atomic uint64_t slots[]; /* `count` words; then as many times at which these were claimed last */
};
static_assert(sizeof(struct barrier_shared) == 256 && offsetof(struct barrier_shared, state) == 128,
              "what is written lies apart from what is read only");

struct shoal_barrier {
    shoal_region *region;
    struct barrier_shared *shared;
    uint32_t parties;
    struct spin_budget spin;
};

/* ------------------------------------------------------------- construction ---- */

static uint64_t size_of(uint32_t parties)
{
    return sizeof(struct barrier_shared) + (uint64_t)parties * 2 * sizeof(uint64_t);
}

static void point_into(shoal_barrier *barrier, uint32_t parties)
{
    barrier->shared = shoal_region_base(barrier->region);
    barrier->parties = parties;
    barrier->spin = (struct spin_budget)SPIN_INITIALIZER;
}

int shoal_barrier_create(uint32_t parties, shoal_barrier **out)
{
    if (parties < 1 || parties > SHOAL_BARRIER_MOST)
        return -EINVAL;
    shoal_barrier *barrier = calloc(1, sizeof *barrier);
    if (barrier == NULL)
        return -ENOMEM;
    const struct sync_header header = {.kind = SYNC_BARRIER, .size = size_of(parties), .count = parties};
    int error = sync_create("shoal-barrier", header, &barrier->region);
    if (error != 0) {
        free(barrier);
        return error;
    }
    point_into(barrier, parties);
    atomic_store_explicit(&barrier->shared->state, state_word(1, 0, PHASE_FILLING), memory_order_relaxed);
    *out = barrier;
    return 0;
}

int shoal_barrier_attach(int fd, shoal_barrier **out)
{
    shoal_barrier *barrier = calloc(1, sizeof *barrier);
    if (barrier == NULL)
        return -ENOMEM;
    struct sync_header header;
    int error = sync_attach(fd, SYNC_BARRIER, &header, &barrier->region);
    if (error != 0)
        goto free_barrier;
    error = SHOAL_ECORRUPT;
    if (header.count < 1 || header.count > SHOAL_BARRIER_MOST || header.size != size_of(header.count) ||
        header.flags != 0)
        goto close_region;
    point_into(barrier, header.count);
    *out = barrier;
    return 0;

close_region:
    shoal_region_close(barrier->region);
free_barrier:
    free(barrier);
    return error;
}

int shoal_barrier_fd(const shoal_barrier *barrier)
{
    return shoal_region_fd(barrier->region);
}

void shoal_barrier_close(shoal_barrier *barrier)
{
    if (barrier == NULL)
        return;
    shoal_region_close(barrier->region);
    free(barrier);
}

uint32_t shoal_barrier_parties(const shoal_barrier *barrier)
{
    return barrier->parties;
}

/* ---------------------------------------------------------------- state, slots ---- */

static uint64_t state_now(const shoal_barrier *barrier)
{
    /* seq_cst: in one order with the claims, so that of two that come last one sees the other; and what was written
     * before the arrivals that completed a round is seen after it */
    return atomic_load_explicit(&barrier->shared->state, memory_order_seq_cst);
}

/* Move the state on from `from`, and wake those whom it concerns. False: it has changed. */
static bool move(shoal_barrier *barrier, uint64_t from, uint64_t to)
{
    /* seq_cst: as in state_now() */
    if (!atomic_compare_exchange_strong_explicit(&barrier->shared->state, &from, to, memory_order_seq_cst,
                                                 memory_order_relaxed))
        return false;
    if (phase_of(to) != PHASE_ACTING) {
        (void)eventcount_notify_all(&barrier->shared->moved);
        (void)eventcount_notify_all(&barrier->shared->left);
    }
    return true;
}

/* Break round `round` if it is still under way. */
static void breach(shoal_barrier *barrier, uint64_t round, enum phase how)
{
    uint64_t state = state_now(barrier);
    while (round_of(state) == round && phase_of(state) <= PHASE_ACTING) {
        if (move(barrier, state, state_word(round, completed_of(state), how)))
            return;
        state = state_now(barrier);
    }
}

/* How the caller's round stands. -EBUSY: under way. */
static int outcome(uint64_t state, uint64_t round)
{
    if (round_of(state) != round)
        return completed_of(state) == round ? 0 : -EPIPE; /* completed, or reset */
    if (phase_of(state) == PHASE_BROKEN)
        return -EPIPE;
    return phase_of(state) == PHASE_DIED ? SHOAL_EOWNERDIED : -EBUSY;
}

static uint32_t arrived(const shoal_barrier *barrier, uint64_t round)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < barrier->parties; i++) {
        /* seq_cst: as in state_now() */
        const uint64_t word = atomic_load_explicit(&barrier->shared->slots[i], memory_order_seq_cst);
        count += !slot_is_free(word) && slot_round(word) == round;
    }
    return count;
}

static void leave(shoal_barrier *barrier, shoal_barrier_turn *turn)
{
    /* Nobody else changes the slot of a live process. release: its next user comes after us. */
    atomic_store_explicit(&barrier->shared->slots[turn->index % barrier->parties], slot_round(turn->word),
                          memory_order_release);
    turn->stage = STAGE_NONE;
    (void)eventcount_notify_one(&barrier->shared->left);
}

/* ------------------------------------------------------------------- arriving ---- */

/* When the slot was claimed last. Its claimer says so right after: until then it is an earlier time. */
static _Atomic uint64_t *claimed_at(const shoal_barrier *barrier, uint32_t index)
{
    return &barrier->shared->slots[barrier->parties + index];
}

/* Claim a slot for the round under way. 0, -EBUSY (all are taken), or why there is none. */
static int claim(shoal_barrier *barrier, uint64_t process, shoal_barrier_turn *turn)
{
    uint64_t state = state_now(barrier);
    for (uint32_t i = 0; i < barrier->parties;) {
        _Atomic uint64_t *slot = &barrier->shared->slots[i];
        /* seq_cst: as in state_now(); and before the state, or a slot that was used in a later round could be claimed
         * for one that is long over */
        uint64_t found = atomic_load_explicit(slot, memory_order_seq_cst);
        const uint64_t now = state_now(barrier);
        if (now != state) {
            state = now;
            i = 0; /* another round: slots that could not be claimed may be now */
            continue;
        }
        const uint64_t round = round_of(state);
        int error = outcome(state, round);
        if (error != -EBUSY)
            return error;
        const uint64_t word = process << IDENTITY_THREAD_BITS | round;
        /* seq_cst: as in state_now() */
        if (slot_is_free(found) && slot_round(found) != round &&
            atomic_compare_exchange_strong_explicit(slot, &found, word, memory_order_seq_cst, memory_order_relaxed)) {
            atomic_store_explicit(claimed_at(barrier, i), (uint64_t)shoal_clock_now(), memory_order_relaxed);
            turn->index = i;
            turn->word = word;
            turn->stage = STAGE_WAITING;
            return 0;
        }
        i++;
    }
    return -EBUSY;
}

/* Free slots whose process died on its way out of an earlier round; break the round if one of its parties died. */
static void look_over_all(shoal_barrier *barrier)
{
    uint64_t lives = 0; /* a process often has several slots, one after the other */
    for (uint32_t i = 0; i < barrier->parties; i++) {
        /* seq_cst: before the state, or a slot claimed for a later round would be freed as if that were over */
        uint64_t word = atomic_load_explicit(&barrier->shared->slots[i], memory_order_seq_cst);
        const uint64_t round = round_of(state_now(barrier));
        if (slot_is_free(word) || owner_process(word) == lives)
            continue;
        if (identity_lives_compact(owner_process(word))) {
            lives = owner_process(word);
        } else if (slot_round(word) == round) {
            breach(barrier, round, PHASE_DIED);
            return;
        } else if (atomic_compare_exchange_strong_explicit(&barrier->shared->slots[i], &word, slot_round(word),
                                                           memory_order_relaxed, memory_order_relaxed)) {
            (void)eventcount_notify_one(&barrier->shared->left);
        }
    }
}

static int enter(shoal_barrier *barrier, int64_t deadline, bool interruptible, shoal_barrier_turn *turn)
{
    struct barrier_shared *shared = barrier->shared;
    const uint64_t process = identity_compact(identity_self());
    if (process == 0)
        return -ENOSYS;
    const int64_t patience_ends = sync_patience_ends(interruptible, turn->patience);
    const int64_t until = deadline < patience_ends ? deadline : patience_ends;
    bool slept = false;
    struct slices slices = SLICES_BEGIN;
    for (;;) {
        int error = claim(barrier, process, turn);
        if (error == -EBUSY) {
            const uint32_t seen = eventcount_prepare(&shared->left);
            error = claim(barrier, process, turn);
            if (error == -EBUSY) {
                turn->stage = STAGE_ENTERING;
                error = sync_sleep(&shared->left, seen, &slices, until);
                slept = true;
                if (error == -EINTR && interruptible)
                    return error;
                if (error == -ETIMEDOUT && sync_is_over(deadline)) {
                    turn->stage = STAGE_NONE;
                    return error;
                }
                if (error == -ETIMEDOUT)
                    look_over_all(barrier);
                if (sync_is_over(patience_ends))
                    return -EINTR;
                continue;
            }
        }
        if (error != 0)
            turn->stage = STAGE_NONE;
        if (slept)
            (void)eventcount_notify_one(&shared->left); /* more may have left than were woken */
        return error;
    }
}

/* ---------------------------------------------------------------------- waiting ---- */

/* Whether a party of the round, all of which have come, died while it waited. */
static bool one_died(const shoal_barrier *barrier, const shoal_barrier_turn *turn)
{
    const uint64_t before = (uint64_t)(shoal_clock_now() - ASKED_AFTER);
    uint64_t lives = owner_process(turn->word);
    for (uint32_t i = 0; i < barrier->parties; i++) {
        const uint64_t word = atomic_load_explicit(&barrier->shared->slots[i], memory_order_relaxed);
        if (slot_is_free(word) || owner_process(word) == lives ||
            atomic_load_explicit(claimed_at(barrier, i), memory_order_relaxed) > before)
            continue;
        if (!identity_lives_compact(owner_process(word)))
            return true;
        lives = owner_process(word);
    }
    return false;
}

/* The party came last if this finds all slots claimed. 0, or what the action returned. */
static int complete(shoal_barrier *barrier, uint64_t round, const shoal_barrier_turn *turn)
{
    uint64_t state = state_now(barrier);
    if (outcome(state, round) != -EBUSY || phase_of(state) != PHASE_FILLING ||
        arrived(barrier, round) != barrier->parties)
        return 0;
    if (one_died(barrier, turn)) {
        breach(barrier, round, PHASE_DIED); /* where the round is still under way: its slots were its parties' */
        return 0;
    }
    if (turn->action != NULL) {
        const uint64_t acting = state_word(round, completed_of(state), PHASE_ACTING);
        if (!move(barrier, state, acting))
            return 0;
        const int result = turn->action(turn->context);
        if (result != 0) {
            breach(barrier, round, PHASE_BROKEN);
            return result;
        }
        state = acting;
    }
    (void)move(barrier, state, state_word(round + 1, round, PHASE_FILLING));
    return 0;
}

/* Ask whether the next party of another process lives, and break the round if not. */
static void look_at_neighbour(shoal_barrier *barrier, uint64_t round, const shoal_barrier_turn *turn)
{
    for (uint32_t step = 1; step < barrier->parties; step++) {
        const uint32_t index = (uint32_t)((turn->index + (uint64_t)step) % barrier->parties);
        const uint64_t word = atomic_load_explicit(&barrier->shared->slots[index], memory_order_relaxed);
        if (slot_is_free(word) || slot_round(word) != round || owner_process(word) == owner_process(turn->word))
            continue;
        if (!identity_lives_compact(owner_process(word)))
            breach(barrier, round, PHASE_DIED);
        return;
    }
}

/* Wait until the round is over. */
static int await(shoal_barrier *barrier, int64_t deadline, bool interruptible, const shoal_barrier_turn *turn)
{
    struct barrier_shared *shared = barrier->shared;
    const uint64_t round = slot_round(turn->word);
    const int64_t patience_ends = sync_patience_ends(interruptible, turn->patience);
    int result = outcome(state_now(barrier), round);
    if (result == -EBUSY && !sync_is_over(deadline)) {
        struct spin spin = spin_begin(&barrier->spin, SPIN_UNKNOWN_CPU);
        while ((result = outcome(state_now(barrier), round)) == -EBUSY && spin_again(&spin)) {
        }
        spin_end(&spin, result != -EBUSY);
    }
    struct slices slices = SLICES_BEGIN;
    while (result == -EBUSY) {
        const uint32_t seen = eventcount_prepare(&shared->moved);
        result = outcome(state_now(barrier), round);
        if (result != -EBUSY)
            break;
        const int error =
            sync_sleep(&shared->moved, seen, &slices, deadline < patience_ends ? deadline : patience_ends);
        result = outcome(state_now(barrier), round);
        if (result != -EBUSY)
            break;
        if (error == -EINTR && interruptible)
            return error;
        if (error != -ETIMEDOUT)
            continue;
        look_at_neighbour(barrier, round, turn);
        result = outcome(state_now(barrier), round);
        if (result == -EBUSY && sync_is_over(deadline)) {
            breach(barrier, round, PHASE_BROKEN);
            result = outcome(state_now(barrier), round);
            return result == -EPIPE ? -ETIMEDOUT : result;
        }
        if (result == -EBUSY && sync_is_over(patience_ends))
            return -EINTR;
    }
    return result;
}

int shoal_barrier_wait(shoal_barrier *barrier, int64_t timeout, shoal_barrier_turn *turn)
{
    shoal_barrier_turn own = {0};
    const bool interruptible = turn != NULL;
    if (turn == NULL)
        turn = &own;
    const int64_t deadline = clock_deadline(timeout);
    int result;
    if (turn->stage != STAGE_WAITING) {
        result = enter(barrier, deadline, interruptible, turn);
        if (result != 0)
            return result;
        result = complete(barrier, slot_round(turn->word), turn);
        if (result != 0) {
            leave(barrier, turn);
            return result;
        }
    }
    result = await(barrier, deadline, interruptible, turn);
    if (result != -EINTR)
        leave(barrier, turn);
    return result;
}

void shoal_barrier_abort(shoal_barrier *barrier, shoal_barrier_turn *turn)
{
    uint64_t state = state_now(barrier);
    /* Whichever round it is: one that is completed meanwhile must not save the next. */
    while (phase_of(state) <= PHASE_ACTING &&
           !move(barrier, state, state_word(round_of(state), completed_of(state), PHASE_BROKEN)))
        state = state_now(barrier);
    if (turn == NULL)
        return;
    if (turn->stage == STAGE_WAITING)
        leave(barrier, turn);
    turn->stage = STAGE_NONE;
}

void shoal_barrier_reset(shoal_barrier *barrier)
{
    uint64_t state = state_now(barrier);
    while (!move(barrier, state, state_word(round_of(state) + 1, completed_of(state), PHASE_FILLING)))
        state = state_now(barrier);
}

uint32_t shoal_barrier_waiting(const shoal_barrier *barrier)
{
    const uint64_t state = state_now(barrier);
    return phase_of(state) == PHASE_FILLING ? arrived(barrier, round_of(state)) : 0;
}

int shoal_barrier_broken(const shoal_barrier *barrier)
{
    return phase_of(state_now(barrier)) >= PHASE_BROKEN;
}
