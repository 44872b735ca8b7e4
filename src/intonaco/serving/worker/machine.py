"""What kind of machine draws: the same bits come back only on the same kind. Imports no torch."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_ALLOWED = Path("/sys/fs/cgroup/memory.max")


def machine(device: str) -> str:
    """The device in words: "cpu, AMD EPYC 9B14, 1 thread" or "cuda, NVIDIA H200"."""
    torch = sys.modules.get("torch")  # there, where a pipeline is loaded
    kind = device.partition(":")[0]
    if torch is None:
        return kind
    if kind == "cuda":
        return f"{kind}, {torch.cuda.get_device_name(device)}"
    threads = int(torch.get_num_threads())
    said = f"{threads} thread" + ("s" if threads != 1 else "")
    return f"{kind}, {_processor()}, {said}"


def _processor() -> str:
    try:
        lines = _CPUINFO.read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def memory_bytes(device: str) -> int:
    """All the memory of a device; of a processor, and of Apple's GPU that shares it, the machine's
    or what this process's group may have of it. 0 where nobody says."""
    torch = sys.modules.get("torch")
    if device.startswith("cuda"):
        return 0 if torch is None else int(torch.cuda.get_device_properties(device).total_memory)
    try:
        whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError):
        return 0
    try:
        return min(whole, int(_ALLOWED.read_text()))
    except (OSError, ValueError):  # no such group, or "max"
        return whole
