"""One device, or several that share each batch (Hugging Face accelerate, DistributedDataParallel).

All processes of a run draw the same batch from the same generator, and each computes its share: so
a run means the same on one device as on eight, up to the order of sums.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
_PR_SET_PDEATHSIG = 1


class Devices:
    """This process's device, and the other processes of the run."""

    def __init__(self) -> None:
        self._accelerator: Any = None
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from accelerate import Accelerator

            self._accelerator = Accelerator(cpu=not torch.cuda.is_available())

    @property
    def count(self) -> int:
        return self._accelerator.num_processes if self._accelerator else 1

    @property
    def rank(self) -> int:
        return self._accelerator.process_index if self._accelerator else 0

    @property
    def main(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        if self._accelerator:
            device: torch.device = self._accelerator.device
            return device
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def wrap(self, model: Any) -> Any:
        """The model, its gradients averaged over all processes in each backward pass."""
        return self._accelerator.prepare_model(model) if self._accelerator else model

    def averaging(self, model: Any, *, last: bool) -> AbstractContextManager[Any]:
        """Gradients need to be averaged with the last part of a batch only."""
        if self._accelerator is None or last:
            return nullcontext()
        waiting: AbstractContextManager[Any] = self._accelerator.no_sync(model)
        return waiting

    def together(self, values: Tensor) -> Tensor:
        """Values [k, n] of each process as [k, processes x n], in the order of the batch."""
        if self._accelerator is None:
            return values
        gathered = self._accelerator.gather(values.contiguous())
        split = gathered.view(self.count, len(values), -1)
        joined: Tensor = split.permute(1, 0, 2).reshape(len(values), -1)
        return joined

    def agreed(self, value: T) -> T:
        """What the main process says."""
        if self._accelerator is None:
            return value
        from accelerate.utils import broadcast_object_list

        said = [value]
        broadcast_object_list(said, from_process=0)
        return said[0]


def is_member() -> bool:
    """Whether this process was started as one of several."""
    return "LOCAL_RANK" in os.environ


def end_with_parent() -> None:
    """Have the kernel kill this process when the launcher dies (Linux, ``prctl(2)``). The launcher
    starts each in a session of its own, so that otherwise one that is killed would leave them."""
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died just before
        sys.exit(4)


def launch(module: str, arguments: Sequence[str], processes: int, *, keep: Path) -> int:
    """Run ``python -m MODULE ARGUMENTS`` in that many processes on this machine, each on its own
    device; returns the exit status. If one fails all are ended. ``keep``: a lock file of this
    process that they hold too.

    This is the launcher that ``accelerate launch`` calls in its turn.
    """
    command = [sys.executable, "-P", "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={processes}", "-m", module, *arguments]
    environment = os.environ | {"TORCHELASTIC_ERROR_FILE": os.devnull}
    if not torch.cuda.is_available():
        environment |= {"ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command, env=environment, pass_fds=_descriptors(keep), check=False)
    return done.returncode


def _descriptors(file: Path) -> list[int]:
    """The open descriptors of a file."""
    found = []
    for entry in Path("/proc/self/fd").glob("*"):
        if re.fullmatch(r"\d+", entry.name) and os.path.realpath(entry) == str(file.resolve()):
            found.append(int(entry.name))
    return found
