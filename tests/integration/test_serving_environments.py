"""Workers in environments of their own: really built, really started."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import httpx
import psutil
import pytest
from tests import fixtures_tiny
from tests.fixtures_environments import PEFT, lock_with, offline, write_wheel
from tests.fixtures_serving import until

from intonaco.codec import as_json
from intonaco.config import Serving
from intonaco.environments import EnvironmentStore, Lock, State, capture, environment_versions
from intonaco.environments.lock import normal
from intonaco.errors import BackendError, Conflict
from intonaco.messages import PROTOCOL_HEADER, PROTOCOL_VERSION, GenerateRequest
from intonaco.releases import ReleaseStore, file_digest, read_serving_spec
from intonaco.serving.local import LocalServingBackend
from intonaco.types import Provenance, Release, ServingStatus
from intonaco.workspace import Workspace


def release_in(workspace: Workspace, folder: Path, lock: Lock) -> Release:
    environment = EnvironmentStore(workspace).keep(lock)
    spec = read_serving_spec(folder, generation=fixtures_tiny.GENERATION, environment=environment)
    return ReleaseStore(workspace, "tiny").add(folder, spec, Provenance(created_at=1.0))


__all__ = ["offline"]  # a fixture


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fixtures_tiny.save(tmp_path_factory.mktemp("tiny") / "pipeline")


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "w")


@pytest.fixture
def backend(workspace: Workspace) -> Iterator[LocalServingBackend]:
    made = LocalServingBackend(workspace, Serving())
    yield made
    for release in ReleaseStore(workspace, "tiny").list():
        made.retire(release.release_id)
    made.close()


def ready(backend: LocalServingBackend, release: Release) -> ServingStatus:
    seen = until(lambda: backend.status(release.release_id), lambda s: s.ready or bool(s.error))
    assert seen.ready, seen.error
    return seen


def picture(url: str) -> bytes:
    request = GenerateRequest(
        request_id="r",
        prompt="a handwritten two",
        seed=7,
        steps=2,
        guidance_scale=1.5,
        width=32,
        height=32,
    )
    headers = {PROTOCOL_HEADER: PROTOCOL_VERSION}
    answer = httpx.post(f"{url}/generate", json=as_json(request), headers=headers, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.content


def test_a_worker_runs_in_a_layer_that_was_built_while_nobody_waited(
    workspace: Workspace, backend: LocalServingBackend, pipeline: Path, offline: Path
) -> None:
    write_wheel(offline, "peft", PEFT)
    release = release_in(workspace, pipeline, lock_with(peft=PEFT))
    backend.deploy(release)
    first = backend.status(release.release_id)
    assert (first.ready, first.error) == (False, "")
    assert first.facts["state"] == "building"
    backend.deploy(release)  # adopts what builds, starts no second
    assert first.facts["deployments"] == 1

    status = ready(backend, release)
    assert status.attested == release.release_id
    assert status.facts["versions"] == {**environment_versions(), "peft": PEFT}
    assert picture(status.urls[0])[:4] == b"\x89PNG"

    store = EnvironmentStore(workspace)
    standing = store.standing(release.serving.environment)
    assert standing.state is State.BUILT
    assert standing.facts["kind"] == "layer"
    assert standing.facts["installed"] == ["peft"]
    info = workspace.process(f"worker-{release.short}")
    assert info is not None
    command = psutil.Process(info.pid).cmdline()
    assert command[0] == standing.python
    assert status.facts["pid"] == info.pid
    with pytest.raises(Conflict, match="is in use by process"):
        store.remove(release.serving.environment)

    backend.retire(release.release_id)
    assert workspace.process(info.name) is None
    assert store.remove(release.serving.environment) > 0


def test_a_build_that_fails_is_an_error_of_the_status(
    workspace: Workspace, backend: LocalServingBackend, pipeline: Path, offline: Path
) -> None:
    release = release_in(workspace, pipeline, lock_with(peft=PEFT))
    backend.deploy(release)
    status = until(lambda: backend.status(release.release_id), lambda s: bool(s.error))
    assert not status.ready
    assert "could not be built" in status.error
    assert f"peft=={PEFT}" in status.error  # in the installer's own words
    backend.retire(release.release_id)
    backend.deploy(release)  # at once again: told, not tried
    again = backend.status(release.release_id)
    assert "could not be built" in again.error
    assert "tried again" in again.error
    assert again.facts["deployments"] == 1
    backend.retire(release.release_id)
    assert backend.status(release.release_id).error == "not deployed"


def test_what_is_installed_must_be_what_is_pinned(workspace: Workspace, offline: Path) -> None:
    write_wheel(offline, "peft", f"{PEFT}+local")  # fits the pin, and is another version
    store = EnvironmentStore(workspace)
    away = store.keep(lock_with(peft=PEFT))
    with pytest.raises(BackendError, match=rf"peft {PEFT}, here {PEFT}\+local"):
        store.build(away)
    assert store.standing(away).state is State.FAILED


def test_hashes_are_kept_to(workspace: Workspace, offline: Path) -> None:
    write_wheel(offline, "peft", PEFT)
    file = next(offline.iterdir())
    plain, store = lock_with(peft=PEFT), EnvironmentStore(workspace)

    def hashed(of_peft: str) -> Lock:
        nothing = ("sha256:" + "0" * 64,)  # of what is here already and not installed again
        return replace(plain, hashes=dict.fromkeys(plain.pins, nothing) | {"peft": (of_peft,)})

    away = store.keep(hashed("sha256:" + "1" * 64))
    with pytest.raises(BackendError, match="could not be built"):
        store.build(away)
    assert "DO NOT MATCH THE HASHES" in "".join(
        f.read_text() for f in workspace.environments.glob("*/*.log")
    )
    store.remove(away, lock=True)
    assert store.keep(hashed(f"sha256:{file_digest(file)}")) == away
    assert store.build(away).exists()


def test_a_refused_release_says_why(workspace: Workspace, pipeline: Path) -> None:
    release = release_in(workspace, pipeline, lock_with(peft=PEFT))
    backend = LocalServingBackend(workspace, Serving(environments="refuse"))
    backend.deploy(release)
    status = backend.status(release.release_id)
    assert f"peft {PEFT}, here" in status.error
    assert "serving.environments is 'refuse'" in status.error
    backend.close()


@pytest.fixture
def silent_index() -> Iterator[str]:
    """An index that takes connections and never answers."""
    with closing(socket.create_server(("127.0.0.1", 0), backlog=64)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/simple"


def test_whoever_is_killed_a_build_is_never_done_twice_at_once(
    workspace: Workspace,
    backend: LocalServingBackend,
    pipeline: Path,
    offline: Path,
    silent_index: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", silent_index)
    release = release_in(workspace, pipeline, lock_with(peft=PEFT))
    folder = workspace.environments.resolve() / release.serving.environment
    store = EnvironmentStore(workspace)

    def installers() -> list[psutil.Process]:
        return [
            p
            for p in psutil.process_iter(["cmdline"])
            if "requirements.txt" in str(p.info["cmdline"])
            and str(folder) in str(p.info["cmdline"])
        ]

    def state() -> State:
        return store.standing(release.serving.environment).state

    # Retired while it builds: the installer ends with the process that would become the worker.
    backend.deploy(release)
    until(installers, bool)
    assert state() is State.BUILDING
    backend.retire(release.release_id)
    until(installers, lambda found: not found)
    until(state, lambda s: s is State.ABSENT)

    # Killed: the installer that goes on still keeps others away.
    backend.deploy(release)
    until(installers, bool)
    launcher = next(
        p
        for p in psutil.process_iter(["cmdline"])
        if "intonaco.environments.launch" in str(p.info["cmdline"])
        and release.serving.environment in str(p.info["cmdline"])
    )
    os.kill(launcher.pid, signal.SIGKILL)
    status = until(lambda: backend.status(release.release_id), lambda s: bool(s.error))
    assert "ended" in status.error
    assert state() is State.BUILDING

    def kill() -> int:
        """pip starts a second process: none of the two may be overlooked."""
        found = installers()
        for process in found:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        return len(found)

    until(kill, lambda found: not found)
    until(state, lambda s: s is State.ABSENT)

    # And one that takes too long is ended and says so.
    hasty = EnvironmentStore(workspace, timeout_s=3.0)
    with pytest.raises(BackendError, match="it took too long"):
        hasty.build(release.serving.environment)
    until(installers, lambda found: not found)


CLOSURE = """
import json, sys
from importlib import metadata
from importlib.machinery import PathFinder
allowed = set(json.loads(sys.argv[1]))
owners = metadata.packages_distributions()
hidden = {top for top, names in owners.items() if not {n.lower() for n in names} & allowed}

class Only:
    # As the path's own finder in an environment that holds nothing else.

    @staticmethod
    def find_spec(name, path=None, target=None):
        top = name.partition(".")[0]
        return None if top in hidden - {"intonaco"} else PathFinder.find_spec(name, path, target)

    @staticmethod
    def find_distributions(context):
        found = PathFinder.find_distributions(context)
        return (d for d in found if d.metadata["Name"].lower() in allowed)

sys.meta_path[sys.meta_path.index(PathFinder)] = Only
import intonaco.serving.worker.main, intonaco.serving.worker.app
from diffusers import StableDiffusionPipeline
from transformers import CLIPTextModel, CLIPTokenizer
print("pytest" in hidden, "mlflow" in hidden, "torch" in hidden)
"""


def test_a_worker_needs_nothing_that_its_lock_leaves_out() -> None:
    spelled = {
        d.metadata["Name"].lower()
        for d in metadata.distributions()
        if normal(d.metadata["Name"]) in capture().pins
    }
    done = subprocess.run(
        [sys.executable, "-c", CLOSURE, json.dumps(sorted(spelled))],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True", "True", "False"]


def _reachable() -> bool:
    try:
        socket.create_connection(("pypi.org", 443), timeout=5).close()
    except OSError:
        return False
    return True


@pytest.mark.slow
def test_two_versions_of_diffusers_serve_at_once(
    workspace: Workspace, backend: LocalServingBackend, pipeline: Path
) -> None:
    """Needs a package index, and says so."""
    if not _reachable():
        pytest.skip("pypi.org cannot be reached")
    here = environment_versions()["diffusers"]
    there = "0.42.0" if here != "0.42.0" else "0.41.0"
    champion = fixtures_tiny.add_release(workspace, pipeline)
    challenger = release_in(workspace, pipeline, lock_with(diffusers=there))
    started = time.monotonic()
    backend.deploy(champion)
    backend.deploy(challenger)
    for release, version in ((champion, here), (challenger, there)):
        status = ready(backend, release)
        assert status.attested == release.release_id
        assert status.facts["versions"] == {**environment_versions(), "diffusers": version}
        print(f"{version} ready after {time.monotonic() - started:.0f} s")
    both = [backend.status(r.release_id) for r in (champion, challenger)]
    pictures = [picture(s.urls[0]) for s in both]
    assert all(s.ready for s in both)
    assert [p[:4] for p in pictures] == [b"\x89PNG"] * 2
    assert both[0].facts["pid"] != both[1].facts["pid"]

    # Started here all the same, it attests what is there, and that is another release.
    backend.retire(challenger.release_id)
    careless = LocalServingBackend(workspace, Serving(environments="ignore"))
    careless.deploy(challenger)
    seen = until(lambda: careless.status(challenger.release_id), lambda s: bool(s.error))
    careless.close()
    assert (seen.ready, seen.attested) == (False, champion.release_id)
    assert seen.error == f"attests {champion.short}"
