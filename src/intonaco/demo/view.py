"""What the demo shows in the terminal while it runs, and the tables at its end.

On a terminal a small live panel stays below a growing timeline. Elsewhere (a pipe, CI) plain lines
are written, each once. Events may hold users' words: they are printed without markup and without
control characters, so that a prompt cannot steer the terminal.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from intonaco.clock import Clock, SystemClock
from intonaco.console.present import NONE, duration, money, number, percent, words

PARTS = ("model", "serve", "change", "plan", "update", "rollout", "rollback", "end")
ROLES = {
    "champion": "cyan", "returned": "cyan", "baseline": "dark_cyan", "challenger": "dark_orange",
    "holdback": "grey58", "shadow": "medium_purple",
}  # fmt: skip
KINDS = {
    "finding": "bold red", "diagnosis": "yellow", "plan": "yellow", "update": "blue",
    "rollout": "magenta", "breaker": "bold red", "approval": "bold yellow",
}  # fmt: skip
WEIGHTS_WIDTH = 30  # characters
QUARTERS = 4  # lines of a job's progress without a terminal
HEARTBEAT_S = 30.0  # between two lines of figures without a terminal


@dataclass(slots=True)
class _Job:
    label: str
    step: int
    total: int
    text: str
    told: int = -1


class DemoView:
    """Use as a context manager. ``clock`` says when the telling began."""

    def __init__(self, console: Console, clock: Clock | None = None) -> None:
        self.console = console
        self._clock = clock or SystemClock()
        self._began = self._clock.now()
        self._number = 0
        self._title = ""
        self._jobs: dict[str, _Job] = {}
        self._figures: dict[str, Any] = {}
        self._figures_told = self._began
        self._live: Live | None = None

    def __enter__(self) -> DemoView:
        self._began = self._figures_told = self._clock.now()
        if self.console.is_terminal:
            self._live = Live(
                get_renderable=self._panel,
                console=self.console,
                refresh_per_second=5,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    # ------------------------------------------------------------------ what is told

    def phase(self, number: int, title: str) -> None:
        """A part of the story begins; the ones before it are over."""
        self._number, self._title = number, title
        heading = f"{number}/{len(PARTS)}  {clean(title)}"
        self.console.print(Text(f"\n{heading}", style="bold"), soft_wrap=True)

    def event(self, at: float, kind: str, text: str, more: Sequence[str] = ()) -> None:
        """One line of the timeline, and what belongs to it under it."""
        line = Text(f"{'+' + since(at - self._began):>9}  ", style="dim")
        line.append(f"{clean(kind):<15} ", style=KINDS.get(kind.split(".")[0], "cyan"))
        line.append(clean(text), style="bold" if more else "default")
        self.console.print(line, soft_wrap=True)
        for detail in more:
            self.console.print(Text(" " * 27 + clean(detail), style="dim"), soft_wrap=True)

    def progress(self, key: str, label: str, step: int, total: int, text: str = "") -> None:
        """How far a job is. Plain output gets a line at each quarter."""
        job = self._jobs.setdefault(key, _Job(label=label, step=0, total=0, text=""))
        if job.label != label:
            job.told = -1  # another phase of the same job
        job.label, job.step, job.total, job.text = label, step, total, text
        quarter = QUARTERS * step // total if total > 0 else 0
        if self._live is None and quarter > job.told:
            job.told = quarter
            self._line(f"{label}: {step}/{total}" + (f" ({text})" if text else ""))

    def done(self, key: str) -> None:
        """A job is over; says so once, and only of a job that was seen running."""
        job = self._jobs.pop(key, None)
        if job is not None:
            self._line(f"{job.label.split(':')[0]}: done")

    def figures(self, **figures: Any) -> None:
        """Key figures: requests, failed, rate (a second), champion, weights {arm: share}, evidence
        (evidence, threshold)."""
        self._figures = figures
        now = self._clock.now()
        if self._live is None and now - self._figures_told >= HEARTBEAT_S:
            self._figures_told = now
            self._line(self._figures_text().plain)

    def _line(self, text: str) -> None:
        at = f"{'+' + since(self._clock.now() - self._began):>9}  "
        self.console.print(Text(at + clean(text), style="dim"), soft_wrap=True)

    # ------------------------------------------------------------------ the live panel

    def _panel(self) -> RenderableType:
        parts: list[RenderableType] = [Text(), self._phases()]
        if self._figures:
            parts.append(self._figures_text())
        if self._jobs:
            table = Table.grid(padding=(0, 1))
            for job in list(self._jobs.values()):
                table.add_row(
                    Text(clean(job.label)),
                    ProgressBar(total=max(1, job.total), completed=job.step, width=30),
                    Text(f"{job.step}/{job.total}", style="dim"),
                    Text(clean(job.text), style="dim"),
                )
            parts.append(table)
        return Group(*parts)

    def _phases(self) -> Text:
        line = Text(no_wrap=True, overflow="ellipsis")
        for part, name in enumerate(PARTS, start=1):
            if part < self._number or self._number == len(PARTS):
                line.append(f"✓ {name}  ", style="green")
            elif part == self._number:
                line.append(f"● {name}  ", style="bold dark_orange")
            else:
                line.append(f"○ {name}  ", style="dim")
        line.append(since(self._clock.now() - self._began), style="dim")
        return line

    def _figures_text(self) -> Text:
        known = self._figures
        line = Text(no_wrap=True, overflow="ellipsis")
        if known.get("rate") is not None:
            line.append(f"{known['rate']:.0f}", style="bold").append(" requests/s  ")
        if known.get("requests") is not None:
            line.append(f"{known['requests']} seen  ", style="dim")
        if known.get("failed") is not None:
            failed = int(known["failed"])
            line.append(f"{failed} failed  ", style="bold red" if failed else "dim")
        if known.get("champion"):
            line.append("champion ").append(f"{clean(str(known['champion']))}  ", style="bold cyan")
        if known.get("weights"):
            line.append_text(weights_bar(known["weights"])).append("  ")
        if known.get("evidence"):
            evidence, threshold = known["evidence"]
            line.append("evidence of change ").append_text(evidence_bar(evidence, threshold))
        return line


def weights_bar(weights: Mapping[str, float], width: int = WEIGHTS_WIDTH) -> Text:
    """Who is sent what share of the users. A shadow's copies are said in words, not drawn."""
    bar = Text()
    legend = Text()
    at = 0.0
    for name, share in weights.items():
        role = name.split(":")[0]
        style = ROLES.get(role, "white")
        legend.append(f" {clean(name)} {percent(share)}", style=style)
        if role != "shadow":
            begin, at = at, at + max(0.0, share)
            bar.append("█" * (round(width * min(1.0, at)) - round(width * begin)), style=style)
    return bar.append_text(legend)


def evidence_bar(evidence: float, threshold: float, width: int = 12) -> Text:
    """How near a detector is to speaking."""
    share = max(0.0, min(1.0, evidence / threshold)) if threshold > 0 else 0.0
    full = int(width * share)
    style = "bold red" if evidence >= threshold else "yellow"
    bar = Text("━" * full, style=style).append("─" * (width - full), style="dim")
    return bar.append(f" {evidence:.1f}/{threshold:.1f}", style=style)


def since(seconds: float) -> str:
    """12.3 s or 3:07 min."""
    if seconds < 60:
        return f"{max(0.0, seconds):.1f} s"
    return f"{int(seconds // 60)}:{int(seconds % 60):02d} min"


def clean(text: str) -> str:
    """One line without control characters."""
    joined = " ".join(text.split())
    return "".join(c if unicodedata.category(c)[0] != "C" else "�" for c in joined)


# ------------------------------------------------------------------------------------ the end


def _shortened(reasons: Sequence[str], most: int = 3) -> str:
    """The reasons that decided; the rest is in the report."""
    more = len(reasons) - most
    return "; ".join(reasons[:most]) + (f"; {more} more in the report" if more > 0 else "")


def final_table(summary: Mapping[str, Any]) -> list[Table]:
    """The story in figures. What was not measured has a dash."""
    tables = [_headline(summary), _accuracy(summary)]
    if summary.get("candidates"):
        tables.append(_candidates(summary))
    if (summary.get("rollout") or {}).get("steps"):
        tables.append(_rollout(summary))
    if summary.get("rollbacks") or summary.get("rollback"):
        tables.append(_rollbacks(summary))
    return tables


def _headline(summary: Mapping[str, Any]) -> Table:
    drift = summary.get("drift") or {}
    requests = summary.get("requests") or {}
    plan = summary.get("plan") or {}
    currency = str(plan.get("currency", "EUR"))
    cost = summary.get("training_cost")
    if cost is None and summary.get("candidates"):
        cost = sum(c.get("cost", 0.0) for c in summary["candidates"])
    table = Table(
        "", "", title="What happened", show_header=False, title_justify="left", box=box.SIMPLE_HEAD
    )
    rows = (
        ("drift found after", _count(drift.get("requests_to_detect"), "requests")),
        ("quiet requests before", _count(drift.get("quiet_requests_armed"), "")),
        ("false alarms before", _count(drift.get("false_alarms_before"), "")),
        ("diagnosis", words((summary.get("diagnosis") or {}).get("cause") or NONE)),
        ("plan", words(plan.get("action") or NONE)),
        ("training cost", money(cost, currency)),
        ("requests", _count(requests.get("total"), "")),
        ("failed for users", _count(requests.get("failed"), "")),
        ("shielded by the champion", _count(requests.get("shielded"), "")),
        ("in all", duration((summary.get("seconds") or {}).get("total"))),
    )
    for name, value in rows:
        table.add_row(name, Text(clean(value)))
    return table


def _accuracy(summary: Mapping[str, Any]) -> Table:
    digits = [str(d) for d in range(10)]
    table = Table(
        "asked for",
        *digits,
        title="Pictures judged right, in %",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    for when in ("before", "after"):
        found = (summary.get("accuracy") or {}).get(when) or {}
        cells = [f"{100 * found[d]:.0f}" if found.get(d) is not None else NONE for d in digits]
        table.add_row(when, *cells)
    return table


def _candidates(summary: Mapping[str, Any]) -> Table:
    table = Table(
        "candidate",
        "gate",
        "trained in",
        "why",
        title="Gate",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    for candidate in summary["candidates"]:
        verdict = str(candidate.get("verdict") or NONE)
        seconds = candidate.get("train_seconds")
        table.add_row(
            Text(clean(str(candidate.get("name", NONE)))),
            Text(verdict, style={"pass": "green", "fail": "red"}.get(verdict, "yellow")),
            duration(seconds) if seconds else NONE,
            Text(clean(_shortened(candidate.get("reasons") or ()))),
        )
    return table


def _rollout(summary: Mapping[str, Any]) -> Table:
    table = Table(
        "step", "share", "judged", "time", "decision", title_justify="left", box=box.SIMPLE_HEAD
    )
    table.title = f"Rollout: {words(summary['rollout'].get('status') or NONE)}"
    for step in summary["rollout"]["steps"]:
        table.add_row(
            str(step["kind"]),
            percent(step["weight"]) if step["weight"] else NONE,
            _count(step.get("units"), "pairs" if step["kind"] == "shadow" else "users"),
            duration(step.get("seconds")),
            Text(clean(str(step.get("decision", "")).partition(":")[0])),
        )
    return table


def _rollbacks(summary: Mapping[str, Any]) -> Table:
    found = summary.get("rollbacks") or [summary["rollback"]]
    table = Table(
        "reason",
        "time",
        "requests hit",
        "failed for users",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    table.title = "Rollbacks"
    for rollback in found:
        table.add_row(
            Text(clean(str(rollback["reason"]).partition(";")[0])),
            duration(rollback["seconds"]),
            number(rollback["requests"]),
            _count(rollback.get("user_visible_errors"), ""),
        )
    return table


def _count(value: Any, unit: str) -> str:
    return NONE if value is None else f"{value} {unit}".rstrip()
