#!/bin/sh
# Fuzz what reads the store's files: run_fuzz.sh [SECONDS [CORPUS]], 60 seconds by default, half for the parser of entries
# and half for the search for a shelf's records. Needs clang.
# It begins from tests/fuzz/corpus and corpus_shelf (which are only read) and some files that the engine makes. CORPUS is
# a folder that keeps what else the fuzzers found interesting, in two of its own; without it nothing is kept.
set -eu
seconds=${1:-60}
half=$(((seconds + 1) / 2))
root=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
corpus=${2:-$work/corpus}
mkdir -p "$corpus/entry" "$corpus/shelf"
corpus=$(cd "$corpus" && pwd)
flags="-std=gnu17 -g -O1 -D_GNU_SOURCE -I$root/include -I$root/engine"
libraries="-lzstd -llz4 -lpthread"
store=$root/engine/store
# What may use vectors that not every processor has is compiled apart, as by meson.
vectors=
[ "$(uname -m)" != x86_64 ] || vectors=-mavx2
# shellcheck disable=SC2086
clang $flags $vectors -c "$store/hash_avx2.c" -o "$work/hash_avx2.o"
entry="$store/entry.c $store/hash.c $work/hash_avx2.o $store/compress.c $root/engine/base/cpu.c $root/engine/base/thread.c"
others=$(find "$store" "$root/engine/base" -name '*.c' ! -name hash_avx2.c)
# shellcheck disable=SC2086
clang $flags "$root"/tests/fuzz/make_entries.c $others "$work/hash_avx2.o" $libraries -o "$work/make_entries"
"$work/make_entries" "$work/store"

fuzz() { # name corpus-in-the-repository largest-input sources…
    name=$1 known=$2 most=$3
    shift 3
    # shellcheck disable=SC2086
    clang $flags -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined \
        "$root/tests/fuzz/fuzz_$name.c" "$@" $libraries -o "$work/fuzz_$name"
    seeds=$work/store/$([ "$name" = shelf ] && echo shelf || echo files)
    (cd "$work" && "$work/fuzz_$name" -max_total_time="$half" -max_len="$most" -print_final_stats=1 -verbosity=0 \
        "$corpus/$name" "$seeds" "$root/tests/fuzz/$known")
    echo "fuzz_$name: $half seconds without a finding"
}
# shellcheck disable=SC2086
fuzz entry corpus 80000 $entry
# shellcheck disable=SC2086
fuzz shelf corpus_shelf 16384 $entry "$store/record.c" "$store/index.c"
