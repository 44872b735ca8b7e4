"""Real processes for tests, gateways and workers of tiny models, and waiting for them."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from tests import fixtures_tiny

from intonaco.config import load
from intonaco.messages import ProcessInfo
from intonaco.serving.client import GatewayRouter
from intonaco.serving.local import LocalServingBackend
from intonaco.types import Arm, ArmRole, Release, RoutingTable
from intonaco.workspace import Workspace

T = TypeVar("T")


def until(look: Callable[[], T], good: Callable[[T], bool], timeout_s: float = 120.0) -> T:
    """Look until it is good; fails the test if it never is."""
    end = time.monotonic() + timeout_s
    while not good(seen := look()):
        assert time.monotonic() < end, f"still {seen!r}"
        time.sleep(0.05)
    return seen


@contextmanager
def gateway_process(workspace: Workspace, name: str = "gateway") -> Iterator[ProcessInfo]:
    """A gateway of its own process, ended at the end unless the test ended it."""
    child = subprocess.Popen(
        [
            *(sys.executable, "-m", "intonaco.serving.gateway.main"),
            *("--workspace", str(workspace.root), "--name", name),
        ]
    )
    try:
        info = until(
            lambda: (child.poll(), workspace.process(name)),
            lambda s: s[0] is not None or (s[1] is not None and s[1].pid == child.pid),
        )[1]
        assert info is not None, f"{name} ended with {child.returncode}"
        yield info
    finally:
        child.terminate()
        try:
            child.wait(20)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait(20)


@contextmanager
def tiny_service(workspace: Workspace, config: str) -> Iterator[tuple[str, Release]]:
    """URL of a gateway, and its champion: a tiny model in a real worker."""
    workspace.root.mkdir()
    workspace.config_file.write_text(config)
    model = fixtures_tiny.save(workspace.root / "model", seed=0)
    release = fixtures_tiny.add_release(workspace, model)
    backend = LocalServingBackend(workspace, load(workspace.config_file).serving)
    try:
        backend.deploy(release)
        seen = until(lambda: backend.status(release.release_id), lambda s: s.ready or bool(s.error))
        assert seen.ready, seen.error
        champion = Arm(
            name="champion",
            role=ArmRole.CHAMPION,
            release=release.release_id,
            urls=seen.urls,
            weight=1.0,
        )
        with gateway_process(workspace) as info:
            router = GatewayRouter(workspace)
            router.apply(RoutingTable(service_id="tiny", epoch=1, salt="s", arms=(champion,)))
            router.close()
            assert info.url
            yield info.url, release
    finally:
        backend.retire(release.release_id)
        backend.close()
