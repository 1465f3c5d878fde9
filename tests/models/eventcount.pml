/* eventcount.pml: engine/sync/eventcount.c with what its users do around it: WAITERS wait for a unit each, and two
 * releasers (or one) make as many.
 *
 * `word` is the eventcount: bit 0 says that somebody may sleep, the rest counts notifications (here up to 7: there are
 * fewer). The kernel's side is one step each: compare the word and fall asleep; wake any one sleeper.
 *
 * KILL kills one waiter at any step, also one that was just woken. SLICES lets sleeps end by themselves when nothing
 * else can happen, as all sleeps do where a waiter may be killed; three at most for each waiter.
 *
 * Proved: no end state in which a live waiter still sleeps (an invalid end state, to spin), so no wake is lost; without
 * KILL also without SLICES. The mutations, one -D each, must be found: see run.sh.
 */
#ifndef WAITERS
#define WAITERS 3
#endif

byte word;
byte free;
bool asleep[WAITERS];
bool dead[WAITERS];

inline wake_one()
{
    if
    :: asleep[0] -> asleep[0] = false
#if WAITERS > 1
    :: asleep[1] -> asleep[1] = false
#endif
#if WAITERS > 2
    :: asleep[2] -> asleep[2] = false
#endif
    :: else
    fi
}

inline notify_one(seen_word)
{
    seen_word = word;
    do
    :: (seen_word & 1) == 0 -> break
    :: else ->
        if
#ifdef MUTATION_NO_COUNT /* the word is as it was once the next waiter sets the bit */
        :: atomic { word == seen_word -> word = word & 14 }
#else
        :: atomic { word == seen_word -> word = (word & 14) + 2 }
#endif
            atomic { wake_one() }
            break
        :: else -> seen_word = word
        fi
    od;
    seen_word = 0
}

proctype waiter(byte me)
{
    byte seen, w, slices;
    bool slept;
    {
        skip;
again:
#ifdef MUTATION_LOOK_BEFORE_ANNOUNCING
        if
        :: atomic { free > 0 -> free-- } goto have
        :: else
        fi;
        atomic { word = word | 1; seen = word };
#else
        atomic { word = word | 1; seen = word };
        if
        :: atomic { free > 0 -> free-- } goto have
        :: else
        fi;
#endif
        if
        :: atomic { word == seen -> asleep[me] = true; slept = true }
            if
            :: !asleep[me]
#ifdef SLICES
            :: atomic { timeout && slices < 3 -> slices++; asleep[me] = false }
#endif
            fi
        :: else
        fi;
        seen = 0;
#ifndef MUTATION_BIT_LEFT_CLEARED
        /* eventcount_wait: who woke us cleared the bit, and others may sleep on */
        if
        :: (word & 1) == 0 -> word = word | 1
        :: else
        fi;
#endif
        if
        :: atomic { free > 0 -> free-- } goto have
        :: else -> goto again
        fi;
have:
#ifndef MUTATION_WAKE_NOT_PASSED_ON
        if
        :: slept && free > 0 -> notify_one(w)
        :: else
        fi;
#endif
        slept = false; slices = 0
    } unless {
        atomic { dead[me] -> asleep[me] = false; seen = 0; w = 0; slices = 0; slept = false }
    }
}

proctype releaser(byte count)
{
    byte w;
    do
    :: count == 0 -> break
    :: else ->
        count--;
#ifdef MUTATION_NOTIFY_BEFORE_PUBLISHING
        notify_one(w);
        free++
#else
        free++;
        notify_one(w)
#endif
    od
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
        for (i : 0 .. WAITERS - 1) {
            run waiter(i)
        }
#ifdef ONE_RELEASER
        run releaser(WAITERS)
#else
        run releaser(WAITERS - 1);
        run releaser(1)
#endif
    }
}
