"""interrupted.py LIBRARY SCENARIO PLACES SEED: Ctrl-C at so many places of a program that uses Shoal, each in a process
of its own that goes on afterwards; prints what was wrong, and a closing line.

Wherever it comes: the program is told of it, none of its pools' workers, threads and descriptors is left once the
program has let go of the pool, and pools, processes and logging can be used on. Only what stands in this file is not
interrupted.
"""

from __future__ import annotations

import collections
import ctypes
import gc
import logging
import os
import random
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import shoal.multiprocessing as multiprocessing
from shoal.futures import ProcessPoolExecutor
from shoal.joblib import Parallel, delayed

LIMIT = 25.0  # seconds for one place: what hangs is told of then, and killed
GONE = 15.0  # seconds in which what was dropped must be gone
ENOUGH = 3  # findings, after which no more are sought


def add_one(x: int) -> int:
    return x + 1


def numbers(count: int) -> Iterator[int]:
    yield from range(count)


def dropped_map() -> None:
    pool = multiprocessing.Pool(2)
    pool.map(add_one, range(10))


def dropped_map_of_a_generator() -> None:
    pool = multiprocessing.Pool(2)
    pool.map(add_one, numbers(50))


def dropped_imap() -> None:
    pool = multiprocessing.Pool(2)
    results = pool.imap(add_one, range(2000))
    next(results)


def dropped_imap_of_a_generator() -> None:
    pool = multiprocessing.Pool(2)
    results = pool.imap_unordered(add_one, numbers(2000))
    next(results)


def dropped_calls() -> None:
    pool = multiprocessing.Pool(2)
    results = [pool.apply_async(add_one, (x,)) for x in range(3)]
    mapped = pool.map_async(add_one, [1, 2, 3], callback=len)
    for result in results:
        result.get()
    mapped.get()
    pool.apply(add_one, (1,))


def left_pool() -> None:
    with multiprocessing.Pool(2) as pool:
        pool.map(add_one, range(10))


def closed_pool() -> None:
    pool = multiprocessing.Pool(2)
    pool.map(add_one, [1, 2])
    pool.close()
    pool.join()


def terminated_pool() -> None:
    pool = multiprocessing.Pool(2)
    pool.map(add_one, [1, 2])
    pool.terminate()
    pool.join()


def dropped_executor() -> None:
    executor = ProcessPoolExecutor(2)
    future = executor.submit(add_one, 1)
    future.add_done_callback(id)
    future.result()
    list(executor.map(add_one, range(5)))


def left_executor() -> None:
    with ProcessPoolExecutor(2) as executor:
        executor.submit(add_one, 1).result()


def shut_executor() -> None:
    executor = ProcessPoolExecutor(2)
    for x in range(5):
        executor.submit(add_one, x)
    executor.shutdown(cancel_futures=True)


def processes_and_a_queue() -> None:
    queue = multiprocessing.Queue()
    process = multiprocessing.Process(target=queue.put, args=(1,), daemon=True)
    process.start()
    queue.get()
    process.join()


def parallel() -> None:
    with Parallel(n_jobs=2) as workers:
        workers(delayed(add_one)(x) for x in range(5))
        workers(delayed(add_one)(x) for x in range(5))


SCENARIOS: dict[str, Callable[[], None]] = {
    function.__name__: function
    for function in (
        dropped_map, dropped_map_of_a_generator, dropped_imap, dropped_imap_of_a_generator, dropped_calls, left_pool,
        closed_pool, terminated_pool, dropped_executor, left_executor, shut_executor, processes_and_a_queue, parallel,
    )
}  # fmt: skip


# ------------------------------------------------------------------------ one place


def is_interrupt(error: BaseException | None) -> bool:
    """Whether it is Ctrl-C, or what something made of it."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def try_at(library: ctypes.PyDLL, scenario: str, place: int) -> str:
    """What is wrong after Ctrl-C there; where the scenario is to be done undisturbed (-1), how many places it has."""
    here = place, "nowhere"

    def interrupt(number: int, frame: Any) -> None:
        nonlocal here
        calls = reversed(traceback.extract_stack(frame)[-4:])
        here = place, " < ".join(f"{Path(call.filename).name}:{call.lineno} {call.name}" for call in calls)
        raise KeyboardInterrupt

    lost: list[str] = []
    sys.unraisablehook = lambda what: lost.append(repr(what.object))  # a finalizer's: there it is the interpreter's
    signal.signal(signal.SIGINT, interrupt)
    process, told, descriptors = os.getpid(), False, open_descriptors()
    library.interrupt_at(place, __file__.encode())
    try:
        try:
            SCENARIOS[scenario]()
        finally:
            count = library.interrupt_end()
    except BaseException as error:
        if os.getpid() != process:  # a child's, which must not go on here
            os._exit(1)
        if not is_interrupt(error):
            return f"{here}: {''.join(traceback.format_exception(error))}"
        told = True
        error.__traceback__ = None
    if place < 0:
        return str(count)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    wrong = [] if told or lost or here[1] == "nowhere" else ["the program was not told of Ctrl-C"]
    if scenario == "parallel":  # its workers stay, for the next call
        if Parallel(n_jobs=2)(delayed(add_one)(x) for x in range(5)) != [1, 2, 3, 4, 5]:
            wrong.append("wrong results afterwards")
    else:
        wrong += left_after(GONE, descriptors)
    logging.getLogger("interrupted").info("its lock is free")
    process = multiprocessing.Process(target=say_if_blocked)
    process.start()
    process.join()
    if process.exitcode != 10 or is_blocked():
        wrong.append(f"Ctrl-C stays blocked: {is_blocked()}, in a process {process.exitcode}")
    with multiprocessing.Pool(1) as pool:
        if pool.map(add_one, [1, 2]) != [2, 3]:
            wrong.append("wrong results afterwards")
    if here[1] == "nowhere" and count <= place:  # it took a shorter way this time
        return "nowhere"
    if here[1] == "nowhere":
        wrong.append("Ctrl-C was not heard")
    return "".join(f"{here}: {what}\n" for what in wrong)


def is_running(process: str) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:  # it was just waited for
        return False


def is_blocked() -> bool:
    return signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def say_if_blocked() -> None:
    os._exit(10 + is_blocked())


def open_descriptors() -> collections.Counter[str]:
    """How many there are of each kind."""
    kinds: list[str] = []
    for name in os.listdir("/proc/self/fd"):
        try:
            kinds.append(os.readlink(f"/proc/self/fd/{name}").partition(":[")[0])
        except OSError:  # that of the list itself, or just closed
            pass
    return collections.Counter(kinds)


def children() -> list[str]:
    found: list[str] = []
    for path in Path("/proc/self/task").glob("*/children"):
        try:
            found += path.read_text().split()
        except OSError:  # a thread that has just ended
            pass
    return found


def left_after(seconds: float, descriptors: collections.Counter[str]) -> list[str]:
    """What a pool has left, these descriptors having been open before."""
    deadline = time.monotonic() + seconds
    while True:
        gc.collect()
        multiprocessing.active_children()  # lets go of those that have ended
        # A feeder's start is the interpreter's: interrupted, it may leave the thread in its list, not started.
        threads = [
            thread.name for thread in threading.enumerate() if thread.name in ("shoal-supervisor", "shoal-helper")
        ]
        running = [child for child in children() if is_running(child)]
        more = open_descriptors() - descriptors
        if not threads and not running and not more:
            return []
        if time.monotonic() > deadline:
            return [f"left: threads {threads}, processes {running}, descriptors {dict(more)}"]
        time.sleep(0.003)


def try_in_a_process(library: ctypes.PyDLL, scenario: str, place: int) -> str:
    """try_at() in a forked process, which may hang or die."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # it ends with this one
        os.setpgid(0, 0)
        os.close(reader)
        try:
            text = try_at(library, scenario, place)
        except BaseException:
            text = f"{place}: {traceback.format_exc()}"
        os.write(writer, text.encode()[:60_000] + b"\0")
        os._exit(0)
    os.close(writer)
    data, deadline = b"", time.monotonic() + LIMIT
    while not data.endswith(b"\0"):
        if not select.select([reader], [], [], max(0.0, deadline - time.monotonic()))[0]:
            data += f"{place}: no end after {LIMIT:.0f} s\0".encode()
        elif part := os.read(reader, 65536):
            data += part
        else:
            data += f"{place}: died\0".encode()
    os.close(reader)
    try:
        os.killpg(pid, signal.SIGKILL)  # what it left
    except ProcessLookupError:
        pass
    os.waitpid(pid, 0)
    return data[:-1].decode()


def main() -> None:
    library, scenario, places, seed = ctypes.PyDLL(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    library.interrupt_at.argtypes = [ctypes.c_long, ctypes.c_char_p]
    library.interrupt_end.restype = ctypes.c_long
    if scenario != "parallel":  # whose workers stay
        library.interrupt_at(-1, __file__.encode())  # CPython 3.13 tells of all instructions the second time only
        SCENARIOS[scenario]()  # what is opened or made once is there then
        library.interrupt_end()
        left_after(GONE, open_descriptors())
    count = int(try_in_a_process(library, scenario, -1))
    stride = max(1, count // places)
    tried = wrong = 0
    for place in range(random.Random(seed).randrange(stride), count, stride):
        text = try_in_a_process(library, scenario, place)
        tried += text != "nowhere"
        if text not in ("", "nowhere"):
            wrong += 1
            print(text, end="", flush=True)
            if wrong == ENOUGH:
                break
    if wrong == 0 and tried <= min(places, count) // 2:
        raise SystemExit(f"Ctrl-C came at {tried} places only, of {count}")
    print(f"{scenario}: Ctrl-C at {tried} of {count} places, {wrong} times something was wrong")


if __name__ == "__main__":
    main()
