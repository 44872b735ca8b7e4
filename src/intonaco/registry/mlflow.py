"""The MLflow model registry, on SQLite in the workspace or on a server.

A release becomes one model version, whose source is the artifact folder ``release/`` of a run of
its own: ``release.json`` and ``pipeline/``. Aliases are projections: MLflow has no compare-and-set
on them, so the ledger decides and the controller asserts them again after a restart. No flavour is
logged, so nothing can be unpickled from here.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from intonaco.codec import encode
from intonaco.errors import BackendError, NotFound
from intonaco.mlflow_client import connect, is_server, quote
from intonaco.registry.entries import RELEASE_ID, release_tags
from intonaco.types import Json, Release

log = logging.getLogger(__name__)

_ARTIFACT = "release"
_PAGE = 1000
_PERMANENT = frozenset(  # asking again gives the same answer
    {
        "INVALID_PARAMETER_VALUE",
        "RESOURCE_ALREADY_EXISTS",
        "RESOURCE_DOES_NOT_EXIST",
        "PERMISSION_DENIED",
        "UNAUTHENTICATED",
        "BAD_REQUEST",
    }
)


class MlflowRegistry:
    """One registered model of MLflow.

    ``uri``: ``sqlite:///PATH``, another database or a server. ``artifacts``: folder for the copies
    of the release folders, where no server decides. Connects on first use.
    """

    def __init__(self, uri: str, model_name: str, artifacts: Path) -> None:
        self.uri = uri
        self.model_name = model_name
        self.artifacts = artifacts
        self._lock = threading.Lock()

    def register(self, release: Release, folder: Path, tags: Mapping[str, str]) -> str:
        """Publish a release. ``folder``: the pipeline folder, or the release folder that holds it.

        Idempotent by the tag ``intonaco.release_id``, also after a kill half-way: the run that was
        begun is found and filled again, then its version is made. Tags of a release that is there
        already are brought up to date. Raises BackendError.
        """
        wanted = release_tags(release, tags)
        with self._lock, self._backend() as client:
            version = self._find(client, release.release_id)
            if version is None:
                version = self._publish(client, release, folder, wanted)
                log.info(
                    "registered release %s as %s version %s",
                    release.short,
                    self.model_name,
                    version.version,
                    extra={"action": "registry.register", "release_id": release.release_id},
                )
            else:
                for name, value in wanted.items():
                    if version.tags.get(name) != value:
                        client.set_model_version_tag(
                            self.model_name, str(version.version), name, value
                        )
            return str(version.version)

    def get(self, release_id: str) -> Mapping[str, Json]:
        """Raises NotFound, BackendError."""
        with self._backend() as client:
            version = self._require(client, release_id)
            return _entry(version, self._aliases(client))

    def set_alias(self, alias: str, release_id: str | None) -> None:
        """Raises NotFound, BackendError."""
        with self._backend() as client:
            if release_id is not None:
                version = self._require(client, release_id)
                client.set_registered_model_alias(self.model_name, alias, str(version.version))
            elif alias in self._aliases(client):
                client.delete_registered_model_alias(self.model_name, alias)

    def history(self) -> Sequence[Mapping[str, Json]]:
        """Raises BackendError."""
        with self._backend() as client:
            aliases = self._aliases(client)
            versions = sorted(self._search(client), key=lambda v: int(v.version))
            return [_entry(version, aliases) for version in versions]

    # ---------------------------------------------------------------------------------- private

    @contextmanager
    def _backend(self) -> Iterator[Any]:
        try:
            yield connect(self.uri)
        except (NotFound, BackendError):
            raise
        except Exception as error:  # MLflow's own, SQLAlchemy's, requests', the disk's
            code = getattr(error, "error_code", "")
            raise BackendError(
                f"MLflow registry: {str(error).partition(chr(10))[0]}",
                backend="mlflow",
                retriable=code not in _PERMANENT,
            ) from error

    def _publish(self, client: Any, release: Release, folder: Path, tags: Mapping[str, str]) -> Any:
        run_id = self._run(client, release)
        pipeline = folder / "pipeline" if (folder / "pipeline").is_dir() else folder
        if not pipeline.is_dir():
            raise BackendError(
                f"release folder {folder} does not exist", backend="mlflow", retriable=False
            )
        client.log_artifacts(run_id, str(pipeline), f"{_ARTIFACT}/pipeline")
        client.log_text(run_id, encode(release), f"{_ARTIFACT}/release.json")
        client.set_terminated(run_id)
        if self._model(client) is None:
            client.create_registered_model(self.model_name)
        return client.create_model_version(
            self.model_name,
            # A file:// source works on SQLite and is refused through a server; this works on both.
            source=f"runs:/{run_id}/{_ARTIFACT}",
            run_id=run_id,
            tags=dict(tags),
        )

    def _run(self, client: Any, release: Release) -> str:
        """The run that holds the release's files: an unfinished earlier one, or a new one."""
        experiment = self._experiment(client)
        begun = client.search_runs(
            [experiment], f"tags.`{RELEASE_ID}` = {quote(release.release_id)}", max_results=1
        )
        if begun:
            return str(begun[0].info.run_id)
        run = client.create_run(
            experiment,
            run_name=f"release-{release.short}",
            tags={RELEASE_ID: release.release_id},
        )
        return str(run.info.run_id)

    def _experiment(self, client: Any) -> str:
        name = f"{self.model_name}-releases"
        found = client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        location = None
        if not is_server(self.uri):
            self.artifacts.mkdir(parents=True, exist_ok=True)
            location = self.artifacts.resolve().as_uri()
        return str(client.create_experiment(name, artifact_location=location))

    def _model(self, client: Any) -> Any | None:
        # get_registered_model says "does not exist" by an exception that a server may word
        # differently; a search has no such case.
        found = client.search_registered_models(f"name = {quote(self.model_name)}", max_results=1)
        return client.get_registered_model(self.model_name) if found else None

    def _aliases(self, client: Any) -> Mapping[str, str]:
        """Alias -> version. A search of versions gives none, so the model is asked."""
        model = self._model(client)
        return {a: str(v) for a, v in model.aliases.items()} if model is not None else {}

    def _search(self, client: Any, condition: str = "") -> Iterator[Any]:
        token = None
        while True:
            page = client.search_model_versions(
                f"name = {quote(self.model_name)}{condition}", max_results=_PAGE, page_token=token
            )
            yield from page
            token = page.token
            if not token:
                return

    def _find(self, client: Any, release_id: str) -> Any | None:
        condition = f" and tags.`{RELEASE_ID}` = {quote(release_id)}"
        # Should two controllers ever have raced, all later reads agree on the older version.
        found = sorted(self._search(client, condition), key=lambda v: int(v.version))
        return found[0] if found else None

    def _require(self, client: Any, release_id: str) -> Any:
        version = self._find(client, release_id)
        if version is None:
            raise NotFound(f"release {release_id} is not in the registry model {self.model_name}")
        return version


def _entry(version: Any, aliases: Mapping[str, str]) -> Mapping[str, Json]:
    number = str(version.version)  # int from a database, str through a server
    return {
        "version": number,
        "tags": dict(version.tags),
        "aliases": sorted(a for a, v in aliases.items() if v == number),
        "source": version.source,
    }
