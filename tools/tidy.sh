#!/usr/bin/env bash
# clang-tidy over the engine's files, as they are compiled in the build folder $1. It counts what it does not show on stderr: dropped.
exec clang-tidy -quiet -p "$1" "${@:2}" 2>/dev/null
