/* barrier.pml: engine/sync/barrier.c: PROCESSES come TURNS times each to a barrier of two parties. With KILL, any one
 * of them dies, anywhere.
 *
 * A slot: `who` (0: free) and the round that it is, or was last, claimed for; both are one word. The state is the round
 * and whether it is broken, which here is for good; sleeping is left out, a party waits until the state or a slot is
 * another one. Whether a process lives is asked by those in need of a slot and by those that wait for the other party.
 *
 * Proved: nobody goes on before both parties of its round have come, each round lets two go, all come through, and
 * where one dies all others come through or find the barrier broken. The mutations must be found: see run.sh.
 */
#ifndef PROCESSES
#define PROCESSES 2
#endif
#ifndef TURNS
#define TURNS 3
#endif

byte round = 1;
bool broken;
byte who[2];
byte used[2];
byte entered, passed;
bool dead[PROCESSES + 1], inside[PROCESSES + 1];
byte within;
byte victim;

/* A slot's word, then the state, each in a step of its own; the slot is taken later if its word is still that one. */
#ifdef MUTATION_STATE_BEFORE_SLOT
#define LOOK(i) seen = round; atomic { found = who[i]; last = used[i] }
#else
#define LOOK(i) atomic { found = who[i]; last = used[i] }; seen = round
#endif

#ifdef MUTATION_FREE_SLOTS_FORGET
#define WORTH_A_LOOK(i) (who[i] == 0 || dead[who[i]])
#define CLAIMABLE(i) (found == 0 && who[i] == 0)
#else
#define WORTH_A_LOOK(i) ((who[i] == 0 && used[i] != round) || dead[who[i]])
#define CLAIMABLE(i) (found == 0 && last != seen && who[i] == 0 && used[i] == last)
#endif

proctype party(byte me)
{
    byte turns, seen, slot, found, last;
    bool all;
    {
    do
    :: turns == TURNS -> break
    :: else ->
        d_step { entered++; within++; inside[me] = true }
again:
        if
        :: broken -> goto out
        :: atomic { WORTH_A_LOOK(0) -> slot = 0 }
        :: atomic { WORTH_A_LOOK(1) -> slot = 1 }
        fi;
        LOOK(slot);
        if
        :: atomic { CLAIMABLE(slot) -> who[slot] = me; used[slot] = seen }
        :: else ->
#ifdef MUTATION_DEATH_JUDGED_BY_AN_OLD_STATE
            atomic { found = who[slot]; last = used[slot] }
#endif
            /* look_over_all(): the slot's word is still that of `found` and `last` where it is freed. */
            if
            :: found != 0 && dead[found] ->
                if
                :: last == seen -> atomic { if :: round == seen -> broken = true :: else fi }
                :: else -> atomic { if :: who[slot] == found && used[slot] == last -> who[slot] = 0 :: else fi }
                fi
            :: else
            fi;
            goto again
        fi;
#ifdef MUTATION_FREE_SLOTS_FORGET
        /* was the round over before the claim, or completed with it? This cannot be told, and either guess is wrong. */
        if
        :: round != seen -> who[slot] = 0; goto again
        :: else
        fi;
#endif
        /* complete(): one slot after the other, then the state */
#ifdef MUTATION_OWN_SLOT_ONLY
        all = true;
#else
        all = (who[0] != 0 && used[0] == seen);
#endif
        all = all && (who[1] != 0 && used[1] == seen);
        if
        :: atomic { all && round == seen && !broken -> round++ }
        :: else
        fi;
        all = false;
        /* await(): the neighbour's word, then whether it lives; the round is broken only if it is still that one */
        do
        :: round != seen -> break
        :: broken -> goto out
        :: atomic { who[1 - slot] != 0 && dead[who[1 - slot]] && used[1 - slot] == seen && round == seen ->
                    broken = true }
        :: timeout -> /* all others have come as often as they wanted to, or are dead: two that wait are a hang */
            assert(within == 1);
            goto out
        od;
        skip;
        d_step {
            passed++;
            within--; inside[me] = false;
            assert(entered >= 2 * ((passed + 1) / 2))
        }
        /* leave() */
        who[slot] = 0;
        seen = 0; slot = 0; found = 0; last = 0;
        turns++
    od;
out:
    skip;
    atomic { within = within - inside[me]; inside[me] = false } /* the wait was turned away */
    } unless {
        atomic { victim == me -> dead[me] = true; within = within - inside[me]; inside[me] = false }
    }
}

init {
    atomic {
        byte i;
        for (i : 1 .. PROCESSES) {
            run party(i)
        }
    }
#ifdef KILL
    select(victim : 1 .. PROCESSES) /* now, or later */
#endif
}
