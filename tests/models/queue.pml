/* queue.pml: engine/queue/queue.c: two producers (or one) put and CONSUMERS take. KILL: producer 0 (1), consumer 2 (2), or
 * both (3) are killed, at any step or after their last.
 *
 * A slot's word changes by compare-and-swap only, as in layout.h: owner and state in one. Positions are not used again
 * here (the real word names the position, so a slot used again is another word), and segments are left out. `block` says
 * whose an item's memory is. `items` and `space` are the eventcounts that the two sides sleep on, each of their calls a
 * step: eventcount.pml proves them; a sleep that ends by itself (SLICES) is followed by a look at who lives. SCANNED has consumers begin
 * where scan_from() lets them, and pass what passed.c knows, without the real distances; TOO_LARGE lets each put one item back
 * (-EMSGSIZE).
 *
 * Proved: each item is taken once; none that was FULL is lost; the head passes only slots that are DONE; nobody touches a
 * slot in a live process's hands; a bounded queue never holds more than it may; an item's memory is the queue's whenever
 * it is FULL, and somebody else's once it is DONE; one consumer gets a producer's items in their order (ORDERED); no end state in
 * which a live process waits though it could be served. The mutations, one -D each, must be found: see run.sh.
 */
#ifndef FIRST_PUTS
#define FIRST_PUTS 1 /* by producer 0, which may be killed */
#endif
#ifndef SECOND_PUTS
#define SECOND_PUTS 1 /* by producer 1, which lives; 0: there is none */
#endif
#ifndef CONSUMERS
#define CONSUMERS 2 /* the first may be killed */
#endif
#ifndef CAPACITY
#define CAPACITY 0 /* no bound */
#endif
#ifndef GETS
#define GETS 255 /* items that a consumer takes before it leaves */
#endif
/* Slices a process may have until it gets on: EARLY ones in all, which end at any time, LATE ones when nothing else can
 * happen. If looking again did not help, the waiters would be stuck. */
#ifndef EARLY
#define EARLY 0
#endif
#ifndef LATE
#define LATE 2
#endif

#define PRODUCERS 2
#define PROCESSES (PRODUCERS + CONSUMERS)
#define POSITIONS (FIRST_PUTS + SECOND_PUTS)

#define FREE 0
#define WRITING 1
#define FULL 2
#define READING 3
#define DONE 4
#define DROPPING 5
#define STATE(w) ((w) & 7)
#define OWNER(w) ((w) >> 3)
#define WORD(owner, state) ((owner) << 3 | (state))
#ifdef MUTATION_DROPPING_IS_NOT_HELD
#define HELD(w) (STATE(w) == WRITING || STATE(w) == READING)
#else
#define HELD(w) (STATE(w) == WRITING || STATE(w) == READING || STATE(w) == DROPPING)
#endif

/* Whose an item's memory is: the queue's, nobody's any more, or process i's: i + 1. */
#define QUEUES 0
#define FREED 15

byte word[POSITIONS], block[POSITIONS];
byte head, tail;
/* The two eventcounts: whether somebody may sleep, and who announced it and saw no notification since. */
bool items, space;
bool watching[PROCESSES], asleep[PROCESSES], dead[PROCESSES];

/* For the proof only. */
byte maker[POSITIONS];
bool taken[POSITIONS];
byte producers_left = 1 + (SECOND_PUTS > 0);
byte items_left; /* FULL once, and not taken */
#define SERVED (producers_left == 0 && items_left == 0)
#define NOBODY_TAKES (CONSUMERS == 1 && dead[2] && STATE(word[head]) == FULL)

inline notify_items()
{
    atomic {
        if
        :: items ->
            items = false;
            watching[2] = false;
#if CONSUMERS > 1
            watching[3] = false;
#endif
            if
            :: asleep[2] -> asleep[2] = false
#if CONSUMERS > 1
            :: asleep[3] -> asleep[3] = false
#endif
            :: else
            fi
        :: else
        fi
    }
}

inline notify_space()
{
    atomic {
        if
        :: space ->
            space = false;
            watching[0] = false;
            watching[1] = false;
            if
            :: asleep[0] -> asleep[0] = false
            :: asleep[1] -> asleep[1] = false
            :: else
            fi
        :: else
        fi
    }
}

/* A turn of the loop is one step: what is read cannot change but by the head's moving on, and then the turn is done again. */
inline advance_head()
{
    do
    :: atomic {
            if
#ifdef MUTATION_HEAD_PASSES_WHAT_IS_READ
            :: head < tail && (STATE(word[head]) == DONE || STATE(word[head]) == READING) ->
#else
            :: head < tail && STATE(word[head]) == DONE ->
#endif
                assert(STATE(word[head]) == DONE);
                head++;
                moved = true
            :: else -> break
            fi
        }
    od;
    if
    :: moved ->
        moved = false;
#if CAPACITY > 0
#ifndef MUTATION_NO_WAKE_FOR_SPACE
        notify_space()
#endif
#endif
    :: else
    fi
}

inline give(p, from, to)
{
    atomic {
        if
        :: block[p] == from -> block[p] = to
        :: else
        fi
    }
}

/* The slot at `p` was seen as `w`, in the hands of a process that is dead. */
inline settle_dead(p)
{
    if
    :: STATE(w) == READING ->
#ifndef MUTATION_FULL_BEFORE_GIVEN_BACK
        give(p, OWNER(w) + 1, QUEUES);
#endif
        atomic {
            if
#ifdef MUTATION_SETTLED_BY_STORE
            :: true -> word[p] = WORD(0, FULL)
#else
            :: word[p] == w -> word[p] = WORD(0, FULL)
#endif
            :: else
            fi;
#ifndef MUTATION_FULL_BEFORE_GIVEN_BACK
            w = 0
#endif
        };
#ifdef MUTATION_FULL_BEFORE_GIVEN_BACK
        give(p, OWNER(w) + 1, QUEUES);
        w = 0
#endif
    :: else ->
        atomic {
            if
#ifdef MUTATION_DROPPED_AT_ONCE
            :: word[p] == w -> assert(block[p] != QUEUES); word[p] = WORD(0, DONE); won = true
#else
            :: word[p] == w -> word[p] = WORD(me, DROPPING); won = true
#endif
            :: else
            fi;
            w = 0
        };
        if
        :: won ->
            won = false;
#ifndef MUTATION_DROPPED_AT_ONCE
            give(p, QUEUES, me + 1);
            atomic {
                assert(word[p] == WORD(me, DROPPING) && block[p] != QUEUES);
                word[p] = WORD(0, DONE)
            };
#endif
            give(p, me + 1, FREED);
            advance_head()
        :: else
        fi
    fi
}

/* Claim the first FULL slot: `claimed`, at `at`; else `busy` says whether any was in somebody's hands. */
inline claim_full()
{
    do
    :: atomic { busy = false; again = false; at = head };
        atomic {
            t = tail
#ifdef SCANNED
            ;
            written = POSITIONS;
            left = 0;
            known = 0;
            if
            :: !bury && scanned > at ->
                if
                :: at = scanned; passed = true
                :: bury = true
                fi
            :: else
            fi;
            if
            :: !bury && until > at -> known = until; passed = true
            :: true
            fi
#endif
        };
        do
        :: atomic {
#ifdef SCANNED
                do
                :: at < known && !(known_left >> at & 1) -> at++
                :: else -> break
                od;
#endif
                if
                :: at >= t -> break
                :: else
                fi;
                w = word[at];
                if
                :: STATE(w) == FULL
                :: else ->
                    if
                    :: HELD(w) ->
                        busy = true;
#ifdef SCANNED
#ifndef MUTATION_WRITTEN_ONES_PASSED
                        if
                        :: STATE(w) != READING ->
                            left = left | (1 << at);
                            if
                            :: at < written -> written = at
                            :: else
                            fi
                        :: else
                        fi;
#endif
#endif
#ifndef MUTATION_NOBODY_ASKS
                        if
                        :: bury
                        :: else -> w = 0
                        fi
#else
                        w = 0
#endif
                    :: else -> w = 0
                    fi
                fi
            };
            if
            :: w == WORD(0, FULL) ->
                atomic {
                    w = 0;
                    if
                    :: word[at] == WORD(0, FULL) ->
                        assert(block[at] == QUEUES);
                        word[at] = WORD(me, READING);
                        claimed = true;
#ifdef SCANNED
                        scanned = (written < at -> written : at + 1);
                        if
                        :: at >= known -> until = at + 1; known_left = left
                        :: true
                        fi;
                        left = 0;
                        known = 0;
#endif
                        break
                    :: else
                    fi
                }
            :: w != 0 && w != WORD(0, FULL) ->
                if
                :: dead[OWNER(w)] -> settle_dead(at); again = true
                :: else -> w = 0
                fi
            :: else
            fi;
            at++
        od;
        if
        :: claimed -> break
        :: else
        fi;
        if
        :: passed -> atomic { passed = false; scanned = 0; until = 0; known_left = 0; again = true }
        :: else
        fi;
#ifndef MUTATION_ONLY_THE_TAKER_MOVES_THE_HEAD
        if
        :: !busy && !again -> advance_head()
        :: else
        fi;
#endif
        if
        :: again
        :: else -> break
        fi
    od;
    atomic { t = 0; written = 0; left = 0; known = 0; again = false; passed = false }
}

inline get()
{
    do
    :: claim_full();
        if
        :: claimed -> break
        :: !claimed && announced ->
            if
            :: atomic { watching[me] -> watching[me] = false; asleep[me] = true }
                if
                :: atomic { !asleep[me] -> at = 0 }
                :: atomic { SERVED -> asleep[me] = false } goto leave
#ifdef SLICES
                :: atomic { timeout && late < LATE -> late++; asleep[me] = false }
                :: atomic { early < EARLY -> early++; asleep[me] = false }
#endif
                fi
            :: else
            fi
        :: else
        fi;
        atomic { at = 0; bury = busy; busy = false; announced = true; items = true; watching[me] = true }
    od;
    atomic { busy = false; bury = false; announced = false; late = 0; watching[me] = false };
#ifndef MUTATION_WAKE_NOT_PASSED_ON
    h = head;
    if
    :: tail - h > 1 -> notify_items()
    :: else
    fi;
    h = 0;
#endif
    if
#ifdef TOO_LARGE
    :: !put_back ->
        atomic { put_back = true; scanned = 0; until = 0; known_left = 0; assert(word[at] == WORD(me, READING)); word[at] = WORD(0, FULL) };
        notify_items()
#endif
    :: true ->
#ifndef MUTATION_DONE_BEFORE_TAKEN_OVER
        give(at, QUEUES, me + 1);
#endif
        atomic {
            assert(word[at] == WORD(me, READING) && !taken[at] && block[at] == me + 1);
            word[at] = WORD(0, DONE);
            taken[at] = true;
            items_left--;
#ifdef ORDERED
            assert(at + 1 > last[maker[at]]);
            last[maker[at]] = at + 1;
#endif
            if
            :: GETS != 255 -> gets++
            :: else
            fi
        };
        advance_head()
    fi;
    atomic { at = 0; claimed = false }
}

inline claim_free()
{
    do
    ::
#ifdef MUTATION_ROOM_SEEN_BEFORE_THE_TAIL
        h = head;
        atomic { crowded = CAPACITY > 0 && tail >= h + CAPACITY; h = 0 };
        t = tail;
#else
        t = tail;
#if CAPACITY > 0
        h = head;
        atomic { crowded = tail >= h + CAPACITY; h = 0 };
#endif
#endif
        if
        :: crowded ->
            atomic { t = 0; space = true; watching[me] = true };
            h = head;
            atomic { crowded = tail >= h + CAPACITY; h = 0 };
            if
            :: crowded ->
                atomic { crowded = false; h = head };
                atomic { w = (h < POSITIONS -> word[h] : 0); busy = HELD(w) };
                if
#ifndef MUTATION_ONLY_THE_TAKER_MOVES_THE_HEAD
                :: STATE(w) == DONE -> w = 0; advance_head()
#endif
                :: busy && dead[OWNER(w)] -> settle_dead(h)
                :: else ->
                    atomic { w = 0; h = 0; busy = false };
                    if
                    :: atomic { watching[me] -> watching[me] = false; asleep[me] = true; slept = true }
                        if
                        :: !asleep[me]
                        :: atomic { NOBODY_TAKES -> asleep[me] = false } goto leave
#ifdef SLICES
                        :: atomic { timeout && late < LATE -> late++; asleep[me] = false }
                        :: atomic { early < EARLY -> early++; asleep[me] = false }
#endif
                        fi;
                        space = true
                    :: else -> slept = true
                    fi
                fi;
                atomic { h = 0; busy = false }
            :: else
            fi;
            watching[me] = false
        :: else ->
            atomic {
                if
                :: word[t] == WORD(0, FREE) ->
#if CAPACITY > 0
                    assert(t < head + CAPACITY);
#endif
                    word[t] = WORD(me, WRITING);
                    block[t] = me + 1;
                    maker[t] = me;
                    claimed = true
                :: else
                fi
            };
#ifdef MUTATION_ONLY_THE_CLAIMER_MOVES_THE_TAIL
            if
            :: claimed -> tail = t + 1
            :: else -> tail != t
            fi;
#else
            atomic {
                if
                :: tail == t -> tail = t + 1
                :: else
                fi
            };
#endif
            if
            :: claimed -> break
            :: else -> t = 0
            fi
        fi
    od;
    atomic { claimed = false; late = 0 };
#if CAPACITY > 0
    if
    :: slept ->
        h = head;
        if
        :: tail < h + CAPACITY -> notify_space()
        :: else
        fi;
        h = 0
    :: else
    fi;
    slept = false
#endif
}

inline put()
{
    claim_free();
#ifndef MUTATION_FULL_BEFORE_GIVEN
    give(t, me + 1, QUEUES);
#endif
    atomic {
        assert(word[t] == WORD(me, WRITING));
        word[t] = WORD(0, FULL);
        items_left++
#ifndef MUTATION_FULL_BEFORE_GIVEN
        ;
        t = 0
#endif
    };
#ifdef MUTATION_FULL_BEFORE_GIVEN
    give(t, me + 1, QUEUES);
    t = 0;
#endif
#ifndef MUTATION_NO_WAKE_FOR_ITEMS
    notify_items();
#endif
    puts--
}

/* Only those that may be killed look whether they are: the others' steps stay independent. */
#define CONSUMER_VARIABLES \
    byte at, t, h, w, scanned, written, until, known, known_left, left, early, late, gets, last[PRODUCERS]; \
    bool bury, busy, again, claimed, announced, moved, won, passed, put_back
#define PRODUCER_VARIABLES \
    byte t, h, w, early, late; \
    bool claimed, moved, won, crowded, busy, slept

proctype consumer(byte me)
{
    CONSUMER_VARIABLES;
    do
    :: gets == GETS -> break
    :: else -> get()
    od;
leave:
    skip
}

proctype producer(byte me; byte puts)
{
    PRODUCER_VARIABLES;
    do
    :: puts == 0 -> break
    :: else -> put()
    od;
leave:
    producers_left--
}

#ifdef KILL
proctype mortal_consumer(byte me)
{
    CONSUMER_VARIABLES;
    {
        do
        :: gets == GETS -> break
        :: else -> get()
        od;
leave:
        skip
    } unless {
        dead[me]
    };
    atomic {
        asleep[me] = false; watching[me] = false;
        at = 0; t = 0; w = 0; scanned = 0; written = 0; until = 0; known = 0; known_left = 0; left = 0; early = 0; late = 0; gets = 0;
        bury = false; busy = false; again = false; claimed = false; announced = false;
        moved = false; won = false; passed = false; put_back = false
    }
}

proctype mortal_producer(byte me; byte puts)
{
    PRODUCER_VARIABLES;
    {
        do
        :: puts == 0 -> break
        :: else -> put()
        od;
leave:
        skip
    } unless {
        dead[me]
    };
    atomic {
        producers_left--;
        asleep[me] = false; watching[me] = false;
        t = 0; h = 0; w = 0; early = 0; late = 0; puts = 0;
        claimed = false; moved = false; won = false; crowded = false; busy = false; slept = false
    }
}

active proctype killer()
{
#if KILL == 1
    dead[0] = true
#elif KILL == 2
    dead[2] = true
#else
    if
    :: dead[0] = true; dead[2] = true
    :: dead[2] = true; dead[0] = true
    fi
#endif
}
#endif

init
{
    atomic {
#if defined(KILL) && KILL != 2
        run mortal_producer(0, FIRST_PUTS);
#else
        run producer(0, FIRST_PUTS);
#endif
#if SECOND_PUTS > 0
        run producer(1, SECOND_PUTS);
#endif
#if defined(KILL) && KILL > 1
        run mortal_consumer(2);
#else
        run consumer(2);
#endif
#if CONSUMERS > 1
        run consumer(3)
#endif
    }
}
