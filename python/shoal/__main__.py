"""`python -m shoal [-m MODULE | -c CODE | SCRIPT | -] ARGS…`: run a program on Shoal, as python itself would run it."""

from __future__ import annotations

import os
import sys
from types import CodeType, ModuleType

_USAGE = """\
usage: python -m shoal [-m MODULE | -c CODE | SCRIPT | -] ARGS...
       python -m shoal cache COMMAND DIR

Run a Python program with multiprocessing and joblib on Shoal.

  SCRIPT      a file, as `python SCRIPT` would run it
  -m MODULE   a module, as `python -m MODULE` would
  -c CODE     code, as `python -c CODE` would
  -           what is read from standard input, as `python -` would
  cache       look after a cache of joblib's Memory: ls, stat, verify, prune, rm (a script of that name: ./cache)
  -h, --help  show this
  --version   show Shoal's version
"""


def _new_main(file: str | None) -> ModuleType:
    """A `__main__` for the program: ours stays as it is, and out of sight."""
    module = ModuleType("__main__")
    module.__builtins__ = __builtins__  # type: ignore[attr-defined]
    if file is not None:
        module.__file__ = file
    sys.modules["__main__"] = module
    sys.modules["__mp_main__"] = module
    return module


def _run_code(code: CodeType, module: ModuleType) -> None:
    exec(code, module.__dict__)


def _run_by_runpy(path: str) -> None:
    import runpy

    sys.path.pop(0)
    runpy.run_path(path, run_name="__main__")


def _run_script(path: str, arguments: list[str]) -> None:
    sys.argv[:] = [path, *arguments]
    if os.path.isdir(path):
        _run_by_runpy(path)
        return
    try:
        with open(path, "rb") as file:
            source = file.read()
    except OSError as error:
        print(f"python -m shoal: can't open file {path!r}: {error.strerror}", file=sys.stderr)
        raise SystemExit(2) from None
    if b"\0" in source:  # compiled, or a zip file with a __main__
        _run_by_runpy(path)
        return
    sys.path[0] = os.path.dirname(os.path.realpath(path))
    module = _new_main(path)
    _run_code(compile(source, path, "exec"), module)


def _run_module(name: str, arguments: list[str]) -> None:
    import runpy

    sys.argv[:] = [name, *arguments]
    # runpy's own way of `python -m`: the module becomes __main__ itself, with its spec, as spawned children expect.
    runpy._run_module_as_main(name, alter_argv=True)  # type: ignore[attr-defined]


def main() -> None:
    """Entry point."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_USAGE, end="")
        raise SystemExit(0 if arguments else 2)
    if arguments[0] == "cache":
        from shoal import _cache_command

        _cache_command.run_command(arguments[1:])
    import shoal

    if arguments[0] == "--version":
        print(f"shoal {shoal.__version__}")
        return
    option = arguments[0]
    if option in ("-m", "-c") and len(arguments) < 2:
        print(f"python -m shoal: argument expected for the {option} option", file=sys.stderr)
        raise SystemExit(2)
    if option.startswith("-") and option not in ("-", "-m", "-c"):
        print(f"python -m shoal: unknown option {option}\n{_USAGE}", end="", file=sys.stderr)
        raise SystemExit(2)
    shoal.install()
    if option == "-m":
        _run_module(arguments[1], arguments[2:])
    elif option == "-c":
        sys.argv[:] = ["-c", *arguments[2:]]
        sys.path[0] = ""
        _run_code(compile(arguments[1], "<string>", "exec"), _new_main(None))
    elif option == "-":
        sys.argv[:] = arguments
        sys.path[0] = ""
        _run_code(compile(sys.stdin.buffer.read(), "<stdin>", "exec"), _new_main(None))
    else:
        _run_script(option, arguments[1:])


if __name__ == "__main__":
    main()
