"""What an evaluation ran on and with."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from intonaco import __version__
from intonaco.environments import environment_lock
from intonaco.types import Json

PACKAGES = ("torch", "diffusers", "transformers", "peft", "numpy", "pillow", "safetensors")
_CPUINFO = Path("/proc/cpuinfo")


def here(device: str, threads: int) -> dict[str, Json]:
    """Versions and hardware of this process."""
    return {
        "packages": {"intonaco": __version__, "python": platform.python_version(), **_versions()},
        "environment": environment_lock(),
        "hardware": {
            "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
            "processor": _processor(),
            "cores": os.cpu_count(),
            "threads": threads,
            "system": f"{platform.system()} {platform.release()}",
        },
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    if sys.platform == "linux":
        try:
            lines = _CPUINFO.read_text().splitlines()
        except OSError:
            lines = []
        named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
        if (name := next(named, "")) != "":
            return name
    return platform.processor() or platform.machine()
