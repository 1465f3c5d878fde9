/* lock.pml: engine/sync/lock.c: PROCESSES take the lock TURNS times each; one may be killed at any step.
 *
 * `word` is the lock's: 0, or the owner (1 and up), plus DIED when the owner was found dead. `ec` is the eventcount that
 * the waiters sleep on, as proved in eventcount.pml (where its look and the setting of its bit are two steps). A sleep that ends by itself (SLICES) is followed
 * by a look whether the owner lives; look and mark are two steps, between which anything may happen.
 * ROBUST gives the lock of a dead owner to the next; without it, acquirers fail and end.
 *
 * Proved: two live processes never hold the lock at once; a live owner is never marked dead; no end state in which a
 * live process still waits. The mutations, one -D each, must be found: see run.sh.
 */
#ifndef PROCESSES
#define PROCESSES 3
#endif
#ifndef TURNS
#define TURNS 2
#endif
/* Slices a process may have: EARLY ones end at any time, LATE ones when nothing else can happen. If the protocol needed
 * more, or if looking again did not help, the waiters would be stuck. */
#ifndef EARLY
#define EARLY 1
#endif
#ifndef LATE
#define LATE 2
#endif
#define DIED 16

byte word;
byte ec;
bool asleep[PROCESSES];
bool dead[PROCESSES];
bool inside[PROCESSES];

inline check_alone()
{
    assert((inside[0] && !dead[0]) + (inside[1] && !dead[1])
#if PROCESSES > 2
           + (inside[2] && !dead[2])
#endif
           <= 1)
}

inline wake(all)
{
    if
    :: all -> asleep[0] = false; asleep[1] = false;
#if PROCESSES > 2
        asleep[2] = false
#endif
    :: else ->
        if
        :: asleep[0] -> asleep[0] = false
        :: asleep[1] -> asleep[1] = false
#if PROCESSES > 2
        :: asleep[2] -> asleep[2] = false
#endif
        :: else
        fi
    fi
}

inline notify(all)
{
    w = ec;
    do
    :: (w & 1) == 0 -> break
    :: else ->
        if
        :: atomic { ec == w -> ec = ((ec & 30) + 2) & 31 }
            atomic { wake(all) }
            break
        :: else -> w = ec
        fi
    od;
    w = 0
}

/* Take the lock if that is possible now: `taken`; or `failed`, where its owner died. */
inline attempt()
{
#ifdef MUTATION_NAME_WRITTEN_LATER
    if
    :: atomic { word == 0 -> word = 15 } /* taken by nobody known */
        word = me + 1;
        taken = true
#else
    if
    :: atomic { word == 0 -> word = me + 1; taken = true }
#endif
#ifdef ROBUST
    :: atomic { word >= DIED -> word = me + 1; taken = true }
#else
    :: word >= DIED -> failed = true
#endif
    :: else
    fi
}

proctype process(byte me)
{
    byte seen, w, behind, turns, early, late;
    bool taken, failed;
    {
        do
        :: turns == TURNS -> break
        :: else ->
            attempt();
            do
            :: taken || failed -> break
            :: else ->
                atomic { ec = ec | 1; seen = ec };
                attempt();
                if
                :: taken || failed -> break
                :: else
                fi;
                behind = word;
                if
                :: atomic { ec == seen -> asleep[me] = true }
                    if
                    :: !asleep[me] -> ec = ec | 1
#ifdef SLICES
                    :: atomic { timeout && late < LATE -> late++; asleep[me] = false }
                        goto slice_over
                    :: atomic { early < EARLY -> early++; asleep[me] = false };
slice_over:
                        ec = ec | 1;
#ifndef MUTATION_NOBODY_LOOKS
                        if
                        :: behind > 0 && behind < 15 && word == behind ->
                            if
                            :: dead[behind - 1] ->
#ifdef MUTATION_MARK_BY_STORE
                                word = behind + DIED;
                                notify(true)
#else
                                if
                                :: atomic { word == behind -> word = behind + DIED }
                                    notify(true)
                                :: else
                                fi
#endif
                            :: else
                            fi
                        :: else
                        fi
#endif
#endif
                    fi
                :: else
                fi;
                behind = 0; seen = 0
            od;
            seen = 0; behind = 0;
            if
            :: failed -> break
            :: else
            fi;
            inside[me] = true;
            check_alone();
            assert(word == me + 1);
            inside[me] = false;
            taken = false;
            turns++;
            /* the release */
            word = 0;
#ifndef MUTATION_NO_WAKE
            notify(false)
#endif
        od
    } unless {
        atomic { dead[me] -> asleep[me] = false; seen = 0; w = 0; behind = 0; turns = 0; early = 0; late = 0; taken = false; failed = false }
    }
}

#ifdef KILL
active proctype killer()
{
    if
    :: dead[0] = true
    :: skip
    fi
}
#endif

init {
    atomic {
        byte i;
        for (i : 0 .. PROCESSES - 1) {
            run process(i)
        }
    }
}
