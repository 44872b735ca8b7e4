"""update plan, update backtest, budget: what was decided and why, what it may cost."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from intonaco import readmodel
from intonaco.app import App
from intonaco.cli.common import HERE, AsJson, Folder, opened, out, print_json, print_table
from intonaco.codec import as_json as to_json
from intonaco.decision.explain import explain
from intonaco.errors import NotFound
from intonaco.types import Diagnosis, Finding, Plan

REASON = 90  # characters of a reason in a table


def add_to(app: typer.Typer) -> None:
    app.command()(budget)


def update_plan(
    subject: Annotated[
        str | None, typer.Argument(help="Plan or finding, or the beginning of its id.")
    ] = None,
    workspace: Folder = HERE,
    explained: Annotated[
        bool, typer.Option("--explain", help="The sum behind the decision; of the last if none.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, help="How many, newest last.")] = 20,
    as_json: AsJson = False,
) -> None:
    """What was decided, or in mode watch would have been; --explain says on what grounds."""
    app = opened(workspace)
    if explained or subject is not None:
        plan = _plan_of(app, subject)
        if as_json:
            print_json(plan)
            return
        for line in explain(plan, time_zone=app.config.decision.time_zone):
            out.print(line, markup=False)
        return
    found = app.ledger.all(Plan)[-limit:]
    if as_json:
        print_json(found)
        return
    print_table(
        "plans",
        ("plan", "at", "cause", "action", "would have", "rule", "cost", "benefit", "reason"),
        (
            (
                p.plan_id[:10],
                time.strftime("%Y-%m-%d %H:%M", time.localtime(p.at)),
                p.cause,
                p.action,
                p.would,
                p.reckoning.rule if p.reckoning else "",
                f"{p.estimated_cost:.2f}",
                f"{p.expected_benefit:.2f}",
                p.reason if len(p.reason) <= REASON else p.reason[: REASON - 1] + "…",
            )
            for p in found
        ),
    )


def _plan_of(app: App, subject: str | None) -> Plan:
    """A plan by its id, or the last one that a finding led to; without any the last of all.
    Raises NotFound."""
    plans = app.ledger.all(Plan)
    if subject is None:
        if not plans:
            raise NotFound("nothing has been decided yet", hint="a finding or trigger leads to it")
        return plans[-1]
    plan = app.ledger.find(Plan, subject)
    if plan is not None:
        return plan
    finding = app.ledger.get(Finding, subject)
    diagnoses = {
        d.diagnosis_id
        for d in app.ledger.all(Diagnosis)
        if any(f.finding_id == finding.finding_id for f in d.findings)
    }
    found = [p for p in plans if p.diagnosis_id in diagnoses]
    if not found:
        raise NotFound(f"finding {finding.finding_id} has not been decided on yet")
    return found[-1]


def budget(workspace: Folder = HERE, as_json: AsJson = False) -> None:
    """What updates cost in this period, what is reserved and left, and how long it lasts."""
    app = opened(workspace)
    facts = readmodel.accounts(app.ledger, app.config, app.clock.now())
    if as_json:
        print_json(facts)
        return
    out.print(f"period     {facts['per_days']:g} days, up to now")
    _print_unit("money", facts["currency"], facts["money"])
    if facts["hours"] is not None:
        _print_unit("machine", "h", facts["hours"])
    print_table(
        "\nupdates",
        ("update", "at", "state", facts["currency"]),
        (
            (
                e["subject"],
                time.strftime("%Y-%m-%d %H:%M", time.localtime(e["at"])),
                "settled" if e["settled"] else "reserved",
                f"{e['amount']:.4f}",
            )
            for e in facts["entries"]
        ),
    )


def _print_unit(name: str, unit: str, facts: dict[str, Any]) -> None:
    out.print(
        f"{name:<10} {facts['settled']:.4f} spent, {facts['reserved']:.4f} reserved, "
        f"{facts['left']:.2f} of {facts['amount']:.2f} {unit} left"
    )
    forecast = facts["forecast"]
    empty = forecast["empty_at"]
    lasts = (
        "what comes back to the budget keeps up with it"
        if empty is None
        else f"it is empty on {time.strftime('%Y-%m-%d', time.localtime(empty))}"
    )
    out.print(f"{'':<10} at {forecast['per_day']:.4f} {unit} a day {lasts}")
    if facts["frees_at"] is not None:
        at = time.strftime("%Y-%m-%d", time.localtime(facts["frees_at"]))
        out.print(f"{'':<10} the oldest spending leaves the period on {at}")
    if forecast["updates"] is not None:
        out.print(f"{'':<10} {forecast['updates']} more updates like the last fit now")
    asked = facts["required_return"]
    if asked is not None:
        out.print(f"{'':<10} an update must bring {asked:.2f} times its cost now")


def update_backtest(
    years: Annotated[int, typer.Option(min=1, max=10_000, help="Simulated years.")] = 50,
    seed: Annotated[int, typer.Option(min=0, help="Of the years.")] = 7,
    as_json: AsJson = False,
) -> None:
    """The policy over simulated years, against simple rules and against hindsight."""
    from intonaco.decision import backtest

    result = backtest.run(years, seed)
    facts = {
        "years": result.years,
        "quiet_years": result.quiet_years,
        "overspent": result.overspent,
        "oracle": result.oracle,
        "costs": to_json(dict(result.costs)),
        "over_oracle": result.over_oracle,
    }
    if as_json:
        print_json(facts)
        return
    out.print(
        f"{years} years, {result.quiet_years} without drift; budget exceeded in {result.overspent}"
    )
    print_table(
        "mean cost of a year: staleness, machine, review and failures",
        ("policy", "cost", "x hindsight"),
        (
            (name, f"{cost:.2f}", f"{cost / result.oracle:.3f}" if result.oracle else "")
            for name, cost in [("hindsight", result.oracle), *result.costs.items()]
        ),
    )
