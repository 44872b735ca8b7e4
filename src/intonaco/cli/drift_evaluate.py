"""drift evaluate: what a detector is worth on a recorded stream."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from intonaco.cli.common import HERE, AsJson, Folder, opened, out, print_json, print_table
from intonaco.codec import decode
from intonaco.console.present import NONE, number
from intonaco.errors import ConfigError
from intonaco.monitoring import streams
from intonaco.monitoring.detectors import resolve
from intonaco.monitoring.sources import source
from intonaco.monitoring.streams import Stream
from intonaco.segment_log import SegmentReader
from intonaco.types import ScoredRecord

LONG = 20_000  # requests from which on a bar shows how far it is
MOST_RECORDS = 10_000_000


def evaluate(
    stream: Annotated[
        Path | None,
        typer.Option(
            "--stream",
            help="A recorded stream: .npz, .jsonl or .csv, as docs/guides/drift-evaluate.md says.",
        ),
    ] = None,
    signal: Annotated[
        str | None,
        typer.Option(help="In place of --stream: a signal, from the workspace's scored records."),
    ] = None,
    detector: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME or NAME:OPTION=VALUE,…; repeatable. By default the one that `auto` means, "
            "and the null baseline."
        ),
    ] = None,
    reference: Annotated[
        int | None, typer.Option(min=1, help="First requests that say what is normal.")
    ] = None,
    budget: Annotated[
        float | None, typer.Option(min=2, help="Requests between two false alarms.")
    ] = None,
    change_at: Annotated[
        int | None, typer.Option(help="First request after the change, where the file has none.")
    ] = None,
    range_: Annotated[
        tuple[float, float] | None,
        typer.Option("--range", help="Of numbers: what is given to detectors as 0 and as 1."),
    ] = None,
    workspace: Folder = HERE,
    as_json: AsJson = False,
) -> None:
    """Score detectors on a recorded stream: false alarms, delay, misses, µs per event, memory.

    The first --reference requests are what is normal; the others are judged. After a false alarm a
    detector goes on from where the reference had armed it."""
    if (stream is None) == (signal is None):
        raise ConfigError("give --stream FILE, or --signal NAME of a workspace")
    normal, between = reference or 2000, budget or 10_000.0
    if signal is not None:
        found, normal, between = _of_workspace(workspace, signal, reference, budget)
    else:
        assert stream is not None
        found = streams.read(stream)
    if change_at is not None:
        found = _with_change(found, change_at)
    if range_ is not None and not found.vectors:
        found = found.scaled(*range_)
    stream_of = "vector" if found.vectors else "bounded"
    names = detector or ["auto", "periodic"]
    asked = [(text, *streams.parse_detector(text)) for text in names]
    made = [(text, *resolve(name, stream=stream_of), options) for text, name, options in asked]
    _check_range(found, [name for _, name, _, _ in made])
    rows: list[dict[str, Any]] = []
    with _progress(len(found) * len(made), quiet=as_json or len(found) < LONG) as bar:
        for text, name, factory, options in made:
            task = bar.add_task(name, total=len(found))

            def heard(task: Any = task) -> None:
                bar.advance(task, 500)

            known = streams.settings(normal, between, options)
            score, used = streams.judge(
                partial(factory, known),
                found,
                known.reference,
                time.process_time,
                heard=None if bar.disable else heard,
            )
            bar.update(task, completed=len(found))
            label = name if text == "auto" else text
            rows.append(
                streams.as_facts(label, score, known.requests_between_false_alarms)
                | {"budget": known.requests_between_false_alarms, "reference": used}
            )
    if as_json:
        print_json({"requests": len(found), "change_at": found.change_at, "detectors": rows})
        return
    _print(found, rows)


def _of_workspace(
    workspace: Path, name: str, reference: int | None, budget: float | None
) -> tuple[Stream, int, float]:
    app = opened(workspace)
    monitoring = app.config.monitoring
    if name not in monitoring.signals:
        known = ", ".join(sorted(monitoring.signals))
        raise ConfigError(f"no signal {name!r}; monitoring.signals has: {known}")
    reader = SegmentReader(app.workspace.scores)
    items = (decode(ScoredRecord, line) for line in reader.read(MOST_RECORDS))
    found = streams.of_records(items, source(name, monitoring.signals[name]))
    between = budget or float(monitoring.requests_between_false_alarms)
    return found, reference or monitoring.signals[name].reference, between


def _with_change(found: Stream, change_at: int) -> Stream:
    if not 0 <= change_at < len(found):
        raise ConfigError(f"--change-at: {change_at}, and there are {len(found)} requests")
    return Stream(
        x=found.x,
        at=found.at,
        session=found.session,
        topic=found.topic,
        change_at=change_at,
    )


def _progress(total: int, *, quiet: bool) -> Progress:
    """A bar on the terminal's error stream, none where nobody sees it."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=quiet or not console.is_terminal,
    )


def _print(found: Stream, rows: list[dict[str, Any]]) -> None:
    change = "no change in it" if found.change_at is None else f"change at {found.change_at}"
    kind = f"vectors of {found.x.shape[1]}" if found.vectors else "numbers"
    lacks = [n for n in ("at", "session") if getattr(found, n) is None]
    out.print(
        f"{len(found)} requests ({kind}), {change}"
        + (f"; without {' and '.join(lacks)}" if lacks else "")
    )
    print_table(
        "",
        (
            *("detector", "reference", "false alarms", "per 10,000", "95 % bounds", "budget"),
            *("delay", "missed", "µs/event", "state kB"),
        ),
        (
            (
                r["detector"],
                r["reference"],
                f"{r['false_alarms']} in {r['null_events']}",
                number(r["alarms_per_10k"]),
                f"{number(r['bounds_per_10k'][0])} to {number(r['bounds_per_10k'][1])}",
                "kept" if r["keeps_budget"] else "NOT KEPT",
                number(r["delay"]),
                f"{r['misses']} of {r['changes']}" if r["changes"] else NONE,
                number(r["us_per_event"]),
                number(r["state_bytes"] / 1000),
            )
            for r in rows
        ),
    )


def _check_range(found: streams.Stream, names: Sequence[str]) -> None:
    """Raises ConfigError where a detector takes numbers from 0 to 1 only and these are others."""
    bounded = [n for n in names if n != "e-quantile" and ":" not in n]
    if found.vectors or not bounded or 0.0 <= found.x.min() <= found.x.max() <= 1.0:
        return
    raise ConfigError(
        f"the stream's numbers go from {found.x.min():g} to {found.x.max():g}, and "
        f"{', '.join(bounded)} takes those from 0 to 1",
        hint="say what is 0 and what is 1 with --range LOW HIGH, or choose e-quantile",
    )
