#!/usr/bin/env bash
# Check the models of this folder exhaustively, and that the mutations are found. Needs spin and a C compiler.
# A check a core at a time; with FULL=1, larger cases too, some minutes more. Prints a line a check; fails if one went
# another way than it must.
set -euo pipefail
cd "$(dirname "$0")"
command -v spin >/dev/null || { echo "please install spin (apt-get install spin)" >&2; exit 1; }

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
models=$PWD

check() { # sound|found model definitions…
    while [ "$(jobs -rp | wc -l)" -ge "$(nproc)" ]; do
        wait -n || true
    done
    look "$(mktemp -d -p "$folder")" "$@" &
}

look() { # folder sound|found model definitions…
    local here=$1 expected=$2 model=$3 definitions=() result=unfinished name
    shift 3
    for name in "$@"; do
        definitions+=("-D$name")
    done
    # To optimize takes longer than a mutation is looked for.
    local optimize=-O1
    [ "$expected" = sound ] || optimize=-O0
    if ! (cd "$here" && spin "${definitions[@]}" -a "$models/$model.pml" >spin.log 2>&1 &&
        "${CC:-cc}" "$optimize" -w -DSAFETY -DCOLLAPSE -DNOFAIR -DMEMLIM=3000 -o pan pan.c &&
        timeout 600 ./pan -m1000000 -w24 >pan.log 2>&1); then
        cat "$here"/*.log
    elif grep -q "errors: 0" "$here/pan.log" && ! grep -qE "max search depth too small|reached -DMEMLIM" "$here/pan.log"; then
        result=sound
    elif grep -qE "errors: [1-9]" "$here/pan.log"; then
        result=found
    fi
    printf '%-10s %-10s %-60s %s states\n' "$result" "$model" "$*" \
        "$(awk '/states, stored/ {print $1; exit}' "$here/pan.log" || true)"
    if [ "$result" != "$expected" ]; then
        echo "    expected of $model $*: $expected" >&2
        sed -n 1,5p "$here/pan.log" >&2
        echo "$model $*" >>"$folder/failed"
    fi
    rm -rf "$here"
}

echo "== as in the engine"
check sound eventcount WAITERS=2
check sound eventcount ONE_RELEASER
check sound eventcount WAITERS=2 KILL SLICES
check sound eventcount ONE_RELEASER KILL SLICES
check sound lock
check sound lock KILL SLICES TURNS=1
check sound lock KILL SLICES PROCESSES=2
check sound lock KILL SLICES ROBUST TURNS=1
check sound lock KILL SLICES ROBUST PROCESSES=2
check sound pool
check sound pool KILL
check sound pool LIMIT
check sound pool KILL SLOTS=2
check sound barrier TURNS=4
check sound barrier PROCESSES=3 TURNS=2
check sound barrier KILL PROCESSES=3 TURNS=2
check sound queue
check sound queue CAPACITY=1 CONSUMERS=1 SECOND_PUTS=2
check sound queue FIRST_PUTS=2 CONSUMERS=1 SCANNED ORDERED
check sound queue FIRST_PUTS=2 SECOND_PUTS=0 SCANNED TOO_LARGE
check sound queue GETS=1
check sound queue KILL=1 SLICES CAPACITY=1 CONSUMERS=1 SECOND_PUTS=2
check sound queue KILL=1 SLICES EARLY=1 CONSUMERS=1 SECOND_PUTS=2
check sound queue KILL=2 SLICES CAPACITY=1 FIRST_PUTS=2 SECOND_PUTS=0
check sound queue KILL=2 SLICES EARLY=1 SECOND_PUTS=0
check sound queue KILL=3 SLICES CAPACITY=1 CONSUMERS=1
check sound segment
check sound segment PRODUCERS=2 LAST_PUTS=4
if [ -n "${FULL:-}" ]; then
    check sound queue CAPACITY=1
    check sound queue KILL=2 SLICES
    check sound queue KILL=2 SLICES FIRST_PUTS=2 SECOND_PUTS=0 SCANNED TOO_LARGE
    check sound barrier PROCESSES=4 TURNS=1
    check sound eventcount
    check sound eventcount KILL SLICES
    check sound lock KILL SLICES
    check sound lock KILL SLICES ROBUST
fi

wait
echo "== mutations, each of which must be found"
check found eventcount MUTATION_LOOK_BEFORE_ANNOUNCING
check found eventcount MUTATION_NOTIFY_BEFORE_PUBLISHING
check found eventcount MUTATION_NO_COUNT
check found eventcount MUTATION_BIT_LEFT_CLEARED
check found eventcount MUTATION_WAKE_NOT_PASSED_ON
check found eventcount KILL # a killed waiter takes its wake along, where sleeps have no end
check found lock MUTATION_NO_WAKE
check found lock KILL SLICES TURNS=1 MUTATION_NOBODY_LOOKS
check found lock KILL SLICES TURNS=1 MUTATION_NAME_WRITTEN_LATER
check found lock KILL SLICES ROBUST TURNS=1 MUTATION_MARK_BY_STORE
check found lock KILL TURNS=1 # without slices nobody notices the death
check found pool KILL MUTATION_OWNER_NAMED_LATER
check found pool KILL MUTATION_ONLY_THE_CLAIMER_MOVES_THE_HEAD
check found pool KILL MUTATION_COUNTED_BEFORE_WRITTEN
check found pool KILL MUTATION_DONE_SLOTS_NOT_LISTED
check found pool LIMIT MUTATION_TIME_READ_ONCE
check found pool LIMIT MUTATION_TIME_LEFT_STANDING
check found barrier MUTATION_FREE_SLOTS_FORGET
check found barrier MUTATION_OWN_SLOT_ONLY
check found barrier PROCESSES=3 TURNS=2 MUTATION_STATE_BEFORE_SLOT
check found barrier KILL PROCESSES=3 TURNS=2 MUTATION_DEATH_JUDGED_BY_AN_OLD_STATE
check found queue MUTATION_HEAD_PASSES_WHAT_IS_READ
check found queue GETS=1 MUTATION_WAKE_NOT_PASSED_ON
check found queue CONSUMERS=1 MUTATION_NO_WAKE_FOR_ITEMS
check found queue CONSUMERS=1 MUTATION_FULL_BEFORE_GIVEN
check found queue CONSUMERS=1 MUTATION_DONE_BEFORE_TAKEN_OVER
check found queue CONSUMERS=1 CAPACITY=1 MUTATION_NO_WAKE_FOR_SPACE
check found queue CONSUMERS=1 CAPACITY=1 MUTATION_ROOM_SEEN_BEFORE_THE_TAIL
check found queue FIRST_PUTS=2 CONSUMERS=1 SCANNED ORDERED MUTATION_WRITTEN_ONES_PASSED
check found queue KILL=1 SLICES CONSUMERS=1 MUTATION_ONLY_THE_CLAIMER_MOVES_THE_TAIL
check found queue KILL=1 SLICES CONSUMERS=1 MUTATION_DROPPED_AT_ONCE
check found queue KILL=2 SLICES CAPACITY=1 FIRST_PUTS=2 SECOND_PUTS=0 MUTATION_ONLY_THE_TAKER_MOVES_THE_HEAD
check found queue KILL=2 SLICES CAPACITY=1 FIRST_PUTS=2 SECOND_PUTS=0 MUTATION_SETTLED_BY_STORE
check found queue KILL=2 SLICES CAPACITY=1 FIRST_PUTS=2 SECOND_PUTS=0 MUTATION_FULL_BEFORE_GIVEN_BACK
check found queue KILL=2 SLICES SECOND_PUTS=0 MUTATION_NOBODY_ASKS
check found queue KILL=2 SECOND_PUTS=0 # without slices nobody notices the death
check found queue KILL=3 SLICES CAPACITY=1 CONSUMERS=1 MUTATION_DROPPING_IS_NOT_HELD
check found segment MUTATION_IN_USE_TAKEN_FOR_TOO_LATE
check found segment MUTATION_CLAIMS_IN_LATE_SEGMENTS_COUNT
wait
if [ -e "$folder/failed" ]; then
    echo "otherwise than they must:" >&2
    cat "$folder/failed" >&2
    exit 1
fi
