"""MLflow tracking, on SQLite in the workspace or on a server. Export only: nothing is read back."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from intonaco.mlflow_client import connect, is_server, quote
from intonaco.tracking.guarded import GuardedTracker
from intonaco.types import Json

RUN_NAME = "intonaco.run"
_PARAM_CHARS = 500  # what every MLflow server that is still about accepts
_BATCH = 100
_FORBIDDEN = re.compile(r"[^\w\-./ ]")


class MlflowTracker(GuardedTracker):
    """Runs of one experiment of MLflow.

    A run is found again by its name, so a restart goes on with it. Values go in batches: one call
    per metric is many times slower.
    """

    def __init__(
        self,
        uri: str,
        experiment: str,
        artifacts: Path | None = None,
        *,
        pause_seconds: float = 60.0,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(pause_seconds=pause_seconds, monotonic=monotonic)
        self.uri = uri
        self.experiment = experiment
        self.artifacts = artifacts
        self._runs: dict[str, str] = {}

    def _log(
        self,
        run: str,
        params: Mapping[str, Json],
        metrics: Mapping[str, float],
        step: int,
        artifacts: Path | None,
    ) -> None:
        client = connect(self.uri)
        run_id = self._run_id(client, run)
        from mlflow.entities import Metric, Param

        now = int(time.time() * 1000)
        values = [Metric(_key(k), float(v), now, step) for k, v in metrics.items()]
        for batch in _batches(values):
            client.log_batch(run_id, metrics=batch)
        if params:
            there = client.get_run(run_id).data.params
            new = [Param(_key(k), _text(v)) for k, v in params.items() if _key(k) not in there]
            for batch in _batches(new):
                client.log_batch(run_id, params=batch)
        if artifacts is not None:
            if artifacts.is_dir():
                client.log_artifacts(run_id, str(artifacts))
            else:
                client.log_artifact(run_id, str(artifacts))
        # Whether an update still runs is the ledger's to say; a run left open by a kill would look
        # alive for ever. MLflow takes values for an ended run and moves its end.
        client.set_terminated(run_id)

    def _run_id(self, client: Any, run: str) -> str:
        if run not in self._runs:
            experiment = self._experiment_id(client)
            found = client.search_runs(
                [experiment], f"tags.`{RUN_NAME}` = {quote(run)}", max_results=1
            )
            begun = (
                found[0]
                if found
                else client.create_run(experiment, run_name=run, tags={RUN_NAME: run})
            )
            self._runs[run] = str(begun.info.run_id)
        return self._runs[run]

    def _experiment_id(self, client: Any) -> str:
        found = client.get_experiment_by_name(self.experiment)
        if found is not None:
            return str(found.experiment_id)
        location = None
        if self.artifacts is not None and not is_server(self.uri):
            self.artifacts.mkdir(parents=True, exist_ok=True)
            location = self.artifacts.resolve().as_uri()
        return str(client.create_experiment(self.experiment, artifact_location=location))

    def _is_callers_fault(self, error: Exception) -> bool:
        code = getattr(error, "error_code", "")
        return code == "INVALID_PARAMETER_VALUE" or super()._is_callers_fault(error)


def _key(name: str) -> str:
    return _FORBIDDEN.sub("_", name)


def _text(value: Json) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
    return text if len(text) <= _PARAM_CHARS else text[: _PARAM_CHARS - 3] + "..."


def _batches(values: list[Any]) -> list[list[Any]]:
    rest = iter(values)
    return list(iter(lambda: list(islice(rest, _BATCH)), []))
