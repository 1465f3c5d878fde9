"""What a process finds around it when it starts: its standard input, and the program's main module."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from helpers import run_program
from shoal import _engine

METHODS = ["fork", "spawn", "forkserver"]


@pytest.mark.parametrize("method", METHODS)
def test_a_process_reads_nothing_from_standard_input(method: str, tmp_path: Path) -> None:
    done = run_program(
        tmp_path,
        f"""
        import os
        from shoal.multiprocessing import get_context

        def read(queue):
            import sys
            queue.put((sys.stdin.read(), sys.stdin.readable(), sys.stdin.isatty()))

        if __name__ == "__main__":
            context = get_context({method!r})
            queue = context.Queue()
            for turn in (1, 2):  # the second after the program closed what it did not open
                process = context.Process(target=read, args=(queue,))
                process.start()
                print(queue.get(timeout=30))
                process.join()
                process.close()
                del process, queue  # their descriptors are closed now, and not when they are other files'
                if {method!r} == "fork" and turn == 1:
                    os.closerange(3, 100)
                    with open(__file__):
                        others = [open(__file__) for _ in range(30)]
                queue = context.Queue()
            print(input())
        """,
        input="for the program\n",
    )
    assert done.stdout == "('', True, False)\n('', True, False)\nfor the program\n", done.stderr
    assert done.stderr == ""


@pytest.mark.parametrize("method", METHODS)
def test_processes_of_processes_read_nothing_either(method: str, tmp_path: Path) -> None:
    done = run_program(
        tmp_path,
        f"""
        import sys
        from shoal.multiprocessing import get_context

        def read(depth):
            print(depth, repr(sys.stdin.read()), flush=True)
            if depth == 1:
                sys.stdin.close()  # the next one has it open all the same
            if depth:
                process = get_context("fork").Process(target=read, args=(depth - 1,))
                process.start()
                process.join()

        if __name__ == "__main__":
            process = get_context({method!r}).Process(target=read, args=(3,))
            process.start()
            process.join()
            print(process.exitcode)
        """,
        input="for the program\n",
    )
    assert (done.stdout, done.stderr) == ("3 ''\n2 ''\n1 ''\n0 ''\n0\n", "")


def test_a_process_without_standard_input_gets_none(tmp_path: Path) -> None:
    done = run_program(
        tmp_path,
        """
        import sys
        from shoal.multiprocessing import get_context

        def tell():
            print(sys.stdin, flush=True)

        sys.stdin = None
        process = get_context("fork").Process(target=tell)
        process.start()
        process.join()
        """,
    )
    assert (done.stdout, done.stderr) == ("None\n", "")


@pytest.mark.parametrize("method", METHODS)
def test_what_a_program_put_around_the_start_of_processes_is_called(method: str, tmp_path: Path) -> None:
    """As coverage.py does it, to measure in the processes too."""
    done = run_program(
        tmp_path,
        f"""
        import multiprocessing.process
        from shoal.multiprocessing import get_context

        whole = multiprocessing.process.BaseProcess._bootstrap

        def around(self, *arguments, **keywords):
            print("before", flush=True)
            try:
                return whole(self, *arguments, **keywords)
            finally:
                print("after", flush=True)

        multiprocessing.process.BaseProcess._bootstrap = around

        def work():
            print("work", flush=True)

        if __name__ == "__main__":
            process = get_context({method!r}).Process(target=work)
            process.start()
            process.join()
        """,
    )
    assert (done.stdout, done.stderr) == ("before\nwork\nafter\n", "")


@pytest.mark.parametrize("module", ["multiprocessing", "shoal.multiprocessing"])
def test_the_main_module_of_a_clean_process_is_the_programs_file_as_it_is_now(module: str, tmp_path: Path) -> None:
    done = run_program(
        tmp_path,
        f"""
        import sys, os
        from {module} import get_context

        VERSION = 1

        def tell():
            main = sys.modules["__main__"]
            print(
                VERSION, __name__, main.__name__, main is sys.modules["__mp_main__"], os.path.basename(main.__file__),
                main.__spec__, main.__package__, main.__cached__, main.tell.__code__.co_filename == main.__file__,
                os.path.basename(sys.argv[0]), sys.argv[1:], annotated.__annotations__, flush=True,
            )

        def annotated(number: int) -> None: ...

        if __name__ == "__main__":
            context = get_context("spawn")
            for version in (1, 22):
                process = context.Process(target=tell)
                process.start()
                process.join()
                with open(__file__) as file:
                    source = file.read()
                with open(__file__, "w") as file:
                    file.write(source.replace(f"VERSION = {{version}}", "VERSION = 22"))
            with open(__file__, "w") as file:
                file.write("1 +")
            process = context.Process(target=tell)
            process.start()
            process.join()
            print(process.exitcode)
        """,
        "argument",
    )
    rest = (
        " __mp_main__ __mp_main__ True program.py None  None True program.py ['argument'] "
        "{'number': <class 'int'>, 'return': None}\n"
    )
    assert done.stdout == f"1{rest}22{rest}1\n", done.stderr
    assert "SyntaxError" in done.stderr and 'program.py", line 1' in done.stderr


def test_a_zygote_may_be_closed_while_it_is_handed_descriptors() -> None:
    class File:
        def fileno(self) -> int:
            zygote.close()
            files.clear()
            return 0

    ours, theirs = _engine.zygote_sockets()
    zygote = _engine.Zygote(ours, os.getpid())
    files = [File(), File()]
    with pytest.raises(BrokenPipeError, match="closed"):
        zygote.start(b"", files)
    os.close(theirs)
