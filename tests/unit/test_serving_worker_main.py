"""What the local backend tells a worker is what the worker reads."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from intonaco.config import Serving, parse
from intonaco.errors import ConfigError
from intonaco.serving import worker_processes
from intonaco.serving.local import LocalServingBackend
from intonaco.serving.worker.main import HUNG, arguments
from intonaco.types import Provenance, Release, ServingSpec
from intonaco.workspace import Workspace

RELEASE = Release(
    release_id="d" * 64,
    service_id="s",
    serving=ServingSpec(pipeline_class="P", weights={}, scheduler="S", generation={}),
    provenance=Provenance(created_at=0),
    path="releases/d/pipeline",
)


@pytest.mark.parametrize("strict", [True, False])
def test_settings_reach_the_worker(
    strict: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Sequence[str]] = []

    def spawn(workspace: Workspace, module: str, argv: Sequence[str], **_: Any) -> int:
        started.append(argv)
        return os.getpid()

    monkeypatch.setattr(worker_processes, "spawn", spawn)
    serving = Serving.model_validate(
        {
            "worker": {
                "batch_sizes": [1, 4],
                "strict": strict,
                "batch_wait_ms": 7.5,
                "queue_limit": 9,
                "warm_up": False,
                "threads": 2,
            },
            **({"tracing": {"endpoint": "http://c:4318"}} if strict else {}),
        }
    )
    backend = LocalServingBackend(Workspace(tmp_path), serving)
    backend.deploy(RELEASE)
    backend.close()
    told = arguments(list(started[0]))
    assert told.strict is strict
    assert (told.batch_sizes, told.batch_wait_ms, told.queue_limit) == ("1,4", 7.5, 9)
    assert (told.threads, told.no_warm_up, told.release) == (2, True, RELEASE.release_id)
    assert told.trace == ("http://c:4318" if strict else None)


def test_a_worker_without_batch_sizes_is_refused() -> None:
    with pytest.raises(ConfigError, match="batch_sizes"):
        parse("service: s\nserving: {worker: {batch_sizes: []}}")


def test_the_http_side_imports_no_torch() -> None:
    """So that a worker answers, and can be adopted, while the heavy libraries load."""
    code = (
        "import sys, intonaco.serving.worker.main;"
        "sys.exit(bool({'torch', 'diffusers', 'pynvml'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_process_that_hangs_after_a_stop_ends_all_the_same() -> None:
    code = (
        "import threading; from intonaco.serving.worker.main import end_at_last;"
        "end_at_last(0.2); threading.Event().wait(60)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == HUNG
    assert "still there" in done.stderr
