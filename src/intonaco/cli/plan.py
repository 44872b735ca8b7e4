"""rollout plan: how long a rollout will take, before it begins."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from intonaco.app import App
from intonaco.cli.common import HERE, AsJson, Folder, ago, opened, out, print_json, print_table
from intonaco.codec import decode
from intonaco.config import RolloutConfig
from intonaco.errors import ConfigError, StorageError
from intonaco.rollout.opinions import speaks_ill
from intonaco.rollout.plan import Assumed, Need, RolloutPlan, measured, plan
from intonaco.rollout.strategies import baseline_workers, foreseen
from intonaco.rollout.words import number, rounded, span
from intonaco.segment_log import SegmentReader
from intonaco.types import Feedback, ScoredRecord
from intonaco.watching import CONSUMER

LOOKED_AT = 5000  # of the last scored records
FILES = 4  # that they are looked for in, the last ones written


def rollout_plan(
    workspace: Folder = HERE,
    requests_per_second: Annotated[
        float | None, typer.Option(min=1e-6, help="Instead of the service's present traffic.")
    ] = None,
    requests_per_user: Annotated[
        float | None, typer.Option(min=1.0, help="Of one user, who counts once in a rollout.")
    ] = None,
    difference: Annotated[
        list[str] | None,
        typer.Option(
            help="METRIC=HOW MUCH WORSE, in the unit of its margin, such as latency=0.2 for 20 "
            "percent; again for more. Without any: twice each margin."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """How many users each guardrail will need at each step's share, and how long that takes."""
    app = opened(workspace)
    rollout = app.config.rollout
    given = _differences(difference or [], rollout.guardrails)
    maturity = app.config.monitoring.feedback.mature_after_s
    assumed = measured(
        _last(app),
        rollout,
        ill=_spoken_ill(app) if "feedback" in rollout.guardrails else None,
        mature_at=app.clock.now() - maturity,
    )
    if requests_per_user is not None:
        assumed = replace(assumed, requests_per_user=requests_per_user)
    rate = requests_per_second if requests_per_second is not None else _traffic(app)
    found = plan(
        rollout,
        assumed,
        requests_per_second=rate,
        differences=given,
        steps=foreseen(app.config),
        mature_after_s=maturity,
    )
    warnings = _warnings(found, rollout)
    if as_json:
        print_json(
            {
                "requests_per_second": rate,
                "users_per_second": found.users_per_second,
                "alpha": rollout.alpha,
                "assumed": assumed,
                "needs": [
                    {
                        "metric": n.metric,
                        "question": n.question,
                        "difference": n.difference,
                        "weight": n.weight,
                        "users": n.units,
                        "requests": None
                        if n.units is None
                        else n.units * assumed.requests_per_user,
                        "seconds": _seconds(n, found),
                    }
                    for n in found.needs
                ],
                "baseline_workers": baseline_workers(app.config),
                "users": found.units,
                "last": found.last,
                "seconds": found.seconds,
                "max_seconds": rollout.max_seconds,
                "warnings": warnings,
            }
        )
        return
    _say(assumed, rate, rollout.alpha)
    _table(found)
    if equal := baseline_workers(app.config):
        out.print(
            f"\nthe equal baseline takes {equal} more workers while at most half of the users have "
            "the challenger; end_to_end is judged by then",
            markup=False,
        )
    if found.units is not None:
        out.print(
            f"\nall is proven after about {rounded(found.units)} users, {found.last} last"
            + ("" if found.seconds is None else f"; with its steps, about {ago(found.seconds)}"),
            markup=False,
        )
    if "feedback" in found.delays:
        out.print(
            f"an image counts for feedback once it is {span(maturity)} old: until then there is no "
            "data, and no data is no proof",
            markup=False,
            soft_wrap=True,
        )
    for warning in warnings:
        out.print(f"warning: {warning}", markup=False, soft_wrap=True)


def _differences(given: Sequence[str], known: Sequence[str]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for text in given:
        metric, _, value = text.partition("=")
        if metric not in known:
            raise ConfigError(
                f"--difference: no metric {metric!r}; rollout.metrics has: {', '.join(known)}"
            )
        try:
            found.setdefault(metric, []).append(float(value))
        except ValueError:
            raise ConfigError(f"--difference: {text!r} is not {metric}=NUMBER") from None
        if not -1 < found[metric][-1] < 100:
            raise ConfigError(f"--difference: {text!r} is no difference that could be")
    return found


def _spoken_ill(app: App) -> set[str] | None:
    """Requests whose image was spoken ill of lately; None where nobody votes."""
    ill: set[str] = set()
    votes = 0
    for line in _lines(app.workspace.feedback):
        try:
            feedback = decode(Feedback, line)
        except StorageError:
            continue
        votes += feedback.kind == "explicit"
        if speaks_ill(feedback):
            ill.add(feedback.request_id)
    return ill if votes else None


def _last(app: App) -> Iterator[ScoredRecord]:
    """The last scored records."""
    for line in _lines(app.workspace.scores):
        try:
            yield decode(ScoredRecord, line)
        except StorageError:
            continue


def _lines(root: Path) -> deque[bytes]:
    """The last of a log."""
    files = sorted(root.glob("*/*.jsonl"), key=lambda p: p.stat().st_mtime)
    reader = SegmentReader(root)
    reader.seek({p.relative_to(root).as_posix(): p.stat().st_size for p in files[:-FILES]})
    lines: deque[bytes] = deque(maxlen=LOOKED_AT)
    while more := list(reader.read()):
        lines.extend(more)
    return lines


def _traffic(app: App) -> float | None:
    """User requests a second, as the controller saw them last."""
    stored = app.ledger.consumer(CONSUMER)
    arrivals = stored[1]["arrivals"] if stored is not None else []
    if len(arrivals) < 2 or max(arrivals) <= min(arrivals):
        return None
    return float((len(arrivals) - 1) / (max(arrivals) - min(arrivals)))


def _seconds(need: Need, found: RolloutPlan) -> float | None:
    if need.units is None or not found.users_per_second:
        return None
    return need.units / found.users_per_second + found.delays.get(need.metric, 0.0)


def _say(assumed: Assumed, rate: float | None, alpha: float) -> None:
    traffic = "no traffic was seen" if rate is None else f"{rate:.3g} requests a second"
    out.print(
        f"{traffic}, {assumed.requests_per_user:.2g} of each user, who counts once; "
        f"alpha {alpha:g}",
        markup=False,
    )
    told = [
        ("errors", f"{assumed.errors:.2%} errors"),
        ("latency_spread", f"times spread by {assumed.latency_spread:.0%}"),
        ("slow", f"{assumed.slow:.2%} slow"),
        ("score", f"cosine {assumed.score:.3f}, spread {assumed.score_spread:.3f}"),
        ("cost_spread", f"costs spread by {assumed.cost_spread:.0%}"),
        ("ill", f"{assumed.ill:.1%} of images spoken ill of"),
        ("wait_spread", f"waits spread by {assumed.wait_spread:.0%}"),
    ]
    for known, what in (
        (True, f"measured on {assumed.requests} requests of the champion"),
        (False, "assumed"),
    ):
        names = [text for name, text in told if (name in assumed.measured) is known]
        if names:
            out.print(f"{what}: {', '.join(names)}", markup=False)


def _table(found: RolloutPlan) -> None:
    weights = list(dict.fromkeys(n.weight for n in found.needs))
    rows: dict[tuple[str, float], list[Need]] = {}
    for need in found.needs:
        rows.setdefault((need.metric, need.difference), []).append(need)
    print_table(
        "\nusers of both arms, and the time for them, at each share of users",
        ("metric", "truly worse by", "is", *(f"{w:.0%}" for w in weights)),
        (
            (
                metric,
                "nothing" if not worse else number(metric, worse).lstrip("+"),
                "proven no worse" if needs[0].question == "proven" else "caught",
                *(_cell(n, found) for n in needs),
            )
            for (metric, worse), needs in rows.items()
        ),
    )


def _cell(need: Need, found: RolloutPlan) -> str:
    if need.units is None:
        return "never"
    seconds = _seconds(need, found)
    return rounded(need.units) + ("" if seconds is None else f", {ago(seconds)}")


def _warnings(found: RolloutPlan, rollout: RolloutConfig) -> list[str]:
    max_seconds = rollout.max_seconds
    if rollout.strategy == "in_place":
        return ["in place nothing is compared, and nothing is proven"]
    if not found.needs:
        return [
            "no step gives a share of users the challenger: proof comes from copies alone, whose "
            "spread is not known beforehand"
        ]
    if found.units is None:
        return [
            f"{found.last} is not expected to be proven at these shares: widen its margin, or give "
            "the last share more users"
        ]
    if found.seconds is None:
        return ["no traffic is known: give --requests-per-second to be told how long it takes"]
    if found.seconds > max_seconds:
        return [
            f"rollout.max_seconds is {max_seconds:g} s and about {found.seconds:.0f} s are needed, "
            f"{found.last} longest: it would end inconclusive. Allow more time, raise the shares "
            "sooner, or widen the margin"
        ]
    return []
