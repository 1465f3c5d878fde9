#!/usr/bin/env bash
# The engine's tests under AddressSanitizer + UndefinedBehaviorSanitizer, then under ThreadSanitizer (where threads share).
. "$(dirname "$0")/common.sh"

export PATH=$TOP/$VENV/bin:$PATH
status=0
run() { # folder sanitizers suites…
    local folder=build/$1 sanitizers=$2
    shift 2
    [ -d "$folder" ] || meson setup "$folder" -Dpython=false -Dtests=true -Dbuildtype=debugoptimized \
        -Db_sanitize="$sanitizers" -Db_lundef=false >/dev/null
    meson compile -C "$folder" >"$folder/build.log" 2>&1 || { cat "$folder/build.log" && return 1; }
    meson test -C "$folder" --no-rebuild --print-errorlogs --timeout-multiplier 4 "$@"
}
say "engine tests under ASan and UBSan"
ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1 run asan address,undefined || status=1
say "engine tests under TSan"
# A child of a fork may start threads: the thread team makes its own there, and says so.
TSAN_OPTIONS=halt_on_error=1:die_after_fork=0 run tsan thread --suite threads || status=1
exit $status
