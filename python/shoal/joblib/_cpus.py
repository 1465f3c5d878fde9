"""How many cpus there are for this process: `joblib.cpu_count`."""

from __future__ import annotations

import os


def cpu_count(only_physical_cores: bool = False) -> int:
    """How many cpus this process may use: those of the machine, of its affinity, of its cgroup's quota, and of
    `LOKY_MAX_CPU_COUNT`, whichever is least; at least 1.

    only_physical_cores: count each core once, however many threads it runs at a time; where affinity, quota or variable
    leave fewer than the machine has, those count as they are. JOBLIB_MULTIPROCESSING=0 makes it 1.
    """
    if os.environ.get("JOBLIB_MULTIPROCESSING", "1").strip() == "0":
        return 1
    machine = os.cpu_count() or 1
    ours = min(machine, _allowed(machine))
    if only_physical_cores and ours >= machine:
        return _physical_cores() or machine
    return max(ours, 1)


def _allowed(machine: int) -> int:
    allowed = [len(os.sched_getaffinity(0)), _quota() or machine]
    limit = os.environ.get("LOKY_MAX_CPU_COUNT")
    if limit is not None:
        allowed.append(int(limit))
    return max(min(allowed), 1)


def _quota() -> int | None:
    """Of the cgroup at this process's root, rounded up: what a container runtime sets."""
    try:
        try:
            with open("/sys/fs/cgroup/cpu.max") as file:
                quota, period = file.read().split()
        except FileNotFoundError:  # version 1
            with open("/sys/fs/cgroup/cpu/cpu.cfs_quota_us") as file:
                quota = file.read()
            with open("/sys/fs/cgroup/cpu/cpu.cfs_period_us") as file:
                period = file.read()
        if quota.strip() == "max" or int(quota) <= 0 or int(period) <= 0:
            return None
        return -(-int(quota) // int(period))
    except (OSError, ValueError):
        return None


def _physical_cores() -> int | None:
    cores = set()
    try:
        with open("/proc/cpuinfo") as file:
            package = core = ""
            for line in file:
                name, _, value = line.partition(":")
                name = name.strip()
                if name == "physical id":
                    package = value.strip()
                elif name == "core id":
                    core = value.strip()
                elif not name and core:
                    cores.add((package, core))
                    package = core = ""
            if core:
                cores.add((package, core))
    except OSError:
        return None
    return len(cores) or None
