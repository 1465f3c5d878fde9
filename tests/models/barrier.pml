/* barrier.pml: engine/sync/barrier.c: PROCESSES come TURNS times each to a barrier of two parties. No deaths here: what
 * is proved is that the slots alone decide whether a round is complete.
 *
 * A slot: `who` (0: free) and the round that it is, or was last, claimed for; both change in one step. The state is the
 * round; sleeping is left out, a party waits until the state or a slot is another one.
 *
 * Proved: nobody goes on before both parties of its round have come, each round lets two go, and all come through. The
 * mutations must be found: see run.sh.
 */
#ifndef PROCESSES
#define PROCESSES 2
#endif
#ifndef TURNS
#define TURNS 3
#endif

byte round = 1;
byte who[2];
byte used[2];
byte entered, passed;

#ifdef MUTATION_FREE_SLOTS_FORGET
#define CLAIMABLE(i, r) (who[i] == 0)
#else
#define CLAIMABLE(i, r) (who[i] == 0 && used[i] != r)
#endif

proctype party(byte me)
{
    byte turns, seen, slot;
    bool all;
    do
    :: turns == TURNS -> break
    :: else ->
        entered++;
again:
        seen = round;
        if
        :: atomic { CLAIMABLE(0, seen) -> who[0] = me; used[0] = seen; slot = 0 }
        :: atomic { CLAIMABLE(1, seen) -> who[1] = me; used[1] = seen; slot = 1 }
        :: round != seen -> goto again
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
        :: atomic { all && round == seen -> round++ }
        :: else
        fi;
        all = false;
        round != seen; /* await() */
        d_step {
            passed++;
            assert(entered >= 2 * ((passed + 1) / 2))
        }
        /* leave() */
        who[slot] = 0;
        seen = 0; slot = 0;
        turns++
    od
}

init {
    atomic {
        byte i;
        for (i : 1 .. PROCESSES) {
            run party(i)
        }
    }
}
