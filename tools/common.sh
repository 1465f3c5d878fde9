# Sourced by the scripts beside it: goes to the top of the source tree and knows which environment is in use.
#
#   VENV    the virtual environment that the package is installed into   (.venv)
#   BUILD   the build folder                                             (build/release)
#   PYTHON  the interpreter to make a new environment with               (the first of CPython 3.10 to 3.13 on PATH)

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

TOP=$PWD
VENV=${VENV:-.venv}
VENV=${VENV#"$TOP/"}
BUILD=${BUILD:-build/release}

say() {
    printf '== %s\n' "$*"
}

fail() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

# The path of an interpreter's real binary, where it is a CPython that Shoal supports and that runs; nothing otherwise.
# (A version manager's stand-in may be on PATH and refuse to run.)
real_python() {
    "$1" -c '
import platform, sys
if platform.python_implementation() == "CPython" and (3, 10) <= sys.version_info[:2] <= (3, 13):
    print(sys.executable)' 2>/dev/null </dev/null || true
}

python_has_headers() {
    "$1" -c '
import pathlib, sys, sysconfig
sys.exit(not pathlib.Path(sysconfig.get_path("include"), "Python.h").exists())' </dev/null
}
