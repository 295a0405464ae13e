"""The machine that figures were measured on: a figure without one says nothing."""

import os
import platform
import subprocess
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGES = ("torch", "transformers", "numba")
GIBIBYTE = 2**30
SMALLEST_BUFFER_BYTES = GIBIBYTE // 2
CACHES = 2  # the buffer is this many times the last cache: at least half of each read comes from memory
ROW_BYTES = 2**16
READS = 5


@dataclass(frozen=True)
class Machine:
    """``usable_cores`` are those that this process may run on; ``threads`` those that torch uses. Bandwidths are of
    reading ``buffer_bytes`` in one go. ``versions`` has None for a package that is not installed, ``commit`` is None
    outside a checkout and ends in "-dirty" in a changed one."""

    processor: str
    cores: int
    usable_cores: int
    threads: int
    bandwidth_one_thread_gb_s: float
    bandwidth_gb_s: float
    buffer_bytes: int
    commit: str | None
    python: str
    versions: dict[str, str | None]
    date: str


def describe_machine(threads: int | None = None) -> Machine:
    """Everything about this process's machine; measuring its memory takes a second or two. ``threads`` unless torch's
    own number is used."""
    threads, num_bytes = threads or torch.get_num_threads(), buffer_bytes()
    one_thread, all_threads = measure_bandwidth(num_bytes, (1, threads))
    return Machine(
        processor=processor(),
        cores=os.cpu_count() or 1,
        usable_cores=usable_cores(),
        threads=threads,
        bandwidth_one_thread_gb_s=one_thread,
        bandwidth_gb_s=all_threads,
        buffer_bytes=num_bytes,
        commit=commit(),
        python=platform.python_version(),
        versions={name: _version(name) for name in PACKAGES},
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def measure_bandwidth(num_bytes: int, num_threads: tuple[int, ...]) -> list[float]:
    """GB/s of reading ``num_bytes`` with each number of threads: the best of a few reads, as STREAM reports it
    (McCalpin 1995). The read is a matrix times a vector that stays in the cache, which is what a decode step is."""
    columns = ROW_BYTES // 4
    matrix, vector = torch.ones((max(1, num_bytes // ROW_BYTES), columns)), torch.ones(columns)
    before = torch.get_num_threads()
    found = []
    try:
        for number in num_threads:
            torch.set_num_threads(number)
            found.append(matrix.nbytes / min(_seconds_to_read(matrix, vector) for _ in range(READS)) / 1e9)
    finally:
        torch.set_num_threads(before)
    return found


def _seconds_to_read(matrix: torch.Tensor, vector: torch.Tensor) -> float:
    start = time.perf_counter()
    torch.mv(matrix, vector)
    return time.perf_counter() - start


def buffer_bytes() -> int:
    """A buffer that the caches cannot hold, but half of the free memory can."""
    caches = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    sizes = [path.read_text(encoding="ascii").strip() for path in caches]
    last = max((int(size.removesuffix("K")) * 1024 for size in sizes if size.endswith("K")), default=0)
    wanted = max(SMALLEST_BUFFER_BYTES, CACHES * last)
    if "SC_AVPHYS_PAGES" not in os.sysconf_names:
        return wanted
    return max(ROW_BYTES, min(wanted, os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2))


def usable_cores() -> int:
    """Those that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """The model's name as Linux knows it, else what Python knows."""
    info = Path("/proc/cpuinfo")
    for line in info.read_text(encoding="utf-8").splitlines() if info.is_file() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def commit() -> str | None:
    """Of the checkout that this package is run from."""
    command = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        result = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
