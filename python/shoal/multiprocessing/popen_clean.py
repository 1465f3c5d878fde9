"""How `spawn` and `forkserver` start processes on the engine: a warm zygote forks them.

A fresh interpreter takes tens of milliseconds, and as long again for each large module that the program imports. So one
clean interpreter is started, imports what the program has imported from the standard library and from installed
packages (the program's own modules are left to each process), and forks the rest. What is started has nothing of this
process's state; it gets the standard library's preparation data, as from `multiprocessing.spawn`.

The zygote of `forkserver` honours `set_forkserver_preload`, the main module by default, as multiprocessing does.
"""

from __future__ import annotations

import io
import os
import sys
import sysconfig
from multiprocessing import context, forkserver, process, reduction, resource_tracker, spawn, util
from typing import Any

from shoal import _install, _zygote
from shoal.multiprocessing import _child, _insides, _main_module, popen_fork

__all__ = ["PopenForkServer", "PopenSpawn"]

_INLINE = 48 * 1024  # bytes of preparation data that go with the request; more goes through a file in memory
_inherited: list[int] = []


class _DupFd:
    """A descriptor on its way to the process: its place among those that are handed over."""

    def __init__(self, index: int) -> None:
        self.index = index

    def detach(self) -> int:
        return _inherited[self.index]


class _Popen(popen_fork.Popen):
    """A process that the zygote forked."""

    method = ""
    DupFd = _DupFd

    def __init__(self, process_obj: Any) -> None:
        self._fds: list[int] = []
        super().__init__(process_obj)

    def duplicate_for_child(self, fd: int) -> int:
        self._fds.append(fd)
        return len(self._fds) - 1

    def _zygote(self) -> Any:
        raise NotImplementedError

    def _launch(self, process_obj: Any) -> None:
        preparation = spawn.get_preparation_data(process_obj._name)
        preparation["start_method"] = self.method
        preparation["shoal_installed"] = _install.is_installed()
        preparation["shoal_derived"] = _derived_before()
        _main_module.pack(preparation)
        buffer = io.BytesIO()
        context.set_spawning_popen(self)  # type: ignore[arg-type]
        try:
            reduction.dump(preparation, buffer)
            reduction.dump(process_obj, buffer)
        finally:
            context.set_spawning_popen(None)
        # The parent's end stays open as long as the child's parent_process() is to be found alive.
        parent_sentinel, parent_end = os.pipe()
        opened = [parent_sentinel]
        try:
            payload = bytes(buffer.getbuffer())
            streams = [fd for fd in (1, 2) if _is_open(fd)]
            fds = [parent_sentinel, _tracker(), *streams]
            if len(payload) > _INLINE:
                opened.append(_write_to_memory(payload))
                fds.append(opened[-1])
                payload = b""
            head = bytes([len(streams), 1 if streams[:1] == [1] else 2, not payload])
            self._process = self._zygote().start(
                "shoal.multiprocessing.popen_clean:_main",
                head + payload,
                [*fds, *self._fds],
                outlives=not process_obj.daemon,
            )
        except BaseException:
            os.close(parent_end)
            raise
        finally:
            for fd in opened:
                os.close(fd)
        self.pid = self._process.pid
        self.sentinel = self._process.fd
        self._process.keep(parent_end)
        self.finalizer = self._process.close

    def _unknown_end(self) -> int:
        return 255  # as multiprocessing's forkserver has it: the zygote that knew is gone


def _tracker() -> int:
    """The descriptor of multiprocessing's resource tracker, which is started if need be."""
    try:
        fd: Any = resource_tracker.getfd()  # type: ignore[attr-defined]
        return int(fd)
    except OSError as error:
        raise _zygote.start_error("multiprocessing's resource tracker", error.errno or 0) from error


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def _write_to_memory(data: bytes) -> int:
    fd = os.memfd_create("shoal-process")
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(data)
    except BaseException:
        os.close(fd)
        raise
    return fd


class PopenSpawn(_Popen):
    """A process of the `spawn` method."""

    method = "spawn"

    def _zygote(self) -> Any:
        return _zygote.get("spawn", lambda: _zygote.Zygote(_installed_modules(), derived=_derived_before()))


class PopenForkServer(_Popen):
    """A process of the `forkserver` method."""

    method = "forkserver"

    def _zygote(self) -> Any:
        return _zygote.get("forkserver", _make_fork_server)


def _make_fork_server() -> _zygote.Zygote:
    preload = list(forkserver._forkserver._preload_modules)  # type: ignore[attr-defined]
    main = None
    if "__main__" in preload:
        preload.remove("__main__")
        main = spawn.get_preparation_data("ignore").get("init_main_from_path")
    return _zygote.Zygote([*_installed_modules(), *preload], main, _derived_before())


def _derived_before() -> list[tuple[str | None, str]]:
    """The classes of this program that `install()` came too late for."""
    return _insides.derived_before(list(_insides.KeepingType.replaced.values())) if _install.is_installed() else []


def _installed_modules() -> list[str]:
    """What this program has imported of the standard library and of installed packages."""
    # Only where an import by name gives the same module: not what a program put together itself.
    folders = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    folders.add(os.path.dirname(_install.__file__))  # wherever Shoal itself is
    # The user's own, those that an environment takes over from the system, and Debian's are others than sysconfig's.
    paths = [path.rstrip(os.sep) for path in map(str, sys.path)]
    folders.update(path for path in paths if os.path.basename(path) in ("site-packages", "dist-packages"))
    places = tuple(os.path.join(folder, "") for folder in folders)
    names = ["shoal._installed"] if _install.is_installed() else []
    for name, module in list(sys.modules.items()):
        spec = getattr(module, "__spec__", None)
        origin = getattr(spec, "origin", None)
        if spec is None or spec.name != name or name.startswith("__"):
            continue
        if isinstance(origin, str) and (origin in ("built-in", "frozen") or origin.startswith(places)):
            names.append(name)
    return names


def _main(payload: bytes, fds: tuple[int, ...]) -> int:
    """In the process: what `multiprocessing.spawn` does in one that it started."""
    stream_count, first_stream, in_memory = payload[0], payload[1], payload[2]
    parent_sentinel, tracker, *rest = fds
    for target, fd in zip(range(first_stream, 3), rest[:stream_count], strict=False):
        os.dup2(fd, target)
        os.close(fd)
    rest = rest[stream_count:]
    resource_tracker._resource_tracker._fd = tracker  # type: ignore[attr-defined]
    if in_memory:
        data: Any = open(rest.pop(0), "rb")  # noqa: SIM115  (below)
        data.seek(0)
    else:
        data = io.BytesIO(payload[3:])
    _inherited[:] = rest
    with data:
        current: Any = process.current_process()
        current._inheriting = True
        try:
            preparation = reduction.pickle.load(data)  # type: ignore[attr-defined]
            # Before the program's main module is run. The zygote may have been started when it was otherwise.
            _insides.kept.update(preparation["shoal_derived"])
            _install.install() if preparation["shoal_installed"] else _install.uninstall()
            main = preparation.pop("shoal_main", None)
            spawn.prepare(preparation)
            if main is not None:
                _main_module.run(*main)
            process_obj = reduction.pickle.load(data)  # type: ignore[attr-defined]
        finally:
            del current._inheriting
    util._close_stdin = _child.keep_null_input  # type: ignore[attr-defined]
    fresh = preparation["start_method"] == "spawn"
    return _child.run_with_exit_functions(process_obj._bootstrap, parent_sentinel, fresh)
