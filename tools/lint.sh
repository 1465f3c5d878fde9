#!/usr/bin/env bash
# Look at the source: formatting, clang-tidy, cppcheck, ruff, mypy. Prints what it finds; fails if there is anything.
. "$(dirname "$0")/common.sh"

export PATH=$TOP/$VENV/bin:$PATH
status=0
check() { # name command…
    local name=$1
    shift
    if "$@" >"$BUILD/lint.log" 2>&1; then
        say "$name: clean"
    else
        say "$name:"
        cat "$BUILD/lint.log"
        status=1
    fi
}

mapfile -t c_files < <(git ls-files '*.c' '*.h')
mapfile -t engine_files < <(git ls-files 'engine/*.c')
check clang-format clang-format --dry-run -Werror "${c_files[@]}"
check clang-tidy tools/tidy.sh "$BUILD" "${engine_files[@]}"
check cppcheck cppcheck --quiet --error-exitcode=1 --std=c11 --enable=warning,performance,portability \
    --inline-suppr --suppress=missingIncludeSystem --suppress=normalCheckLevelMaxBranches \
    -D_GNU_SOURCE -D__x86_64__ -Iinclude -Iengine engine
check "ruff check" ruff check .
check "ruff format" ruff format --check .
check mypy mypy
exit $status
