/* pool.pml: engine/pool: SLOTS tasks of ITEMS items each, WORKERS that claim and answer them, and the owner that collects,
 * buries and gives out again. KILLS workers may be killed at any step; with LIMIT the owner itself kills the worker of an
 * item that it finds overdue, which may be done in the same instant.
 *
 * Each store to shared memory is a step of its own, but for the compare-and-swaps on a slot's state word, which change
 * state, owner and generation at once. A worker's result has a value (its item's number and 1), and what is delivered is
 * checked against it.
 *
 * Proved: each item is delivered once, right, or fails once; with LIMIT only the item that was overdue fails for that, and
 * an item whose worker was killed for another's sake is given out again; no end state in which an item is unsettled. What
 * a dead worker held is settled when its life tells of its death, when its pidfd does, or both times.
 * The mutations, one -D each, must be found: see run.sh.
 */
#ifndef SLOTS
#define SLOTS 1
#endif
#ifndef ITEMS
#define ITEMS 2
#endif
#ifndef WORKERS
#define WORKERS 2
#endif
#ifdef KILL
#define KILLS 1
#else
#define KILLS 0
#endif
#define TOTAL (SLOTS * ITEMS)
#define ROUNDS (SLOTS + 2 * TOTAL) /* publications there can be at the most */
#define NOBODY WORKERS

#define FREE 0
#define READY 1
#define RUNNING 2
#define DONE 3

typedef slot_type {
    byte state, owner, generation;
    byte first, finished, began;
    byte results[ITEMS];
    bool listed;
    bool condemned; /* of the place's record: the worker was killed for the item below */
    byte condemned_item;
    bool died; /* the slot was running when its worker was buried */
    bool timed_out, blameless;
};
slot_type slots[SLOTS];
byte ring_slot[ROUNDS], ring_generation[ROUNDS], head, tail;
bool pushed[SLOTS]; /* in the completion ring of the slot's last owner */
bool killed[WORKERS], dead[WORKERS], noticed[WORKERS], buried[WORKERS];
byte kills, settled;
byte outcome[TOTAL]; /* 0: none, 1: result, 2: worker died, 3: time limit */
bool end;

inline settle(item, what)
{
    assert(outcome[item] == 0);
    outcome[item] = what;
    settled++
}

proctype worker(byte me)
{
    byte at, s, g, i;
    bool claimed;
    {
        do
        :: end -> break
        :: else ->
            at = head;
            if
            :: at < tail ->
                s = ring_slot[at];
                g = ring_generation[at];
#ifdef MUTATION_OWNER_NAMED_LATER
                atomic {
                    claimed = slots[s].state == READY && slots[s].generation == g;
                    if
                    :: claimed -> slots[s].state = RUNNING; slots[s].owner = NOBODY
                    :: else
                    fi
                };
                if
                :: claimed -> slots[s].owner = me
                :: else
                fi;
#else
                atomic {
                    claimed = slots[s].state == READY && slots[s].generation == g;
                    if
                    :: claimed -> slots[s].state = RUNNING; slots[s].owner = me
                    :: else
                    fi
                };
#endif
#ifdef MUTATION_ONLY_THE_CLAIMER_MOVES_THE_HEAD
                if
                :: claimed -> atomic {
                        if
                        :: head == at -> head = at + 1
                        :: else
                        fi
                    }
                :: else -> (head != at || end)
                fi;
#else
                atomic {
                    if
                    :: head == at -> head = at + 1
                    :: else
                    fi
                };
#endif
                if
                :: claimed ->
                    i = slots[s].first;
                    do
                    :: i < ITEMS ->
                        slots[s].began = i + 1;
#ifdef MUTATION_COUNTED_BEFORE_WRITTEN
                        slots[s].began = 0;
                        slots[s].finished = i + 1;
                        slots[s].results[i - slots[s].first] = s * ITEMS + i + 1;
#else
                        slots[s].results[i - slots[s].first] = s * ITEMS + i + 1;
#ifdef MUTATION_TIME_LEFT_STANDING
                        slots[s].finished = i + 1;
#else
                        slots[s].began = 0;
                        slots[s].finished = i + 1;
#endif
#endif
                        i++
                    :: else -> break
                    od;
                    atomic {
                        if
                        :: slots[s].state == RUNNING && slots[s].owner == me -> slots[s].state = DONE
                        :: else -> claimed = false
                        fi
                    };
                    if
                    :: claimed -> pushed[s] = true
                    :: else
                    fi
                :: else
                fi
            :: else -> (head < tail || end) /* asleep */
            fi
        od
    } unless { killed[me] };
    dead[me] = killed[me]
}

/* The owner's steps are under its lock: nothing of its own comes between. Workers' steps may. */
inline publish(s)
{
    slots[s].died = false;
    slots[s].timed_out = false;
    slots[s].blameless = false;
    slots[s].listed = false;
    slots[s].state = READY;
    ring_slot[tail] = s;
    ring_generation[tail] = slots[s].generation;
    tail++
}

inline settle_slots(w)
{
    /* its completion ring first, then its slots by their state words */
    k = 0;
    do
    :: k < SLOTS ->
        if
        :: slots[k].owner == w && slots[k].state == RUNNING ->
            slots[k].died = true;
            if
            :: slots[k].condemned && slots[k].condemned_item == slots[k].finished -> slots[k].timed_out = true
            :: slots[k].condemned && slots[k].condemned_item != slots[k].finished -> slots[k].blameless = true
            :: else
            fi;
            slots[k].condemned = false;
            slots[k].state = DONE;
            slots[k].listed = true
#ifndef MUTATION_DONE_SLOTS_NOT_LISTED
        :: slots[k].owner == w && slots[k].state == DONE -> slots[k].listed = true
#endif
        :: else
        fi;
        k++
    :: else -> break
    od
}

inline collect(s)
{
    pushed[s] = false;
    slots[s].listed = true;
    k = slots[s].first;
    do
    :: k < slots[s].finished ->
        assert(slots[s].results[k - slots[s].first] == s * ITEMS + k + 1);
        settle(s * ITEMS + k, 1);
        k++
    :: else -> break
    od;
    if
    :: k < ITEMS ->
        assert(slots[s].died);
        if
        :: slots[s].timed_out -> settle(s * ITEMS + k, 3); k++
        :: slots[s].blameless
        :: else -> settle(s * ITEMS + k, 2); k++
        fi
    :: else
    fi;
    if
    :: k < ITEMS ->
        slots[s].first = k;
        slots[s].finished = k;
        slots[s].began = 0;
        slots[s].generation++;
        slots[s].owner = NOBODY;
        publish(s)
    :: else ->
        slots[s].generation++;
        slots[s].owner = NOBODY;
        slots[s].state = FREE
    fi
}

proctype supervisor()
{
    byte k, b, f, o;
    do
    :: settled == TOTAL -> end = true; break
    :: else ->
        if
        :: slots[0].state == DONE && (pushed[0] || slots[0].listed) -> atomic { collect(0) }
#if SLOTS > 1
        :: slots[1].state == DONE && (pushed[1] || slots[1].listed) -> atomic { collect(1) }
#endif
        :: dead[0] && !noticed[0] && !buried[0] -> atomic { settle_slots(0); noticed[0] = true }
        :: dead[0] && !buried[0] -> atomic { settle_slots(0); buried[0] = true }
        :: dead[1] && !noticed[1] && !buried[1] -> atomic { settle_slots(1); noticed[1] = true }
        :: dead[1] && !buried[1] -> atomic { settle_slots(1); buried[1] = true }
#ifdef LIMIT
        :: atomic { kills == 0 && slots[0].state == RUNNING -> o = slots[0].owner };
            b = slots[0].began;
            f = slots[0].finished;
            if
#ifdef MUTATION_TIME_READ_ONCE
            :: b != 0 && slots[0].state == RUNNING ->
#else
            :: b != 0 && slots[0].began == b ->
#endif
                /* overdue: the item that began then */
                assert(f + 1 == b);
                /* Whose it was is known since the word was read: it may have handed the task back by now. */
                atomic {
                    if
                    :: !killed[o] ->
                        slots[0].condemned = true;
                        slots[0].condemned_item = f;
                        killed[o] = true;
                        kills++
                    :: else
                    fi
                }
            :: else
            fi
#endif
        fi
    od
}

init
{
    byte s, k;
    atomic {
        s = 0;
        do
        :: s < SLOTS -> slots[s].owner = NOBODY; publish(s); s++
        :: else -> break
        od;
        run worker(0);
        run worker(1);
        run supervisor()
    };
#if KILLS > 0
    if
    :: atomic { !end && kills < KILLS -> killed[0] = true; kills++ }
    :: true
    fi
#endif
}
