"""What the arms cost: in turns, in serving workers of their own where that can be, else here."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from intonaco.evaluation import benchmark
from intonaco.evaluation.arms import Costs
from intonaco.evaluation.drawers import Drawers
from intonaco.evaluation.order import ArmSpec, Order
from intonaco.evaluation.prompts import Shot
from intonaco.evaluation.sampling import Drawer, latency_kind, time_pair
from intonaco.evaluation.served import ServedArm, time_in_turns
from intonaco.types import Json
from intonaco.workspace import Workspace

Report = Callable[[int, int], None]  # done, of


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """``figures``: for the report; None where arms were not timed in workers."""

    costs: Costs
    kind: str
    figures: Mapping[str, Json] | None = None


class Stopwatch:
    """Of one order. ``folder``: the job's, for the workers' logs. The champion's worker is kept
    from one candidate to the next, and ended by ``resources``."""

    def __init__(
        self, order: Order, drawers: Drawers, folder: Path, resources: contextlib.ExitStack
    ) -> None:
        self.order = order
        self.drawers = drawers
        self.folder = folder
        self._resources = resources
        self._served_champion: ServedArm | None = None

    def time(
        self,
        spec: ArmSpec,
        samplers: tuple[Drawer | None, Drawer | None],
        alpha: float,
        report: Report,
    ) -> Timing:
        """``samplers``: the champion's and the candidate's; in workers if one is missing. Raises
        BackendError for a worker that does not serve."""
        order = self.order
        rounds = order.latency_rounds
        some = order.shots[:: max(1, len(order.shots) // rounds)]
        champion, candidate = samplers
        if champion is None or candidate is None:
            return self._time_in_workers(spec, some, report, alpha)
        timing = time_pair(champion, candidate, some, rounds, lambda n: report(n, rounds))
        kind = latency_kind(order.device)
        costs = Costs(
            log_ratios=timing.log_ratios,
            champion_seconds=timing.champion_seconds,
            candidate_seconds=timing.candidate_seconds,
            memory=(champion.tensor_bytes, candidate.tensor_bytes),
        )
        return Timing(
            costs=costs, kind="wall seconds of a server's answer" if order.not_ours else kind
        )

    def _time_in_workers(
        self, spec: ArmSpec, some: Sequence[Shot], report: Report, alpha: float
    ) -> Timing:
        order, wanted = self.order, self.order.benchmark
        assert order.champion is not None
        assert wanted is not None
        report(0, order.latency_rounds + wanted.waves)
        if self._served_champion is None:
            self._served_champion = self._serve(order.champion)
            self._resources.callback(self._served_champion.close)
        with contextlib.closing(self._serve(spec)) as served:
            device = served.attest().device
            timed = time_in_turns(
                self._served_champion,
                served,
                some,
                rounds=order.latency_rounds,
                waves=wanted.waves,
                concurrency=wanted.concurrency,
                report=report,
            )
            memory = (self._served_champion.memory(), served.memory())
        cpu = device.startswith("cpu")
        figures = benchmark.summary(
            timed,
            memory,
            cpu=cpu,
            alpha=alpha,
            hourly_price=wanted.hourly_price,
            currency=wanted.currency,
        )
        return Timing(
            costs=benchmark.costs(timed, memory, figures, cpu=cpu),
            kind=figures["compared_by"],
            figures={**figures, "device": device},
        )

    def _serve(self, spec: ArmSpec) -> ServedArm:
        wanted = self.order.benchmark
        assert wanted is not None
        job = hashlib.sha256(str(self.folder).encode()).hexdigest()[:8]
        return ServedArm.start(
            Workspace(wanted.workspace),
            str(spec.release_id),
            name=f"benchmark-{job}-{spec.name}",
            generation=spec.generation,
            worker=wanted.worker,
            log_file=self.folder / f"worker-{spec.name}.txt",
            environments=self.drawers.store(),
            environment=spec.environment,
            concurrency=wanted.concurrency,
        )
