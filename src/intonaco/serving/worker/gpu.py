"""What the GPU is doing, through NVML, where there is one and ``nvidia-ml-py`` is installed (extra
``gpu``). What cannot be read is absent, never zero."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuUse:
    """``utilization``: share of the last moments in which a kernel ran, of all processes, 0 to 1.
    Memory is the whole device's."""

    utilization: float | None
    memory_used_bytes: int | None
    memory_total_bytes: int | None


@dataclass(frozen=True, slots=True)
class Gpu:
    """``nvml``: the module ``pynvml``, initialised."""

    nvml: Any
    handle: Any

    def read(self) -> GpuUse:
        rates = self._ask(self.nvml.nvmlDeviceGetUtilizationRates)
        memory = self._ask(self.nvml.nvmlDeviceGetMemoryInfo)
        return GpuUse(
            utilization=None if rates is None else rates.gpu / 100,
            memory_used_bytes=None if memory is None else int(memory.used),
            memory_total_bytes=None if memory is None else int(memory.total),
        )

    def _ask(self, what: Callable[[Any], Any]) -> Any:
        try:
            return what(self.handle)
        except self.nvml.NVMLError:  # a slice of a device has no utilization, for one
            return None


def find_gpu(
    device: str,
    environment: Mapping[str, str],
    load: Callable[[str], Any] = importlib.import_module,
) -> Gpu | None:
    """The GPU that torch calls ``device``, None if it is none or cannot be asked.

    CUDA numbers the devices that ``CUDA_VISIBLE_DEVICES`` names, NVML all of them, in the order of
    the bus. Without that variable the two agree where devices are of one kind, and otherwise with
    ``CUDA_DEVICE_ORDER=PCI_BUS_ID``.
    """
    kind, _, number = device.partition(":")
    if kind != "cuda":
        return None
    try:
        nvml = load("pynvml")
    except ImportError:
        log.info(
            "no GPU metrics: pip install 'intonaco[gpu]' for them", extra={"action": "worker.gpu"}
        )
        return None
    visible = [v.strip() for v in environment.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    try:
        index = int(number or 0)
        name = visible[index] if visible != [""] else str(index)
        nvml.nvmlInit()
        if name.isdecimal():
            return Gpu(nvml, nvml.nvmlDeviceGetHandleByIndex(int(name)))
        return Gpu(nvml, nvml.nvmlDeviceGetHandleByUUID(name))
    except (nvml.NVMLError, ValueError, IndexError) as error:
        log.warning(
            "no GPU metrics: %s: %s", type(error).__name__, error, extra={"action": "worker.gpu"}
        )
        return None
