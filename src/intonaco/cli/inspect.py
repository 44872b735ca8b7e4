"""status, events, release, update list/show, rollout show."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from intonaco import readmodel, steering
from intonaco.app import App
from intonaco.cli.common import HERE, AsJson, Folder, ago, opened, out, print_json, print_table
from intonaco.cli.traffic import traffic
from intonaco.codec import as_json as to_json
from intonaco.errors import BackendError, NotFound
from intonaco.rollout.words import number, stands, still
from intonaco.types import MetricAssessment, Observed, Release, Rollout, StepKind, Update

REASON = 70  # characters of a reason in a table


def add_to(app: typer.Typer) -> None:
    app.command()(status)
    app.command()(traffic)
    app.command()(events)
    releases = typer.Typer(help="Releases: list, show, lineage, diff.", no_args_is_help=True)
    releases.command("list")(release_list)
    releases.command("show")(release_show)
    releases.command("lineage")(release_lineage)
    releases.command("diff")(release_diff)
    app.add_typer(releases, name="release")


def observed(app: App) -> Observed | None:
    """What the gateway says, None if none runs."""
    from intonaco.serving.client import GatewayRouter

    try:
        return GatewayRouter(app.workspace).observed()
    except BackendError:
        return None


def status(
    workspace: Folder = HERE,
    as_json: AsJson = False,
    check: Annotated[
        bool, typer.Option("--check", help="Fail if no controller has ticked lately.")
    ] = False,
) -> None:
    """What serves now, what is being done, what has been noticed."""
    app = opened(workspace)
    now = app.clock.now()
    facts = readmodel.snapshot(app.ledger, app.workspace, app.config, now, observed=observed(app))
    print_json(facts) if as_json else _print_status(facts, now)
    if check and facts["controller"]["late"]:
        raise BackendError(
            facts["controller"]["text"],
            backend="controller",
            retriable=True,
            hint="`intonaco up` starts it; the controller's log says why it ended or hangs",
        )


def _print_status(facts: dict[str, Any], now: float) -> None:
    releases = facts["releases"]
    champion = releases["champion"]
    out.print(f"service    {facts['service']}" + ("  FROZEN" if facts["frozen"] else ""))
    if champion is None:
        out.print("champion   none yet: `intonaco update start` trains the first release")
    else:
        since = f"since {ago(now - champion['since'])}" if champion.get("since") else ""
        out.print(f"champion   {champion['short']}  {champion['pipeline_class']}  {since}")
    for role in ("challenger", "previous"):
        if releases[role] is not None:
            out.print(f"{role:<10} {releases[role]['short']}")
    update = facts["update"]
    if update is not None:
        out.print(f"update     {update['id']} in {update['phase']}", markup=False)
    running = [p["name"] for p in facts["processes"] if p["alive"]]
    out.print(f"processes  {', '.join(running) or 'none running: `intonaco up` starts them'}")
    if facts["controller"]["late"]:
        out.print(f"WARNING    {facts['controller']['text']}")
    budget = facts["budget"]
    out.print(
        f"budget     {budget['settled']:.4f} spent, {budget['left']:.2f} {budget['currency']} left"
    )
    print_table(
        "\nsignals",
        ("signal", "armed", "value", "reference", "evidence", "state"),
        (
            (
                s["signal"],
                "yes" if s["armed"] else "no",
                _number(s["value"]),
                _number(s["reference"]),
                f"{s['evidence']:.1f} of {s['threshold']:.1f}",
                "FIRING" if s["firing"] else "quiet",
            )
            for s in facts["signals"]
        ),
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def events(
    workspace: Folder = HERE,
    as_json: AsJson = False,
    limit: Annotated[int, typer.Option(help="How many, newest last.")] = 50,
    kind: Annotated[str | None, typer.Option(help="Only this kind, such as rollout.")] = None,
) -> None:
    """Who did what, when and why."""
    app = opened(workspace)
    found = app.ledger.events(limit=limit, kind=kind, newest=True)
    if as_json:
        print_json(found)
        return
    for event in found:
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.at))
        out.print(f"{at}  {event.kind:<18} {event.actor:<10} {event.text}", markup=False)


# ------------------------------------------------------------------------------------ releases


def release_list(workspace: Folder = HERE, as_json: AsJson = False) -> None:
    """Every release, oldest first."""
    app = opened(workspace)
    champion, previous = app.ledger.champion(), app.ledger.previous()
    verdicts = {
        c.release_id: str(c.verdict)
        for u in app.ledger.all(Update)
        for c in u.candidates
        if c.release_id and c.verdict
    }

    def role(release: Release) -> str:
        if release.release_id == champion:
            return "champion"
        return "previous" if release.release_id == previous else ""

    found = app.ledger.all(Release)
    if as_json:
        print_json(
            [{**to_json(r), "role": role(r), "verdict": verdicts.get(r.release_id)} for r in found]
        )
        return
    print_table(
        "releases",
        ("release", "role", "verdict", "recipe", "dataset", "made"),
        (
            (
                r.short,
                role(r),
                verdicts.get(r.release_id, ""),
                r.provenance.recipe,
                (r.provenance.dataset_version or "")[:10],
                ago(app.clock.now() - r.provenance.created_at) + " ago",
            )
            for r in found
        ),
    )


Id = Annotated[str, typer.Argument(help="Release id, or the beginning of it.")]


def release_show(release: Id, workspace: Folder = HERE, as_json: AsJson = False) -> None:
    """One release's manifest."""
    app = opened(workspace)
    found = app.ledger.get(Release, release)
    if as_json:
        print_json(found)
        return
    out.print(f"release    {found.release_id}")
    out.print(f"folder     {app.workspace.resolve(found.path)}", markup=False)
    for name, value in to_json(found.serving).items():
        if name != "weights":
            out.print(f"  {name:<16} {value}", markup=False)
    for name, digest in found.serving.weights.items():
        out.print(f"  {digest[:12]}  {name}", markup=False)
    for name, value in to_json(found.provenance).items():
        out.print(f"  {name:<16} {value}", markup=False)


def release_lineage(release: Id, workspace: Folder = HERE, as_json: AsJson = False) -> None:
    """Where a release comes from: run, dataset, findings, traffic."""
    app = opened(workspace)
    found = app.ledger.get(Release, release)
    lineage = readmodel.release_lineage(app.ledger, found.release_id)
    if as_json:
        print_json(lineage)
        return
    _print_tree(lineage, 0)


def _print_tree(value: Any, depth: int) -> None:
    for key, item in value.items():
        if item is None or item in ([], {}, ""):
            continue
        if isinstance(item, dict):
            out.print(f"{'  ' * depth}{key}:", markup=False)
            _print_tree(item, depth + 1)
        elif isinstance(item, list) and item and isinstance(item[0], dict):
            out.print(f"{'  ' * depth}{key}:", markup=False)
            for entry in item:
                _print_tree(entry, depth + 1)
        else:
            text = item[:10] if key.endswith(("release_id", "version")) else item
            out.print(f"{'  ' * depth}{key}: {text}", markup=False)


def release_diff(a: Id, b: Id, workspace: Folder = HERE, as_json: AsJson = False) -> None:
    """What differs between two releases' serving sections."""
    app = opened(workspace)
    first, second = (to_json(app.ledger.get(Release, x).serving) for x in (a, b))
    changed = {
        name: {"a": first[name], "b": second[name]}
        for name in first
        if name != "weights" and first[name] != second[name]
    }
    files = sorted(
        name
        for name in {*first["weights"], *second["weights"]}
        if first["weights"].get(name) != second["weights"].get(name)
    )
    if as_json:
        print_json({"changed": changed, "files": files})
        return
    for name, sides in changed.items():
        out.print(f"{name}: {sides['a']} → {sides['b']}", markup=False)
    for name in files:
        out.print(f"file {name}", markup=False)
    if not changed and not files:
        out.print("the same")


# ------------------------------------------------------------------------------------ used by steer


def update_list(workspace: Folder = HERE, as_json: AsJson = False) -> None:
    """Every update, oldest first."""
    app = opened(workspace)
    found = app.ledger.all(Update)
    if as_json:
        print_json(found)
        return
    print_table(
        "updates",
        ("update", "phase", "action", "cause", "candidates", "reason"),
        (
            (
                u.update_id,
                u.phase,
                u.plan.action,
                u.plan.cause,
                ", ".join(f"{c.name}: {c.verdict or '…'}" for c in u.candidates),
                u.reason if len(u.reason) <= REASON else u.reason[: REASON - 1] + "…",
            )
            for u in found
        ),
    )


def update_show(
    update: Annotated[str, typer.Argument(help="Update id.")],
    workspace: Folder = HERE,
    as_json: AsJson = False,
) -> None:
    """One update with its plan, its candidates and the gate's figures."""
    app = opened(workspace)
    found = app.ledger.get(Update, update)
    if as_json:
        print_json(found)
        return
    out.print(f"update {found.update_id}: {found.phase} {found.reason}", markup=False)
    out.print(
        f"plan   {found.plan.action} because of {found.plan.cause}: {found.plan.reason}",
        markup=False,
    )
    for candidate in found.candidates:
        out.print(f"\n{candidate.name}: {candidate.verdict or 'not judged yet'}", markup=False)
        for reason in candidate.reasons:
            out.print(f"  {reason}", markup=False)


def rollout_show(workspace: Folder = HERE, as_json: AsJson = False) -> None:
    """The running rollout, or the last one."""
    app = opened(workspace)
    found = app.ledger.all(Rollout)
    if not found:
        raise NotFound("there has been no rollout yet")
    rollout = found[-1]
    if as_json:
        print_json(rollout)
        return
    _print_rollout(readmodel.rollout_card(app.ledger, rollout, app.clock.now()), rollout, app)


def _print_rollout(card: dict[str, Any], rollout: Rollout, app: App) -> None:
    now = app.clock.now()
    out.print(f"rollout {rollout.rollout_id}: {rollout.status} {rollout.reason}", markup=False)
    if not rollout.status.final:
        out.print(steering.shares(rollout), markup=False)
    if card["notice"]:
        out.print(card["notice"], markup=False)
    if card["waiting_for"]:
        out.print(f"waiting for {card['waiting_for']}", markup=False)
    for deadline in card["deadlines"]:
        left = max(0.0, deadline["at"] - now)
        out.print(f"in {ago(left)}: {deadline['text']}", markup=False)
    if app.ledger.setting("frozen"):
        out.print("the service is frozen: it does not advance")
    print_table(
        "steps",
        ("", "step", "users", "judged", "decision"),
        (
            (
                {"done": "✓", "current": "▶", "stopped": "✗"}.get(step["state"], ""),
                step["text"],
                _bar(step["weight"], 1.0)
                if step["kind"] in (StepKind.CANARY, StepKind.SPLIT)
                else "",
                "" if step["units"] is None or not step["min_units"] else step["units"],
                step["decision"],
            )
            for step in card["steps"]
        ),
    )
    if card["course"]:
        print_table(
            "\nwho got what",
            ("since the beginning", "the challenger's users", "", "baseline", "copied"),
            (
                (
                    ago(point["at"] - rollout.started_at),
                    _bar(point["shares"].get("challenger", 0.0), 1.0),
                    f"{point['shares'].get('challenger', 0.0):.1%}",
                    f"{point['shares']['baseline']:.1%}" if "baseline" in point["shares"] else "",
                    f"{point['shadow']:.1%}" if point["shadow"] else "",
                )
                for point in card["course"]
            ),
        )
    split = readmodel.rollout_facts(rollout, now)["split"]
    over = rollout.status.final
    if split:
        _split(split, over)
    if rollout.assessments or not split:
        _assessments("\nassessments", rollout.assessments, over)


def _split(split: readmodel.Facts, over: bool) -> None:
    """Every arm of a split with its share, how it stands and its evidence."""
    print_table(
        f"\nsplit, decided by {split['metric']}",
        ("arm", "release", "users", "judged", "state", "lacks"),
        (
            (
                arm["name"],
                str(arm["release"])[:10],
                f"{_bar(arm['share'], 1.0)} {arm['share']:.0%}",
                "" if arm["units"] is None else arm["units"],
                arm["state"].replace("_", " ") + (f": {arm['reason']}" if arm["reason"] else ""),
                ", ".join(arm["lacks"]),
            )
            for arm in split["arms"]
        ),
    )
    for arm in split["arms"]:
        if arm["assessments"] and arm["name"] != split["winner"]:
            _assessments(f"\n{arm['name']} against the champion", arm["assessments"], over)
    for pair in split["pairs"]:
        if pair.interval:
            low, high = pair.interval
            out.print(
                f"{pair.first} against {pair.second}: {number(split['metric'], pair.difference)} "
                f"[{number(split['metric'], low)}, {number(split['metric'], high)}]",
                markup=False,
            )


def _assessments(title: str, found: Sequence[MetricAssessment], over: bool) -> None:
    """``over``: nothing is waited for any more."""
    waits = () if over else ("waits for",)
    print_table(
        title,
        ("metric", "difference", "interval", "margin", "evidence of harm", *waits),
        (
            (
                a.metric,
                number(a.metric, a.difference) if a.difference is not None else "",
                f"{number(a.metric, a.interval[0])} to {number(a.metric, a.interval[1])}"
                if a.interval
                else "",
                number(a.metric, a.margin).lstrip("+"),
                f"{_bar(a.evidence_harm, a.threshold)} {a.evidence_harm:.1f} of {a.threshold:.1f}",
                *(still(a) for _ in waits),
            )
            for a in found
        ),
    )
    for a in found:
        out.print(f"{a.metric}: {stands(a, over=over)}", markup=False)


def _bar(value: float, whole: float, cells: int = 12) -> str:
    """A share of a whole, drawn."""
    filled = round(min(max(value / whole, 0.0), 1.0) * cells)
    return "█" * filled + "░" * (cells - filled)
