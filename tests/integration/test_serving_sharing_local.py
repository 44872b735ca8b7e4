"""The local backend with ``share_base``: one process, several releases, each with a life of its
own."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.fixtures_serving import gateway_process, until
from tests.fixtures_sharing import Made, make

from intonaco.codec import decode, encode
from intonaco.config import Serving
from intonaco.executor.service import smoke_test
from intonaco.messages import PROTOCOL_HEADER, PROTOCOL_VERSION, GenerateRequest, WorkerError
from intonaco.releases import base_id
from intonaco.serving import worker_processes
from intonaco.serving.client import GatewayRouter
from intonaco.serving.local import LocalServingBackend
from intonaco.serving.worker.main import arguments
from intonaco.testing.serving import check_serving_backend
from intonaco.types import Arm, ArmRole, Release, RoutingTable, ServingStatus
from intonaco.workspace import Workspace

# The libraries' own deprecations, e.g. of scheduler settings.
pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::DeprecationWarning:diffusers"
)

SHARE = Serving(share_base=True, faults={"a": ("errors:after=1000", "errors:after=0")})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("sharing"))


@pytest.fixture
def backend(made: Made) -> Iterator[LocalServingBackend]:
    backend = LocalServingBackend(made.workspace, SHARE)
    try:
        yield backend
    finally:
        for release in (*made.sharing, made.bad, made.fused):
            backend.retire(release.release_id)
        backend.close()


def up(backend: LocalServingBackend, release: Release) -> ServingStatus:
    rid = release.release_id
    seen = until(lambda: backend.status(rid), lambda s: s.ready or bool(s.error))
    assert seen.ready, seen.error
    assert seen.attested == rid
    return seen


def ask(url: str, release: Release) -> httpx.Response:
    request = GenerateRequest(
        request_id="r",
        prompt="a two",
        seed=7,
        steps=2,
        guidance_scale=1.5,
        width=32,
        height=32,
        release=release.release_id,
    )
    headers = {PROTOCOL_HEADER: PROTOCOL_VERSION}
    content = encode(request)
    return httpx.post(f"{url}/generate", content=content, headers=headers, timeout=30)


def test_the_life_of_a_shared_worker(made: Made, backend: LocalServingBackend) -> None:
    """One test, since each part goes on from the one before."""
    base, a = made.base, made.a
    name = f"worker-base-{base_id(base.serving) or '':.10}"

    # The second finds a worker that has not announced itself yet.
    backend.deploy(a)
    backend.deploy(base)
    first, second = up(backend, a), up(backend, base)
    assert first.urls == second.urls
    assert first.facts["pid"] == second.facts["pid"]
    assert (first.facts["deployments"], second.facts["deployments"]) == (1, 1)
    assert [p.stem for p in made.workspace.run.glob("worker-*.json")] == [name]
    (url,) = first.urls
    assert smoke_test(url, a) > 0
    assert ask(url, a).content != ask(url, base).content

    # A gateway tells them apart at one URL.
    pictures = through_a_gateway(made, url)
    assert pictures == [ask(url, base).content, ask(url, a).content]

    # A whole life of a third leaves the others as they are.
    check_serving_backend(backend, made.b)
    assert backend.status(a.release_id) == first
    assert backend.status(base.release_id) == second
    refused = ask(url, made.b)
    assert (refused.status_code, decode(WorkerError, refused.content).code) == (409, "release")

    # One that cannot be loaded whole is refused by name, and the others go on.
    backend.deploy(made.bad)
    bad = until(lambda: backend.status(made.bad.release_id), lambda s: bool(s.error))
    assert not bad.ready
    assert "tensors" in bad.error
    backend.deploy(made.bad)
    assert backend.status(made.bad.release_id).error == bad.error, "whoever asks again sees it"
    backend.retire(made.bad.release_id)
    assert backend.status(a.release_id).ready

    # Draining is one release's.
    backend.drain(a.release_id)
    assert not backend.status(a.release_id).ready
    assert ask(url, a).status_code == 503
    assert ask(url, base).status_code == 200

    # Whoever comes after the controller adopts both.
    other = LocalServingBackend(made.workspace, Serving())
    for release in (a, base):
        other.deploy(release)
        assert up(other, release).urls == (url,)
    other.close()

    # kill -9 takes both; each is brought back by a deployment of its own.
    os.kill(int(str(first.facts["pid"])), signal.SIGKILL)
    for release in (a, base):
        seen = until(partial(backend.status, release.release_id), lambda s: bool(s.error))
        assert not seen.ready
        assert f"{name} ended" in seen.error
    backend.deploy(base)
    (url,) = up(backend, base).urls
    assert not backend.status(a.release_id).ready
    assert ask(url, a).status_code == 409
    backend.deploy(a)
    back = up(backend, a)
    assert back.urls == (url,)
    assert (back.facts["deployments"], back.facts["fault"]) == (2, "errors:after=0")
    assert ask(url, a).status_code == 500, "the second deployment's fault"
    assert ask(url, base).status_code == 200, "and nobody else's"

    # The process ends with the last release.
    backend.retire(base.release_id)
    assert backend.status(base.release_id).error == "not deployed"
    assert backend.status(a.release_id).ready
    backend.retire(a.release_id)
    assert made.workspace.process(name) is None


def through_a_gateway(made: Made, url: str) -> list[bytes]:
    """The probe's picture of the base, the champion, and of ``a``, its challenger."""
    workspace = made.workspace
    workspace.config_file.write_text(
        "service: tiny\n"
        "model: {name: tiny, generation: {steps: 2, guidance_scale: 1.5, width: 32, height: 32}}\n"
        "serving: {gateway: {port: 0}}\n"
    )
    arms = (("champion", ArmRole.CHAMPION, made.base), ("challenger:a", ArmRole.CHALLENGER, made.a))
    table = RoutingTable(
        service_id="tiny",
        epoch=1,
        salt="s",
        arms=tuple(
            Arm(name=n, role=r, release=release.release_id, urls=(url,), weight=w)
            for (n, r, release), w in zip(arms, (1.0, 0.0), strict=True)
        ),
    )
    with gateway_process(workspace) as gateway:
        router = GatewayRouter(workspace)
        try:
            router.apply(table)
            assert httpx.get(f"{gateway.url}/readyz").status_code == 200
            return [router.probe(release.release_id, "a two", 7) for _, _, release in arms]
        finally:
            router.close()


def test_who_gets_a_worker_of_its_own(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Any] = []

    def spawn(workspace: Workspace, module: str, argv: Sequence[str], **_: Any) -> int:
        started.append(arguments(list(argv)))
        return os.getpid()

    monkeypatch.setattr(worker_processes, "spawn", spawn)
    workspace = Workspace(tmp_path)
    backend = LocalServingBackend(workspace, SHARE)
    everybody = (*made.sharing, made.fused, made.other, made.options)
    for release in everybody:
        backend.deploy(release)
    backend.close()
    shared, fused, other, options = started
    assert shared.share
    assert shared.name == f"worker-base-{base_id(made.base.serving) or '':.10}"
    assert (fused.share, fused.name) == (False, f"worker-{made.fused.short}")
    assert other.share
    assert options.share
    assert len({s.name for s in started}) == 4

    started.clear()
    backend = LocalServingBackend(Workspace(tmp_path / "not"), Serving())
    for release in everybody:
        backend.deploy(release)
    backend.close()
    assert [s.share for s in started] == [False] * 6
    assert [s.name for s in started] == [f"worker-{r.short}" for r in everybody]
