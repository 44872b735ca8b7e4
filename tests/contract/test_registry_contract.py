"""The promises of the Registry seam, kept by the twin and by MLflow on SQLite."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from intonaco.codec import decode
from intonaco.errors import BackendError, NotFound
from intonaco.mlflow_client import connect
from intonaco.protocols import Registry
from intonaco.registry.mlflow import MlflowRegistry
from intonaco.registry.none import NullRegistry
from intonaco.testing.registry import MemoryRegistry, check_registry, sample_release
from intonaco.types import Release


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables, made once: it takes seconds."""
    path = tmp_path_factory.mktemp("mlflow") / "empty.db"
    connect(f"sqlite:///{path}")
    return path


@pytest.fixture
def mlflow_registry(migrated: Path, tmp_path: Path) -> MlflowRegistry:
    database = tmp_path / "mlflow.db"
    shutil.copy(migrated, database)
    return MlflowRegistry(f"sqlite:///{database}", "sample", tmp_path / "artifacts")


@pytest.fixture
def sample(tmp_path: Path) -> tuple[Release, Path]:
    folder = tmp_path / "pipeline"
    return sample_release(folder), folder


def test_twin_keeps_the_contract(sample: tuple[Release, Path]) -> None:
    registry = MemoryRegistry()
    assert isinstance(registry, Registry)
    check_registry(registry, *sample)


def test_mlflow_keeps_the_contract(
    mlflow_registry: MlflowRegistry, sample: tuple[Release, Path]
) -> None:
    assert isinstance(mlflow_registry, Registry)
    check_registry(mlflow_registry, *sample)


class _NewVersionEachTime(MemoryRegistry):
    def register(self, release: Release, folder: Path, tags: Any) -> str:
        super().register(release, folder, tags)
        self._calls = getattr(self, "_calls", 0) + 1
        return str(self._calls)


class _KeepsOldAlias(MemoryRegistry):
    def set_alias(self, alias: str, release_id: str | None) -> None:
        if alias not in self.aliases:
            super().set_alias(alias, release_id)


class _AcceptsUnknown(MemoryRegistry):
    def set_alias(self, alias: str, release_id: str | None) -> None:
        if release_id is not None:
            self.aliases[alias] = release_id


class _NewestFirst(MemoryRegistry):
    def history(self) -> Any:
        return list(super().history())[::-1]


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        (_NewVersionEachTime, "two versions"),
        (_KeepsOldAlias, "aliases in history"),
        (_AcceptsUnknown, "does not raise NotFound"),
        (_NewestFirst, "not oldest first"),
    ],
)
def test_check_finds_a_broken_registry(
    broken: Callable[[], Registry], complaint: str, sample: tuple[Release, Path]
) -> None:
    with pytest.raises(AssertionError, match=complaint):
        check_registry(broken(), *sample)


def test_mlflow_keeps_the_files_and_the_lineage(
    mlflow_registry: MlflowRegistry, sample: tuple[Release, Path], tmp_path: Path
) -> None:
    release, folder = sample
    mlflow_registry.register(release, folder, {"verdict": "pass"})
    entry = mlflow_registry.get(release.release_id)
    assert entry["tags"] == {
        "verdict": "pass",
        "intonaco.release_id": release.release_id,
        "intonaco.service": "sample",
        "intonaco.pipeline": "SamplePipeline",
        "intonaco.dataset_version": "d" * 64,
        "intonaco.training_job": "job-1",
    }

    client = connect(mlflow_registry.uri)
    run_id = client.get_model_version("sample", "1").run_id
    stored = Path(client.download_artifacts(run_id, "release", str(tmp_path)))
    assert decode(Release, (stored / "release.json").read_bytes()) == release
    original = {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    pipeline = stored / "pipeline"
    copied = {p.relative_to(pipeline): p.read_bytes() for p in pipeline.rglob("*") if p.is_file()}
    assert copied == original


def test_mlflow_takes_the_release_folder_too(
    mlflow_registry: MlflowRegistry, tmp_path: Path
) -> None:
    release = sample_release(tmp_path / "releases" / "r" / "pipeline")
    mlflow_registry.register(release, tmp_path / "releases" / "r", {})
    source = mlflow_registry.get(release.release_id)["source"]
    assert source.startswith("runs:/")
    client = connect(mlflow_registry.uri)
    run_id = source.removeprefix("runs:/").partition("/")[0]
    paths = {f.path for f in client.list_artifacts(run_id, "release")}
    assert paths == {"release/pipeline", "release/release.json"}


def test_mlflow_goes_on_after_a_kill_between_run_and_version(
    mlflow_registry: MlflowRegistry, sample: tuple[Release, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    release, folder = sample
    client = connect(mlflow_registry.uri)

    def killed(*_: object, **__: object) -> None:
        raise ConnectionError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(client, "create_model_version", killed)
        with pytest.raises(BackendError) as caught:
            mlflow_registry.register(release, folder, {})
    assert caught.value.retriable
    assert caught.value.backend == "mlflow"
    with pytest.raises(NotFound):
        mlflow_registry.get(release.release_id)

    assert mlflow_registry.register(release, folder, {}) == "1"
    experiment = client.get_experiment_by_name("sample-releases")
    assert len(client.search_runs([experiment.experiment_id])) == 1


def test_mlflow_registries_of_one_database_do_not_mix(
    mlflow_registry: MlflowRegistry, sample: tuple[Release, Path], tmp_path: Path
) -> None:
    release, folder = sample
    other = MlflowRegistry(mlflow_registry.uri, "other", tmp_path / "artifacts")
    mlflow_registry.register(release, folder, {})
    assert other.history() == []
    with pytest.raises(NotFound):
        other.set_alias("champion", release.release_id)


def test_a_second_process_sees_what_the_first_registered(
    mlflow_registry: MlflowRegistry, sample: tuple[Release, Path]
) -> None:
    release, folder = sample
    mlflow_registry.register(release, folder, {})
    mlflow_registry.set_alias("champion", release.release_id)
    again = MlflowRegistry(
        mlflow_registry.uri, mlflow_registry.model_name, mlflow_registry.artifacts
    )
    assert again.register(release, folder, {}) == "1"
    assert again.get(release.release_id)["aliases"] == ["champion"]


def test_mlflow_that_cannot_be_reached_is_a_backend_error(tmp_path: Path) -> None:
    not_a_database = tmp_path / "mlflow.db"
    not_a_database.write_text(json.dumps({"not": "a database"}) * 500)
    registry = MlflowRegistry(f"sqlite:///{not_a_database}", "sample", tmp_path / "artifacts")
    with pytest.raises(BackendError, match="MLflow registry: ") as caught:
        registry.history()
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_not_there_is_no_reason_to_try_again(
    mlflow_registry: MlflowRegistry, sample: tuple[Release, Path], tmp_path: Path
) -> None:
    with pytest.raises(BackendError, match="does not exist") as caught:
        mlflow_registry.register(sample[0], tmp_path / "gone", {})
    assert not caught.value.retriable


def test_mlflow_is_quiet(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    connect(f"sqlite:///{tmp_path / 'warm-up.db'}")
    capfd.readouterr()
    with caplog.at_level(logging.INFO):
        connect(f"sqlite:///{tmp_path / 'new.db'}")
    assert capfd.readouterr() == ("", "")
    assert [r for r in caplog.records if r.name.startswith(("alembic", "mlflow"))] == []


def test_null_registry_outlives_a_restart(sample: tuple[Release, Path]) -> None:
    release, folder = sample
    registry = NullRegistry()
    assert isinstance(registry, Registry)
    registry.set_alias("champion", release.release_id)  # registered by an earlier process
    assert registry.register(release, folder, {"verdict": "pass"}) == "1"
    assert registry.register(release, folder, {}) == "1"
    entry = registry.get(release.release_id)
    assert entry["aliases"] == ["champion"]
    assert entry["tags"]["verdict"] == "pass"
    registry.set_alias("champion", None)
    assert [e["aliases"] for e in registry.history()] == [[]]
    with pytest.raises(NotFound):
        registry.get("0" * 64)


def test_twin_can_be_down(sample: tuple[Release, Path]) -> None:
    registry = MemoryRegistry()
    registry.down = True
    with pytest.raises(BackendError) as caught:
        registry.register(*sample, {})
    assert caught.value.retriable
    registry.down = False
    registry.register(*sample, {})
    files = registry.published[sample[0].release_id]
    assert set(files) == {
        "model_index.json",
        "release.json",
        "unet/diffusion_pytorch_model.safetensors",
    }
