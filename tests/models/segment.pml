/* segment.pml: engine/queue/segment.c: where the positions of a queue lie, and when that memory is used again.
 *
 * PRODUCERS put an item each, the last one LAST_PUTS; one consumer takes them. Segments have two slots here; `directory`
 * says which segment a number has (0: none yet, or no longer), `spare` which segments are on the free list. A slot's
 * word is its position, owner and state. Each read and each compare-and-swap is a step of its own.
 *
 * A producer that was stopped between its look at the tail and its naming of a segment names one for positions that are
 * over: the segment comes too late, holds nothing, and is taken back; whoever claims a slot in it meanwhile must see
 * that. What must not be taken for that is a segment in use.
 *
 * Proved: each item is taken; a segment goes back only when none of its slots holds an item or is being read; nobody
 * writes into a slot that is not its own. The mutations must be found: see run.sh.
 */
#ifndef PRODUCERS
#define PRODUCERS 3
#endif
#ifndef LAST_PUTS
#define LAST_PUTS 2
#endif
#define ITEMS (PRODUCERS - 1 + LAST_PUTS)
#define SLOTS 2
#define SEGMENTS 4
#define NUMBERS 3 /* of segments that the positions may reach */
#define NUMBER(p) ((p) / SLOTS)
#define SLOT(entry, p) (((entry) - 1) * SLOTS + (p) % SLOTS)

#define FREE 0
#define WRITING 1
#define FULL 2
#define READING 3
#define DONE 4
#define STATE(w) ((w) & 7)
#define POSITION(w) ((w) >> 6)
#define WORD(p, owner, state) ((p) << 6 | (owner) << 3 | (state))

short word[SEGMENTS * SLOTS];
byte directory[NUMBERS];
bool used[SEGMENTS]; /* not on the free list */
byte head, tail;
byte filled, taken; /* for the proof and the consumer's sleep */

inline check_idle(index)
{
    assert(STATE(word[(index) * SLOTS]) != FULL && STATE(word[(index) * SLOTS]) != READING);
    assert(STATE(word[(index) * SLOTS + 1]) != FULL && STATE(word[(index) * SLOTS + 1]) != READING)
}

/* The entry is read, then taken out by compare-and-swap; only who took it out gives the segment back. */
inline retire(number)
{
    found = directory[number];
    if
    :: found != 0 ->
        atomic {
            if
            :: directory[number] == found -> directory[number] = 0; won = true
            :: else
            fi
        };
        if
        :: won -> atomic { won = false; check_idle(found - 1); used[found - 1] = false }
        :: else
        fi
    :: else
    fi;
    found = 0
}

inline provide()
{
    if
    :: directory[NUMBER(at)] == 0 ->
        atomic {
            mine = 0;
            do
            :: used[mine] -> mine++
            :: else -> break
            od;
            assert(mine < SEGMENTS);
            used[mine] = true;
            check_idle(mine);
            word[mine * SLOTS] = WORD(NUMBER(at) * SLOTS, 0, FREE);
            word[mine * SLOTS + 1] = WORD(NUMBER(at) * SLOTS + 1, 0, FREE)
        };
        atomic {
            if
            :: directory[NUMBER(at)] == 0 -> directory[NUMBER(at)] = mine + 1; won = true
            :: else -> used[mine] = false
            fi;
            mine = 0
        };
        if
        :: won ->
            won = false;
            if
#ifdef MUTATION_IN_USE_TAKEN_FOR_TOO_LATE
            :: head > at -> retire(NUMBER(at))
#else
            :: head >= (NUMBER(at) + 1) * SLOTS -> retire(NUMBER(at))
#endif
            :: else
            fi
        :: else
        fi
    :: else
    fi
}

inline put()
{
    do
    :: at = tail;
        entry = directory[NUMBER(at)];
        if
        :: entry == 0 ->
            if
            :: tail == at -> provide()
            :: else
            fi
        :: else ->
            atomic {
                seen = word[SLOT(entry, at)];
                if
                :: seen == WORD(at, 0, FREE) -> word[SLOT(entry, at)] = WORD(at, me, WRITING); claimed = true
                :: else
                fi
            };
            if
            :: claimed || POSITION(seen) == at ->
                atomic {
                    if
                    :: tail == at -> tail++
                    :: else
                    fi
                }
            :: else
            fi;
            seen = 0;
            if
#ifdef MUTATION_CLAIMS_IN_LATE_SEGMENTS_COUNT
            :: claimed -> break
#else
            :: claimed ->
                claimed = false;
                if
                :: head > at
                :: else -> break
                fi
#endif
            :: else
            fi
        fi
    od;
    atomic {
        claimed = false;
        assert(word[SLOT(entry, at)] == WORD(at, me, WRITING));
        word[SLOT(entry, at)] = WORD(at, 0, FULL);
        filled++
    };
    atomic { at = 0; entry = 0 }
}

inline advance_head()
{
    do
    :: at = head;
        if
        :: at >= tail -> break
        :: else
        fi;
        entry = directory[NUMBER(at)];
        if
        :: entry == 0 ->
            if
            :: head == at -> break
            :: else
            fi
        :: else ->
            seen = word[SLOT(entry, at)];
            if
            :: POSITION(seen) == at && STATE(seen) != DONE -> break
            :: else
            fi;
            atomic {
                if
                :: head == at -> head++; moved = true
                :: else
                fi
            };
            if
            :: moved && (at + 1) % SLOTS == 0 -> moved = false; retire(NUMBER(at))
            :: else -> moved = false
            fi
        fi
    od;
    seen = 0
}

active [PRODUCERS] proctype producer()
{
    byte me = _pid + 1, at, entry, mine, found, puts;
    short seen;
    bool won, claimed;
    do
    :: puts < (_pid == PRODUCERS - 1 -> LAST_PUTS : 1) -> put(); puts++
    :: else -> break
    od
}

active proctype consumer()
{
    byte at, entry, found, last, before;
    short seen;
    bool won, moved, claimed;
    do
    :: taken == ITEMS -> break
    :: else ->
        before = filled;
        at = head;
        last = tail;
        do
        :: at >= last || claimed -> break
        :: else ->
            entry = directory[NUMBER(at)];
            if
            :: entry != 0 ->
                atomic {
                    if
                    :: word[SLOT(entry, at)] == WORD(at, 0, FULL) ->
                        word[SLOT(entry, at)] = WORD(at, 7, READING);
                        claimed = true
                    :: else -> at++
                    fi
                }
            :: else -> at++
            fi
        od;
        if
        :: claimed ->
            atomic {
                claimed = false;
                assert(word[SLOT(entry, at)] == WORD(at, 7, READING));
                word[SLOT(entry, at)] = WORD(at, 0, DONE);
                taken++
            };
            advance_head()
        :: else ->
            at = 0;
            entry = 0;
            filled > before /* sleeps: a put that it has not looked for must come */
        fi;
        atomic { at = 0; entry = 0; last = 0; before = 0 }
    od
}
