"""Reading NVML, with a module that has its functions' real names. Not run on a GPU here."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from intonaco.serving.worker.batcher import MicroBatcher
from intonaco.serving.worker.core import Images
from intonaco.serving.worker.gpu import Gpu, GpuUse, find_gpu
from intonaco.serving.worker.metrics import WorkerMetrics


class FakeNvml:
    """The part of ``pynvml`` that is used. ``broken`` names functions that fail."""

    class NVMLError(Exception):
        pass

    def __init__(self, *broken: str) -> None:
        self.broken = broken
        self.initialised = False

    def nvmlInit(self) -> None:  # noqa: N802 (pynvml's)
        self._maybe_fail("nvmlInit")
        self.initialised = True

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:  # noqa: N802 (pynvml's)
        self._maybe_fail("nvmlDeviceGetHandleByIndex")
        return f"handle {index}"

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802 (pynvml's)
        return f"handle {uuid}"

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> Any:  # noqa: N802 (pynvml's)
        self._maybe_fail("nvmlDeviceGetUtilizationRates")
        return SimpleNamespace(gpu=37, memory=12)

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> Any:  # noqa: N802 (pynvml's)
        self._maybe_fail("nvmlDeviceGetMemoryInfo")
        return SimpleNamespace(total=2**33, free=2**32, used=2**32)

    def _maybe_fail(self, name: str) -> None:
        if name != "nvmlInit":
            assert self.initialised
        if name in self.broken:
            raise self.NVMLError(name)


def find(device: str, nvml: FakeNvml, **environment: str) -> Gpu | None:
    return find_gpu(device, environment, load={"pynvml": nvml}.__getitem__)


@pytest.mark.parametrize(
    ("device", "visible", "handle"),
    [
        ("cuda", "", "handle 0"),
        ("cuda:1", "", "handle 1"),
        ("cuda:1", "3,2", "handle 2"),
        ("cuda", "GPU-8932f937", "handle GPU-8932f937"),
    ],
)
def test_the_device_is_the_one_that_torch_means(device: str, visible: str, handle: str) -> None:
    gpu = find(device, FakeNvml(), CUDA_VISIBLE_DEVICES=visible)
    assert gpu is not None
    assert gpu.handle == handle
    assert gpu.read() == GpuUse(utilization=0.37, memory_used_bytes=2**32, memory_total_bytes=2**33)


def test_without_a_gpu_nvml_is_not_even_looked_for() -> None:
    def never(name: str) -> Any:
        raise AssertionError(name)

    assert find_gpu("cpu", {}, load=never) is None


def test_what_cannot_be_asked_is_absent(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    def missing(name: str) -> Any:
        raise ImportError(name)

    assert find_gpu("cuda", {}, load=missing) is None
    assert "intonaco[gpu]" in caplog.text
    assert find("cuda", FakeNvml("nvmlInit")) is None
    assert find("cuda", FakeNvml("nvmlDeviceGetHandleByIndex")) is None
    assert find("cuda:2", FakeNvml(), CUDA_VISIBLE_DEVICES="0,1") is None
    assert caplog.text.count("no GPU metrics") == 4
    gpu = find("cuda", FakeNvml("nvmlDeviceGetUtilizationRates"))
    assert gpu is not None
    assert gpu.read().utilization is None
    assert gpu.read().memory_used_bytes == 2**32


def _metrics(gpu: Gpu | None) -> str:
    def run(items: object, size: int, watch: object) -> Images:
        raise AssertionError

    batcher = MicroBatcher[str](run, sizes=(1,), wait_s=0, limit=1)
    return WorkerMetrics(batcher, releases=lambda: (), gpu=lambda: gpu).text().decode()


def test_metrics_tell_what_is_known_and_leave_out_the_rest() -> None:
    whole = _metrics(find("cuda", FakeNvml()))
    assert "intonaco_worker_gpu_utilization 0.37" in whole
    assert "intonaco_worker_gpu_memory_used_bytes 4.294967296e+09" in whole
    assert "intonaco_worker_gpu_memory_total_bytes 8.589934592e+09" in whole
    part = _metrics(find("cuda", FakeNvml("nvmlDeviceGetUtilizationRates")))
    assert "gpu_utilization" not in part
    assert "gpu_memory_used_bytes" in part
    assert "gpu" not in _metrics(None)
