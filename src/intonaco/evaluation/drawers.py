"""Who draws an arm's images: a pipeline here, a process in its environment, another's server."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from intonaco.codec import digest
from intonaco.environments import EnvironmentStore, environment_lock
from intonaco.evaluation.drawing import ApartSampler
from intonaco.evaluation.elsewhere import ServerSampler
from intonaco.evaluation.order import ArmSpec, Order
from intonaco.evaluation.prompts import shots_digest
from intonaco.evaluation.sampling import Drawer, Sampler
from intonaco.workspace import Workspace


class Drawers:
    """Of one order. ``resources``: what ends the processes that are started; ``tell``: what is
    waited for."""

    def __init__(
        self, order: Order, resources: contextlib.ExitStack, tell: Callable[[str], None]
    ) -> None:
        self.order = order
        self.tell = tell
        self._resources = resources
        self._apart = self._environments()

    @property
    def timed_in_workers(self) -> bool:
        """Whether no arm needs its sampler after its images are drawn."""
        order = self.order
        if order.champion is None:
            return True  # there is nobody to time it against
        return order.benchmark is not None and all(
            arm.upstream is None and arm.release_id for arm in order.arms
        )

    def store(self) -> EnvironmentStore | None:
        given = self.order.environments
        if not given:
            return None
        return EnvironmentStore(
            Workspace(Path(given["workspace"])),
            base=str(given["base"]),
            timeout_s=float(given["timeout_s"]),
        )

    def _environments(self) -> EnvironmentStore | None:
        """Where arms are drawn in processes of their own: needed if one names another environment
        than this, and then done for all, so that their times are alike."""
        if all(a.environment in ("", environment_lock()) for a in self.order.arms):
            return None
        return self.store()

    def sampler(self, spec: ArmSpec) -> Drawer:
        order = self.order
        if spec.upstream is not None:
            server = ServerSampler.start(spec.folder, spec.generation, spec.upstream)
            self._resources.callback(server.close)
            return server
        if self._apart is None:
            return Sampler.load(spec.folder, spec.generation, dtype=spec.dtype, device=order.device)
        self.tell(f"{spec.name}: in an environment of its own")
        sampler = ApartSampler.start(
            spec.folder,
            spec.generation,
            dtype=spec.dtype,
            device=order.device,
            threads=order.threads,
            environments=self._apart,
            environment=spec.environment or environment_lock(),
        )
        self._resources.callback(sampler.close)
        return sampler

    def key(self, spec: ArmSpec) -> str | None:
        """Names everything that decides an arm's images; None if they cannot be kept."""
        if spec.release_id is None or spec.upstream is not None:
            return None  # what a server draws today it need not draw tomorrow
        return digest(
            {
                "release": spec.release_id,
                "generation": dict(spec.generation),
                "dtype": spec.dtype,
                "device": self.order.device,
                "batch_size": self.order.batch_size,
                "shots": shots_digest(self.order.shots_of(spec)),
                # where it is drawn, which is here if nothing says how to build another
                "environment": (self._apart and spec.environment) or environment_lock(),
            }
        )
