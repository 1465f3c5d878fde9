#!/bin/sh
# Fuzz the parser of store entries: run_fuzz_entry.sh [SECONDS [CORPUS]], 60 seconds by default. Needs clang.
# It begins from tests/fuzz/corpus (which is only read) and some entries that the engine makes. CORPUS is a folder that
# keeps what else the fuzzer found interesting; without it nothing is kept.
set -eu
seconds=${1:-60}
root=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
corpus=${2:-$work/corpus}
mkdir -p "$corpus"
corpus=$(cd "$corpus" && pwd)
flags="-std=gnu17 -g -O1 -D_GNU_SOURCE -I$root/include -I$root/engine"
libraries="-lzstd -llz4 -lpthread"
engine="$root/engine/store/entry.c $root/engine/store/hash.c $root/engine/store/compress.c $root/engine/base/cpu.c"
# shellcheck disable=SC2086
clang $flags "$root"/tests/fuzz/make_entries.c "$root"/engine/store/*.c "$root"/engine/base/*.c $libraries \
    -o "$work/make_entries"
seeds=$("$work/make_entries" "$work/store")
# shellcheck disable=SC2086
clang $flags -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined \
    "$root/tests/fuzz/fuzz_entry.c" $engine $libraries -o "$work/fuzz_entry"
cd "$work"
"$work/fuzz_entry" -max_total_time="$seconds" -max_len=80000 -print_final_stats=1 -verbosity=0 "$corpus" "$seeds" \
    "$root/tests/fuzz/corpus"
echo "fuzz_entry: $seconds seconds without a finding"
