"""traffic: times, failures, refusals, use of the batches, cost."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from intonaco import readmodel
from intonaco.cli.common import HERE, AsJson, Folder, opened, out, print_json, print_table


def traffic(
    workspace: Folder = HERE,
    as_json: AsJson = False,
    hours: Annotated[float, typer.Option(help="How far back, at most 744.", min=0.02, max=744)] = 1,
) -> None:
    """How fast, how full, how dear: by release, arm and request class."""
    app = opened(workspace)
    facts = readmodel.traffic(app.ledger, app.config, app.clock.now(), hours)
    if as_json:
        print_json(facts)
        return
    print_traffic(facts)


def print_traffic(facts: dict[str, Any]) -> None:
    capacity = facts["capacity"]
    can = "unknown" if capacity is None else f"{capacity:.3g} images/s"
    out.print(
        f"{facts['requests']} requests, {facts['failed']} failed; {facts['demand']:.3g} a second, "
        f"{facts['throughput']:.3g} images/s made, capacity {can}"
    )
    refused = ", ".join(f"{n} {code}" for code, n in facts["refused"].items())
    out.print(f"refused    {refused or 'none'}", markup=False)
    print_table(
        f"\ntimes in seconds (by {facts['level']})",
        ("release", "arm", "class", "images", "p50", "p95", "p99", "queue p95", "fill", "cost"),
        (
            (
                cell["release"][:10],
                cell["arm"],
                cell["class"] or "all",
                str(cell["images"]),
                *(_time(cell, "seconds", q) for q in ("p50", "p95", "p99")),
                _time(cell, "queue", "p95"),
                "" if cell["batch_fill"] is None else f"{cell['batch_fill']:.0%}",
                "" if cell["cost_per_image"] is None else f"{cell['cost_per_image']:.3g}",
            )
            for cell in facts["cells"]
        ),
    )


def _time(cell: dict[str, Any], part: str, quantile: str) -> str:
    found = cell["times"].get(part, {}).get(quantile)
    return "" if found is None else f"{found:.3g}"
