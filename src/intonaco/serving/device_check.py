"""Whether the device that ``serving.worker.device`` names is there, found out before a worker is
started for it. PyTorch is asked in a process of its own: who checks may live long and needs none
of it."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

from intonaco.errors import ConfigError

KINDS = ("auto", "cpu", "cuda", "mps")
ASK_S = 120.0  # importing torch takes seconds, on a busy machine many
_ASK = """
import sys
from intonaco.errors import ConfigError
from intonaco.serving.worker.devices import resolve_device
try:
    resolve_device(sys.argv[1])
except ConfigError as error:
    print(error)
    sys.exit(2)
"""


def can_tell(device: str) -> bool:
    """Whether ``check_device`` can say that the device is there: a processor always is, for others
    PyTorch must be installed here."""
    return device in ("auto", "cpu") or find_spec("torch") is not None


def check_device(device: str) -> None:
    """Raises ConfigError for a device that is unknown or not there. One that cannot be told of
    passes."""
    kind = device.partition(":")[0]
    if kind not in KINDS:
        raise ConfigError(f"device: {device!r} is unknown", hint="auto, cpu, cuda, cuda:N or mps")
    if device in ("auto", "cpu") or not can_tell(device):
        return
    try:
        asked = subprocess.run(
            [sys.executable, "-c", _ASK, device],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=ASK_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ConfigError(f"device: PyTorch did not say within {ASK_S:.0f} s of {device}") from None
    if asked.returncode == 2:
        raise ConfigError(asked.stdout.strip(), hint="auto takes what there is")
    if asked.returncode:
        said = (asked.stderr.strip().splitlines() or ["no word"])[-1]
        raise ConfigError(f"device: PyTorch cannot say of {device}: {said}")
