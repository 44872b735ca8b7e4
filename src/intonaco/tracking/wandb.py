"""Weights & Biases, into a folder that ``wandb sync --append`` uploads. Needs the extra ``wandb``.

Only its offline mode: with a server that does not answer, ``wandb.init`` waits without an end
(seen with 0.27.2; ``init_timeout`` does not bound it), which would hold up the controller.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from intonaco.tracking.guarded import GuardedTracker
from intonaco.types import Json

OPEN_RUNS = 4  # each holds a stream to wandb's own process; the least recently used is finished
_PICTURES = frozenset({".png", ".jpg", ".jpeg"})
_FORBIDDEN = re.compile(r"[^\w\-.]")


class WandbTracker(GuardedTracker):
    """Runs of one project.

    A run's id is a digest of its name: after a restart it goes on in another folder of the same
    id, which ``wandb sync --append`` joins. Points have an axis ``step`` of their own, as wandb
    drops what goes back on its. Pictures are shown among the run's media, other files kept as its
    artifacts. Neither code, git state, console nor machine statistics are written.
    """

    def __init__(
        self,
        project: str,
        folder: Path,
        *,
        pause_seconds: float = 60.0,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(pause_seconds=pause_seconds, monotonic=monotonic)
        self.project = project
        self.folder = folder
        self._runs: OrderedDict[str, Any] = OrderedDict()

    def close(self) -> None:
        """Finish the open runs. Never raises; the end of the process does it too."""
        with self._lock:
            while self._runs:
                self._finish_oldest()

    def _log(
        self,
        run: str,
        params: Mapping[str, Json],
        metrics: Mapping[str, float],
        step: int,
        artifacts: Path | None,
    ) -> None:
        open_run = self._run(run)
        if new := {k: v for k, v in params.items() if k not in open_run.config.keys()}:  # noqa: SIM118
            open_run.config.update(new)
        if metrics:
            open_run.log({**{k: float(v) for k, v in metrics.items()}, "step": step})
        if artifacts is not None:
            self._add(open_run, artifacts, step)

    def _add(self, open_run: Any, path: Path, step: int) -> None:
        import wandb

        if not path.exists():
            raise FileNotFoundError(f"{path} is not there")
        if path.suffix.lower() in _PICTURES:
            open_run.log({path.parent.name: wandb.Image(str(path)), "step": step})
            return
        name = _FORBIDDEN.sub("_", f"{open_run.id}-{path.name}")[:128]
        kept = wandb.Artifact(name, type="report")
        kept.add_dir(str(path)) if path.is_dir() else kept.add_file(str(path))
        open_run.log_artifact(kept)

    def _run(self, name: str) -> Any:
        import wandb

        if name in self._runs:
            self._runs.move_to_end(name)
            return self._runs[name]
        while len(self._runs) >= OPEN_RUNS:
            self._finish_oldest()
        self.folder.mkdir(parents=True, exist_ok=True)
        begun = wandb.init(
            project=self.project,
            id=hashlib.sha256(f"{self.project}/{name}".encode()).hexdigest()[:16],
            name=name,
            dir=str(self.folder),
            mode="offline",
            reinit="create_new",
            settings=wandb.Settings(
                silent=True,
                console="off",
                disable_git=True,
                disable_code=True,
                save_code=False,
                x_disable_stats=True,
                x_disable_meta=True,
            ),
        )
        begun.define_metric("*", step_metric="step")
        self._runs[name] = begun
        return begun

    def _finish_oldest(self) -> None:
        _, run = self._runs.popitem(last=False)
        try:
            run.finish()
        except Exception as error:
            self._failed(error)
