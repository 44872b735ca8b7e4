"""One way into MLflow for the adapters that use it (``registry.mlflow``, ``tracking.mlflow``).

MLflow is imported on first use, because it takes two seconds and 80 MB. It is told to be quiet and
to keep to itself: no telemetry, few retries (its default keeps a caller waiting for minutes when
the server is down), no chatter about schema migrations.
"""

from __future__ import annotations

import logging
import os
import threading
import warnings
from functools import cache
from typing import Any

_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "GIT_PYTHON_REFRESH": "quiet",
}
_lock = threading.Lock()


def connect(uri: str) -> Any:
    """An ``MlflowClient`` of a tracking and registry server or database, one per URI and process.

    Creates the tables of a new SQLite database, which takes seconds. Raises what MLflow raises.
    """
    with _lock:  # two threads that migrate one new database would each fail
        return _connect(uri)


def is_server(uri: str) -> bool:
    """Whether a server stands between us and the artifacts, and chooses where they lie."""
    return uri.startswith(("http://", "https://", "databricks"))


def quote(value: str) -> str:
    """A string literal of MLflow's filter language, which knows both quotes and no escape."""
    if "'" not in value:
        return f"'{value}'"
    if '"' not in value:
        return f'"{value}"'
    raise ValueError(f"{value!r} holds both quotes, which no MLflow filter can express")


@cache
def _connect(uri: str) -> Any:
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    # Deprecations that MLflow and SQLAlchemy settle between themselves: nothing we call.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mlflow import MlflowClient

        for logger in ("mlflow", "alembic"):
            logging.getLogger(logger).setLevel(logging.WARNING)
        return MlflowClient(tracking_uri=uri, registry_uri=uri)
