"""Twins and real implementations keep the same promises."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tests import fixtures_tiny
from tests.fixtures_serving import gateway_process, until

from intonaco.config import Serving
from intonaco.errors import BackendError, ConfigError
from intonaco.protocols import ServingBackend, TrafficRouter
from intonaco.serving.client import GatewayRouter
from intonaco.serving.local import LocalServingBackend
from intonaco.testing.serving import (
    MemoryRouter,
    MemoryServingBackend,
    check_router,
    check_scaling,
    check_serving_backend,
    sample_table,
)
from intonaco.types import Provenance, Release, RoutingTable, ServingSpec
from intonaco.workspace import Workspace

RELEASE = Release(
    release_id="d" * 64,
    service_id="s",
    serving=ServingSpec(pipeline_class="P", weights={}, scheduler="S", generation={}),
    provenance=Provenance(created_at=0),
    path="releases/d/pipeline",
)


def test_the_serving_twin() -> None:
    twin = MemoryServingBackend(polls_until_ready=3)
    assert isinstance(twin, ServingBackend)
    check_serving_backend(twin, RELEASE, timeout_s=5, poll_s=0)
    assert twin.deployments == {RELEASE.release_id: 1}


def test_the_serving_twin_scales() -> None:
    twin = MemoryServingBackend(polls_until_ready=2)
    check_scaling(twin, RELEASE, timeout_s=5, poll_s=0)
    assert (twin.most, twin.deployments) == (2, {RELEASE.release_id: 1})


def test_the_local_backend_scales(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "w")
    release = fixtures_tiny.add_release(workspace, fixtures_tiny.save(tmp_path / "p"))
    backend = LocalServingBackend(workspace, Serving())
    try:
        check_scaling(backend, release)
    finally:
        backend.retire(release.release_id)
        backend.close()
    assert [p.name for p in workspace.processes()] == []


def test_a_scaled_release_keeps_its_size_in_another_controller(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "w")
    release = fixtures_tiny.add_release(workspace, fixtures_tiny.save(tmp_path / "p"))
    rid = release.release_id
    first = LocalServingBackend(workspace, Serving(replicas=2))
    try:
        first.scale(release, 1)
        second = LocalServingBackend(workspace, Serving(replicas=2))
        second.deploy(release)
        assert second.status(rid).replicas == 1
        second.scale(release, 2)
        assert second.status(rid).replicas == 2
        second.close()
    finally:
        first.retire(rid)
        first.close()


def test_the_serving_twin_fails_as_told() -> None:
    twin = MemoryServingBackend(failing={RELEASE.release_id: "out of memory"})
    with pytest.raises(AssertionError, match="out of memory"):
        check_serving_backend(twin, RELEASE, timeout_s=0.05, poll_s=0)
    twin = MemoryServingBackend(attests={RELEASE.release_id: "e" * 64})
    with pytest.raises(AssertionError, match="attests eeeeeeeeee"):
        check_serving_backend(twin, RELEASE, timeout_s=0.05, poll_s=0)


def test_the_local_backend(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "w")
    release = fixtures_tiny.add_release(workspace, fixtures_tiny.save(tmp_path / "p"))
    backend = LocalServingBackend(workspace, Serving())
    assert isinstance(backend, ServingBackend)
    try:
        check_serving_backend(backend, release)
    finally:
        backend.retire(release.release_id)
        backend.close()
    assert workspace.process(f"worker-{release.short}") is None


def test_the_router_twin() -> None:
    twin = MemoryRouter()
    assert isinstance(twin, TrafficRouter)
    check_router(twin, sample_table(1))
    twin.trip("b" * 64, at=1.0)
    assert twin.observed().weights == {"champion": 0.75, "baseline": 0.25, "challenger:new": 0.0}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    w = Workspace(tmp_path)
    w.config_file.write_text("service: sample\nserving: {gateway: {port: 0}}\n")
    return w


def test_the_gateway_as_router(workspace: Workspace) -> None:
    router = GatewayRouter(workspace)
    assert isinstance(router, TrafficRouter)
    with pytest.raises(BackendError, match="no gateway runs"):
        router.observed()
    with gateway_process(workspace):
        assert router.observed().epoch == 0
        check_router(router, sample_table(1))
        champion = sample_table(9).arms[0]
        with pytest.raises(ConfigError, match="sum to"):
            router.apply(RoutingTable(service_id="s", epoch=9, salt="", arms=(champion,)))
        with pytest.raises(BackendError, match="503"):
            router.probe("a" * 64, "nobody listens there", 1)
    with pytest.raises(BackendError):
        router.observed()
    router.close()


def test_a_taken_port_and_a_second_gateway_end_in_one_line(workspace: Workspace) -> None:
    with gateway_process(workspace) as info:
        second = _start_gateway(workspace)
        assert second.returncode == 2
        assert "a gateway of this workspace runs already" in second.stderr
        assert info.url is not None
        port = info.url.rpartition(":")[2]
        other = Workspace(workspace.root / "other")
        other.root.mkdir()
        other.config_file.write_text(f"service: other\nserving: {{gateway: {{port: {port}}}}}\n")
        taken = _start_gateway(other)
    assert taken.returncode == 2
    assert taken.stderr.splitlines()[0].startswith(f"gateway: cannot listen on 127.0.0.1:{port}")
    assert "Traceback" not in taken.stderr


def _start_gateway(workspace: Workspace) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *(sys.executable, "-m", "intonaco.serving.gateway.main"),
            *("--workspace", str(workspace.root)),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_pickle_ends_the_worker_with_the_reason_in_its_status(workspace: Workspace) -> None:
    folder = workspace.root / "pipeline"
    folder.mkdir()
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    release = fixtures_tiny.add_release(workspace, folder)
    pickle = workspace.resolve(release.path) / "unet.bin"
    pickle.write_bytes(b"\x80\x04.")
    backend = LocalServingBackend(workspace, Serving())
    try:
        backend.deploy(release)
        status = until(lambda: backend.status(release.release_id), lambda s: bool(s.error))
        assert not status.ready
        assert "unet.bin is a pickle checkpoint" in status.error
    finally:
        backend.retire(release.release_id)
        backend.close()
