"""What an environment is, how it is to be built, and where a worker is started."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from typer.testing import CliRunner

from intonaco.cli.main import app
from intonaco.codec import digest
from intonaco.environments import (
    EnvironmentStore,
    Lock,
    State,
    Way,
    capture,
    environment_lock,
    environment_versions,
)
from intonaco.environments.build import MARKER, Build, Tools, plan, variables
from intonaco.environments.lock import (
    WORKER_LIKES,
    WORKER_NEEDS,
    WORKER_TRACES,
    difference,
    normal,
    parse,
)
from intonaco.environments.store import RETRY_S
from intonaco.errors import BackendError, ConfigError, Conflict, IntonacoError, NotFound
from intonaco.releases import ReleaseStore, read_serving_spec
from intonaco.types import Provenance
from intonaco.workspace import Workspace

HASH = "sha256:" + "a" * 64
HERE = capture()


def other(**pins: str) -> Lock:
    """This interpreter's lock with some pins changed."""
    return HERE.replaced(Lock(python=HERE.python, pins=pins))


@pytest.fixture
def store(tmp_path: Path) -> EnvironmentStore:
    return EnvironmentStore(Workspace(tmp_path))


# ------------------------------------------------------------------------------------ locks


def test_the_captured_lock_is_this_environment_and_holds_no_tools() -> None:
    assert HERE.versions == environment_versions()
    assert HERE.digest == environment_lock() == digest(dict(environment_versions()))
    assert {*WORKER_NEEDS, *WORKER_LIKES, "tokenizers", "pydantic-core", "anyio"} <= set(HERE.pins)
    assert {*WORKER_TRACES, "opentelemetry-sdk"} <= set(HERE.pins)
    assert not {"pytest", "ruff", "mypy", "mlflow-skinny", "intonaco"} & set(HERE.pins)


def test_a_lock_begins_at_all_that_the_worker_extra_names() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    extra = {normal(Requirement(x).name) for x in project["optional-dependencies"]["worker"]}
    core = {normal(Requirement(x).name) for x in project["dependencies"]}
    assert extra <= {*WORKER_NEEDS, *WORKER_LIKES}
    assert {*WORKER_NEEDS, *WORKER_LIKES} <= extra | core


def test_only_what_decides_an_image_changes_the_id() -> None:
    assert other(starlette="0.0.1").digest == HERE.digest
    assert other(diffusers="0.0.1").digest != HERE.digest
    assert replace(HERE, python="3.12.1").digest != HERE.digest
    without = {n: v for n, v in HERE.pins.items() if n != "peft"}
    assert replace(HERE, pins=without).digest != HERE.digest


def test_a_lock_is_a_requirements_file_and_comes_back_from_it() -> None:
    assert parse(HERE.text(), source="x") == HERE
    hashed = Lock(python="3.11.7", pins={"torch": "2.0"}, hashes={"torch": (HASH,)})
    assert parse(hashed.text(), source="x", whole=False) == hashed
    compiled = f"""
    # made by some compiler
    Torch[opt]==2.0 \\
        --hash={HASH} \\
        --hash=sha512:{"b" * 128}
        # via -r all.in
    pillow==1.0 ; python_version < "3" --hash={HASH}
    numpy==2.0 ; python_full_version >= "3.11.2"  --hash={HASH}  # why
    """
    found = parse(compiled, source="x", python="3.11.7", whole=False)
    assert found.pins == {"torch": "2.0", "numpy": "2.0"}
    assert found.hashes == {"torch": (HASH, "sha512:" + "b" * 128), "numpy": (HASH,)}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("torch>=2", "line 1: torch>=2 is not exact"),
        ("\ntorch==2.*", "line 2: torch==2.* is not exact"),
        ("torch", "is not exact"),
        ("torch @ https://x.invalid/t.whl", "is not exact"),
        ("--index-url https://x.invalid", "--index-url is an option"),
        ("-r other.txt", "-r is an option"),
        ("torch==2.0\ntorch==2.1", "line 2: torch is pinned to 2.0 already"),
        ("tor ch", "is no NAME==VERSION"),
        (f"torch==2.0 --hash={HASH}\nnumpy==2.0", "no hash of numpy"),
        ("# intonaco environment lock, python 2.7\n", "no Python version"),
        ("torch==2.0", "no pin of diffusers, fsspec"),
    ],
)
def test_what_is_no_lock_is_refused_with_its_line(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=r"^file: ") as caught:
        parse(text, source="file")
    assert says in str(caught.value)


def test_pins_with_and_without_hashes_do_not_mix() -> None:
    hashed = Lock(python="3.11.7", pins={"torch": "2.0"}, hashes={"torch": (HASH,)})
    with pytest.raises(ConfigError, match="one lock has hashes"):
        HERE.replaced(hashed)


def test_a_difference_in_words() -> None:
    assert difference({"a": "1", "b": "1"}, {"a": "2", "c": "3"}) == (
        "a 1, here 2; b 1, here absent; c absent, here 3"
    )


# ------------------------------------------------------------------------------------ plans


def planned(lock: Lock, *, layers: bool = True, prefix: str = "/base") -> Build:
    return plan(
        lock, layers=layers, here=environment_versions(), there=dict(HERE.pins), prefix=prefix
    )


def test_a_layer_installs_only_what_differs() -> None:
    build = planned(other(diffusers="0.1", starlette="0.2"))
    assert (build.kind, build.install, build.base) == ("layer", ("diffusers", "starlette"), "/base")


@pytest.mark.parametrize(
    ("lock", "layers", "reason"),
    [
        (other(diffusers="0.1"), False, "layers are switched off"),
        (replace(HERE, python="3.12.1"), True, "python 3.12.1"),
        (other(torch="2.0"), True, "torch 2.0, here"),
        (
            replace(HERE, pins={n: v for n, v in HERE.pins.items() if n != "peft"}),
            True,
            "the lock has no peft",
        ),
    ],
)
def test_where_a_layer_would_not_be_sound_all_is_installed(
    lock: Lock, layers: bool, reason: str
) -> None:
    build = planned(lock, layers=layers)
    assert build.kind == "full"
    assert build.install == tuple(sorted(lock.pins))
    assert build.reason.startswith(reason)


def test_another_base_or_other_packages_in_it_make_another_build() -> None:
    lock = other(diffusers="0.1")
    changed = plan(
        lock,
        layers=True,
        here=environment_versions(),
        there={**HERE.pins, "anyio": "0.1"},
        prefix="/base",
    )
    keys = [planned(lock).key, planned(lock, prefix="/b").key, changed.key]
    assert len({*keys, planned(lock, layers=False).key}) == 4
    assert planned(lock).key == keys[0]
    assert changed.install == ("anyio", "diffusers")


def test_uv_is_used_where_it_is_and_pip_elsewhere(tmp_path: Path) -> None:
    uv = Tools(uv="/bin/uv", pip=False, version="3.11.7", interpreter="/py")
    pip = Tools(uv=None, pip=True, version="3.11.7", interpreter="/py")
    none = Tools(uv=None, pip=False, version="3.11.7", interpreter="/py")
    file, python = tmp_path / "r.txt", str(tmp_path / "bin" / "python")
    assert uv.install(tmp_path, file)[:3] == ["/bin/uv", "pip", "install"]
    assert pip.install(tmp_path, file)[:5] == ["/py", "-m", "pip", "--python", python]
    for tools in (uv, pip):
        assert tools.install(tmp_path, file)[-3:] == ["--no-deps", "-r", str(file)]
        assert tools.create(tmp_path, "3.11.7")[:3] == ["/py", "-m", "venv"]
    assert uv.create(tmp_path, "3.12.1")[-3:] == ["--python", "3.12.1", str(tmp_path)]
    with pytest.raises(BackendError, match="neither uv nor pip"):
        none.install(tmp_path, file)
    with pytest.raises(BackendError, match=r"Python 3\.99\.1, and this machine has none"):
        none.create(tmp_path, "3.99.1")


def test_a_process_of_an_environment_finds_our_code_and_nothing_else_of_ours(
    store: EnvironmentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/mine")
    monkeypatch.setenv("PYTHONHOME", "/mine")
    monkeypatch.setenv("PIP_TARGET", "/mine")
    code = store.code()
    assert store.code() == code
    assert [p.name for p in code.iterdir()] == ["intonaco"]
    assert (code / "intonaco" / "environments").is_dir()
    found = variables(code)
    assert found["PYTHONPATH"] == str(code)
    assert not {"PYTHONHOME", "PIP_TARGET"} & set(found)


# ------------------------------------------------------------------------------------ the store


def built(store: EnvironmentStore, environment: str) -> Path:
    """A marker as a build writes it."""
    folder = store.workspace.environments.resolve() / environment / store.plan(environment).key
    folder.mkdir(parents=True)
    facts = {"kind": "layer", "bytes": 7, "built_at": 5.0}
    (folder / MARKER).write_text(json.dumps(facts))
    return folder


def test_the_ways_to_start_a_worker(store: EnvironmentStore) -> None:
    here, lock = environment_lock(), other(diffusers="0.1")
    away = lock.digest

    def choose(environment: str, mode: str = "build", now: float = 0.0) -> tuple[Way, str]:
        choice = store.choose(environment, mode=mode, now=now)
        return choice.way, choice.text

    assert choose(here) == choose("") == choose(away, "ignore") == (Way.HERE, "")
    assert choose(here, "refuse")[0] is Way.HERE
    way, text = choose(away)
    assert way is Way.REFUSED
    assert "nobody has given the lock" in text
    assert choose(away, "refuse")[0] is Way.REFUSED

    assert store.keep(lock) == away
    assert store.lock(away) == lock
    way, text = choose(away, "refuse")
    assert way is Way.REFUSED
    assert f"diffusers 0.1, here {HERE.pins['diffusers']}" in text
    assert store.standing(away).state is State.ABSENT
    choice = store.choose(away, mode="build", now=0.0)
    assert choice.way is Way.BUILD
    assert choice.command[1:3] == ("-m", "intonaco.environments.launch")

    folder = built(store, away)
    assert store.standing(away).state is State.BUILT
    choice = store.choose(away, mode="build", now=0.0)
    assert choice.way is Way.BUILT
    assert choice.command == (str(folder / "bin" / "python"), "-P", "-s", "-m")
    assert choice.variables["PYTHONPATH"] == str(store.code())


def test_a_failed_build_is_told_and_not_tried_again_at_once(store: EnvironmentStore) -> None:
    away = store.keep(other(diffusers="0.1"))
    nobody = Tools(uv=None, pip=False)
    with pytest.raises(BackendError, match="neither uv nor pip"):
        store.build(away, tools=nobody)
    standing = store.standing(away)
    assert standing.state is State.FAILED
    soon = store.choose(away, mode="build", now=standing.at + 1)
    assert soon.way is Way.REFUSED
    assert "neither uv nor pip" in soon.text
    assert f"intonaco environment build {away[:10]}" in soon.text
    late = store.choose(away, mode="build", now=standing.at + RETRY_S + 1)
    assert late.way is Way.BUILD


def test_a_layer_and_a_full_build_stand_apart(store: EnvironmentStore) -> None:
    away = store.keep(other(diffusers="0.1"))
    built(store, away)
    full = EnvironmentStore(store.workspace, base="none")
    assert full.standing(away).state is State.ABSENT
    folder = built(full, away)
    assert store.sizes(away) == 14
    assert store.remove_outdated(away) > 0
    assert not folder.exists()
    assert store.standing(away).state is State.BUILT


def test_spare_builds_are_those_that_no_release_would_use(store: EnvironmentStore) -> None:
    away, also = (store.keep(other(diffusers=v)) for v in ("0.1", "0.2"))
    layer, of_another = built(store, away), built(store, also)
    full = built(EnvironmentStore(store.workspace, base="none"), away)
    resolved = [p.resolve() for p in (layer, of_another, full)]
    assert sorted(store.spare([])) == sorted(resolved)
    assert sorted(store.spare([away])) == sorted(resolved[1:])
    assert store.spare([away, also]) == resolved[2:]
    interpreter = of_another / "bin" / "python"
    interpreter.parent.mkdir()
    interpreter.symlink_to(sys.executable)
    with subprocess.Popen([interpreter, "-c", "input()"], stdin=subprocess.PIPE) as running:
        assert of_another.resolve() not in store.spare([away])
        assert store.remove_build(of_another.resolve()) is None
        assert running.stdin is not None
        running.stdin.write(b"\n")
    assert of_another.resolve() in store.spare([away])
    assert store.size(resolved[1]) == store.remove_build(resolved[1])
    assert store.remove_build(resolved[1]) is None
    assert store.standing(also).state is State.ABSENT, "its lock stays"


def test_removing(store: EnvironmentStore) -> None:
    away, also = (store.keep(other(diffusers=v)) for v in ("0.1", "0.2"))
    built(store, away)
    assert store.unused([also]) == [away]
    assert store.find(away[:8]) == away
    with pytest.raises(NotFound):
        store.find("nothing")
    with pytest.raises(Conflict):
        store.find("")
    assert store.remove(away) > 0
    assert store.standing(away).state is State.ABSENT
    store.remove(away, lock=True)
    assert store.standing(away).state is State.UNKNOWN
    assert store.remove(away) == 0
    assert store.list() == sorted([also, environment_lock()])


def test_a_release_keeps_its_lock_and_gives_it_back(tmp_path: Path) -> None:
    folder = tmp_path / "p"
    folder.mkdir()
    (folder / "model_index.json").write_text('{"_class_name": "P"}')
    workspace = Workspace(tmp_path / "w")
    releases, store = ReleaseStore(workspace, "s"), EnvironmentStore(workspace)
    here = releases.add(
        folder, read_serving_spec(folder, generation={}), Provenance(created_at=0.0)
    )
    assert store.lock(here.serving.environment) == HERE
    beside = workspace.releases / here.release_id / "lock.txt"
    assert parse(beside.read_text(), source="x") == HERE

    lock = other(diffusers="0.1")
    spec = read_serving_spec(folder, generation={}, environment=store.keep(lock))
    away = releases.add(folder, spec, Provenance(created_at=0.0))
    assert away.serving.environment == lock.digest
    assert away.release_id != here.release_id
    beside = workspace.releases / away.release_id / "lock.txt"

    other_place = EnvironmentStore(Workspace(tmp_path / "another"))
    other_place.adopt("f" * 64, beside)  # not the lock of that id
    other_place.adopt(lock.digest, beside)
    assert other_place.list() == sorted([lock.digest, environment_lock()])


# ------------------------------------------------------------------------------------ commands


def invoke(*arguments: str) -> str:
    result = CliRunner().invoke(app, [*arguments], catch_exceptions=True)
    if isinstance(result.exception, IntonacoError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_the_commands(tmp_path: Path) -> None:
    (tmp_path / "intonaco.yaml").write_text("service: sample\n")
    place = ("-w", str(tmp_path))
    text = invoke("environment", "lock", *place)
    assert parse(text, source="x") == HERE

    said = json.loads(invoke("environment", "add", "--pin", "Diffusers==0.1", "--json", *place))
    away = said["environment"]
    assert away == other(diffusers="0.1").digest
    file = tmp_path / "lock.txt"
    file.write_text(other(diffusers="0.2").text())
    assert f"diffusers 0.2, here {HERE.pins['diffusers']}" in invoke(
        "environment", "add", str(file), *place
    )
    twice = json.loads(
        invoke("environment", "add", "--pin", "peft==0.1", "--base", away[:9], "--json", *place)
    )
    assert twice["versions"]["diffusers"] == "0.1"
    assert parse(invoke("environment", "lock", away[:9], *place), source="x") == other(
        diffusers="0.1"
    )
    rows = {
        r["environment"]: r for r in json.loads(invoke("environment", "list", "--json", *place))
    }
    assert {r["state"] for r in rows.values()} == {"here", "absent"}
    assert len(rows) == 4

    folder = tmp_path / "p"
    folder.mkdir()
    (folder / "model_index.json").write_text('{"_class_name": "P"}')
    release = ReleaseStore(Workspace(tmp_path), "sample").add(
        folder,
        read_serving_spec(folder, generation={}, environment=away),
        Provenance(created_at=time.time()),
    )
    built(EnvironmentStore(Workspace(tmp_path)), away)
    assert release.short in invoke("environment", "list", *place)
    with pytest.raises(Conflict, match=f"release {release.short} names environment"):
        invoke("environment", "remove", away[:9], *place)
    assert set(json.loads(invoke("environment", "remove", "--unused", "--json", *place))) == {
        *(e for e in rows if e != environment_lock())
    }
    assert EnvironmentStore(Workspace(tmp_path)).standing(away).state is State.BUILT
    invoke("environment", "remove", away[:9], "--force", *place)
    assert EnvironmentStore(Workspace(tmp_path)).standing(away).state is State.ABSENT
    for wrong in (["add"], ["add", str(file), "--pin", "a==1"], ["remove"]):
        with pytest.raises(ConfigError):
            invoke("environment", *wrong, *place)
