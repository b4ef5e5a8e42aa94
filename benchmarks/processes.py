"""What processes cost the machine, read from /proc: CPU time of a whole tree, and memory."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

PROC = Path("/proc")
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PEAK_RSS = "5"  # proc(5): what clear_refs takes to forget the peak

# Fields of /proc/PID/stat after the command, which is in parentheses and may hold anything.
PARENT = 1
CPU_TIMES = slice(11, 15)  # utime, stime, and both of the children that were waited for


def cpu_us(root: int) -> int:
    """Return the CPU time, user and system, of a process and all it started, in microseconds."""
    ticks = sum(sum(map(int, _stat(pid)[CPU_TIMES])) for pid in tree(root))
    return ticks * 1_000_000 // TICKS_PER_S


def tree(root: int) -> list[int]:
    """Return the process and all below it that are alive."""
    parents = {pid: int(stat[PARENT]) for pid in _processes() if (stat := _stat(pid))}
    found = [root]
    for pid in found:  # grows while we walk it
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def largest(root: int) -> int:
    """Return the process of the tree that has the most memory: a server's worker, not its parent."""
    return max(tree(root), key=rss_kb)


def rss_kb(pid: int) -> int:
    return _status_kb(pid, "VmRSS")


def peak_rss_kb(pid: int) -> int:
    """Return the most memory that the process had since it started or since `forget_peak`."""
    return _status_kb(pid, "VmHWM")


def forget_peak(pid: int) -> None:
    (PROC / str(pid) / "clear_refs").write_text(PEAK_RSS)


def calibration_ms() -> float:
    """Return the CPU time of a fixed job in pure Python: how fast this machine is just now."""
    began = time.process_time_ns()
    total = 0
    for number in range(1_000_000):
        total += number & 7
    assert total == 3_500_000
    return (time.process_time_ns() - began) / 1e6


def _processes() -> Iterator[int]:
    return (int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit())


def _stat(pid: int) -> list[str]:
    try:
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []  # it has ended meanwhile


def _status_kb(pid: int, name: str) -> int:
    for line in (PROC / str(pid) / "status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise LookupError(name)
