"""eval plan, run, compare, report."""

from __future__ import annotations

import json
import math
import webbrowser
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from intonaco.app import App
from intonaco.cli.common import HERE, AsJson, Folder, opened, out, print_json, print_table
from intonaco.cli.jobs import wait_for
from intonaco.codec import as_json as to_json
from intonaco.codec import digest
from intonaco.config import Evaluation, Extractor, Margins
from intonaco.errors import ConfigError, Conflict, NotFound
from intonaco.evaluation import gate, power
from intonaco.evaluation.gate import GateDecision
from intonaco.evaluation.prompts import read_prompts, shots, shots_digest, version_of
from intonaco.evaluation.verdicts import decided, results_of
from intonaco.evaluation.wording import amount, change, metric_name
from intonaco.executor import Parts
from intonaco.executor.data import dataset_of
from intonaco.executor.evaluating import (
    extractor_digest,
    log_report,
    payload,
    slices_of,
    tracked,
)
from intonaco.jobs import job_folder
from intonaco.types import Action, JobSpec, Json, MetricResult, Release, Update, Verdict

ENTRYPOINT = "intonaco.evaluation.job"
REASONS = 6
AGAIN = "again"  # the champion under other seeds
CODES = {Verdict.PASS: 0, Verdict.FAIL: 1, Verdict.INCONCLUSIVE: 3, Verdict.ERROR: 4}

Open = Annotated[bool, typer.Option("--open", help="Show the report in the browser.")]


def add_to(app: typer.Typer) -> None:
    evaluations = typer.Typer(
        help="Prove a release against another, without touching traffic.", no_args_is_help=True
    )
    evaluations.command("plan")(plan)
    evaluations.command("run")(run)
    evaluations.command("compare")(compare)
    evaluations.command("report")(report)
    app.add_typer(evaluations, name="eval")


# ------------------------------------------------------------------------------------ run


def run(
    release: Annotated[str, typer.Option(help="Release to prove: its id, or how it begins.")],
    against: Annotated[
        str | None, typer.Option(help="Release to beat; the champion by default.")
    ] = None,
    kind: Annotated[
        Action | None,
        typer.Option(
            help="What it is for: fine_tune and full_retrain must improve something, assemble must "
            "only be no worse. By default something must improve if slices were newly learnt."
        ),
    ] = None,
    improve: Annotated[
        list[str] | None,
        typer.Option(help="Slice that has to improve; repeatable. By default what is newly learnt"),
    ] = None,
    open_: Open = False,
    workspace: Folder = HERE,
    as_json: AsJson = False,
) -> None:
    """Evaluate a release on the golden prompts and say whether it would pass the gate. Ends with
    0 pass, 1 fail, 3 inconclusive, 4 error."""
    if kind is not None and not (kind.trains or kind is Action.ASSEMBLE):
        raise ConfigError(
            f"--kind {kind} makes no candidate", hint="fine_tune, full_retrain or assemble"
        )
    if kind is Action.ASSEMBLE and improve:
        raise ConfigError("--kind assemble has nothing to improve: leave --improve out")
    app = opened(workspace)
    p = app.parts()
    candidate = _release(p, release)
    champion = _release(p, against).release_id if against else app.ledger.champion()
    version = dataset_of(p, candidate.release_id)
    keep, learnt = slices_of(p, champion, [version] if version else [])
    wanted = sorted(improve) if improve else [] if kind is Action.ASSEMBLE else learnt
    at = app.clock.now()
    key = f"{app.config.service}:eval:{digest([candidate.release_id, champion, at])[:12]}"
    made = payload(
        p,
        champion=champion,
        candidates={_name_of(candidate): candidate.release_id},
        keep=[s for s in keep if s not in wanted],
        improve=wanted,
        extractor=extractor_digest(p),
        attempt=key,
        at=at,
        context={"command": "intonaco eval run", "run": key},
        superiority=None if kind is None else gate.wants_superiority(kind),
    )
    folder = _run_job(p, JobSpec(key=key, entrypoint=ENTRYPOINT, payload=made), quiet=as_json)
    facts = _read(folder)
    decisions = decided(facts, app.config.evaluation, extractor=extractor_digest(p))
    log_report(
        p,
        key,
        folder,
        params={"release": candidate.release_id, "against": champion or "none"},
        metrics=tracked(decisions),
    )
    page = folder / "report.html"
    if as_json:
        print_json({"id": folder.parent.name, "page": str(page), **facts})
    else:
        _print(facts, decisions)
        out.print(f"report {folder.parent.name}: {page}", markup=False)
    if open_:
        webbrowser.open(page.resolve().as_uri())
    raise typer.Exit(CODES[best(decisions)])


def _run_job(p: Parts, spec: JobSpec, *, quiet: bool) -> Path:
    """Run a job to its end, with a bar; its ``out`` folder. Ctrl-C cancels it. Raises
    BackendError."""
    folder = job_folder(p.workspace, spec.key)
    handle = p.training.submit(spec)
    if not quiet:  # it goes on if this process dies
        out.print(f"evaluation {folder.name} runs", markup=False)
    wait_for(p, handle, what="the evaluation", quiet=quiet)
    return folder / "out"


def _release(p: Parts, beginning: str) -> Release:
    found = [r for r in p.releases.list() if r.release_id.startswith(beginning)]
    if not found:
        raise NotFound(f"no release {beginning!r}", hint="`intonaco release list` shows all")
    if len(found) > 1:
        raise ConfigError(f"{beginning!r} begins {len(found)} releases: give more of the id")
    return found[0]


def _name_of(release: Release) -> str:
    return release.provenance.recipe or release.short


# ------------------------------------------------------------------------------------ plan


def plan(
    margin: Annotated[
        list[str] | None,
        typer.Option(help="NAME=VALUE in place of evaluation.margins.NAME; repeatable."),
    ] = None,
    prompts: Annotated[
        int | None, typer.Option(min=2, help="Prompts in all: which margins can they show?")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Seeds per prompt that are planned.")
    ] = None,
    from_: Annotated[
        str | None,
        typer.Option("--from", help="An A/A report that is there, instead of a new run."),
    ] = None,
    workspace: Folder = HERE,
    as_json: AsJson = False,
) -> None:
    """How many prompts, seeds and rounds each margin needs, from a run of the champion against
    itself under other seeds."""
    app = opened(workspace)
    margins = _margins(app.config.evaluation.margins, margin or [])
    folder = _find(app, from_) if from_ else _run_against_itself(app, quiet=as_json)
    facts = _read(folder)
    settings = app.config.evaluation
    if AGAIN not in facts["comparisons"]:
        raise ConfigError(
            f"{folder} is no run of a champion against itself",
            hint="without --from one is made",
        )
    drawn = int(facts["reproduce"]["seeds_per_prompt"])
    noises = power.noise(
        results_of(facts, AGAIN),
        alpha=float(facts["alpha"]),
        prompts={str(k): int(v) for k, v in facts["shots"]["prompts_by_slice"].items()},
        rounds=int(facts["reproduce"]["latency_rounds"]),
        seeds=(drawn, seeds or drawn),
    )
    if prompts is not None:
        every = sum(facts["shots"]["prompts_by_slice"].values())
        noises = tuple(_of_more(x, prompts / every) for x in noises)
    found = power.plan(noises, margins, alpha=settings.alpha, power=settings.power)
    if as_json:
        print_json({"report": str(folder / "report.json"), **to_json(found)})
        return
    _print_plan(found, prompts, seeds or drawn)
    if settings.prompts is not None:
        present = version_of(read_prompts(app.workspace.resolve(settings.prompts)))
        if present != facts["shots"].get("prompts_digest"):
            out.print("note: it drew other prompts than evaluation.prompts has now", markup=False)
    out.print(f"A/A report {folder.parent.name}: {folder / 'report.html'}", markup=False)


def _run_against_itself(app: App, *, quiet: bool) -> Path:
    p = app.parts()
    champion = app.ledger.champion()
    if champion is None:
        raise Conflict(
            "there is no champion yet, and so nothing to plan with",
            hint="`intonaco update start` makes the first release",
        )
    at = app.clock.now()
    key = f"{app.config.service}:eval-plan:{digest([champion, at])[:12]}"
    made = payload(
        p,
        champion=champion,
        candidates={AGAIN: champion},
        keep=[],
        improve=[],
        extractor=extractor_digest(p),
        attempt=key,
        at=at,
        context={"command": "intonaco eval plan", "run": key},
    )
    made["candidates"][0]["first_seed"] = app.config.evaluation.seeds_per_prompt
    return _run_job(p, JobSpec(key=key, entrypoint=ENTRYPOINT, payload=made), quiet=quiet)


def _margins(known: Margins, given: list[str]) -> Margins:
    """The configured margins with some replaced. Raises ConfigError."""
    values = known.model_dump()
    for text in given:
        name, _, value = text.partition("=")
        if name not in values or name == "scores":
            named = ", ".join(k for k in values if k != "scores")
            raise ConfigError(f"--margin {text}: no margin {name!r}", hint=f"there are {named}")
        try:
            values[name] = float(value)
        except ValueError:
            raise ConfigError(f"--margin {text}: {value!r} is no number") from None
    try:
        return Margins.model_validate(values)
    except ValidationError as error:
        wrong = error.errors()[0]
        raise ConfigError(f"--margin {wrong['loc'][0]}: {wrong['msg']}") from error


def _of_more(x: power.Noise, times: float) -> power.Noise:
    """The noise of so many times as many prompts."""
    if x.by_rounds:
        return x
    n = max(2, round(x.n * times))
    return replace(x, error=x.error * math.sqrt(x.n / n), n=n)


def _print_plan(found: power.EvaluationPlan, prompts: int | None, seeds: int) -> None:
    print_table(
        f"to pass with a probability of {found.power:.0%} a candidate that is no different, at "
        f"alpha {found.alpha:g} and {seeds} seeds a prompt",
        ("guardrail", "slice", "margin", "needed", "now", "can show now", "power now"),
        (
            (
                metric_name(n.metric),
                n.slice,
                amount(n.margin, n.metric),
                f"{'no number' if n.needed is None else n.needed} "
                f"{'rounds' if n.by_rounds else 'prompts'}",
                n.n,
                amount(n.shows, n.metric),
                f"{n.power_now:.0%}" + ("" if n.enough else "  too few"),
            )
            for n in found.needs
        ),
    )
    wanted = "no number of prompts" if found.prompts is None else f"{found.prompts} prompts in all"
    rounds = "no number of rounds" if found.rounds is None else f"{found.rounds} rounds of timing"
    have = f" of {prompts} prompts" if prompts is not None else ""
    out.print(
        f"needed: {wanted}, if each slice keeps its share, and {rounds}; all guardrails hold now "
        f"with a probability{have} of at least {found.joint_power:.0%}",
        markup=False,
    )


# ------------------------------------------------------------------------------------ compare


def compare(
    first: Annotated[
        str, typer.Argument(help="A report (its id, folder or report.json), or a folder of images.")
    ],
    second: Annotated[
        Path | None, typer.Argument(help="A folder of the candidate's images.")
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="Real images, to measure distance and recall by.")
    ] = None,
    extractor: Annotated[
        Path | None, typer.Option(help="Extractor's folder; that of the workspace by default.")
    ] = None,
    improve: Annotated[
        list[str] | None, typer.Option(help="Slice that is to improve; repeatable.")
    ] = None,
    target: Annotated[
        Path, typer.Option("--out", help="Where the report of two folders goes.")
    ] = Path("comparison"),
    open_: Open = False,
    workspace: Folder = HERE,
    as_json: AsJson = False,
) -> None:
    """Judge a report again by the workspace's present margins, or compare two folders of images of
    the same prompts and seeds, without any model. Ends with 0 pass, 1 fail, 3 inconclusive,
    4 error."""
    app = opened(workspace)
    if second is None:
        folder = _find(app, first)
        facts: Mapping[str, Json] = _read(folder)
        judge = extractor_digest(app.parts()) if app.config.extractor is not None else None
        decisions = decided(
            facts, app.config.evaluation, extractor=judge, shots=_present_shots(app)
        )
        page: Path | None = folder / "report.html"
    else:
        facts, decisions = _compare_folders(
            app, Path(first), second, reference, extractor, improve or [], target
        )
        page = target / "report.html"
    if as_json:
        print_json({"page": str(page), "verdicts": _verdicts(decisions), **facts})
    else:
        _print(facts, decisions)
        out.print(f"report {page}", markup=False)
    if open_ and page is not None:
        webbrowser.open(page.resolve().as_uri())
    raise typer.Exit(CODES[best(decisions)])


def _compare_folders(
    app: App,
    champion: Path,
    candidate: Path,
    reference: Path | None,
    extractor: Path | None,
    improve: list[str],
    target: Path,
) -> tuple[Mapping[str, Json], dict[str, GateDecision]]:
    from intonaco.evaluation.folders import compare_folders

    known = app.config.extractor
    if extractor is not None:
        known = Extractor(type="clip", path=str(extractor.resolve()))
    if known is None:
        raise ConfigError(
            "no extractor: intonaco.yaml names none", hint="--extractor FOLDER names one"
        )
    facts, decision = compare_folders(
        champion,
        candidate,
        reference=reference,
        extractor=known,
        root=app.workspace.root,
        settings=app.config.evaluation,
        improve=improve,
        cache=app.workspace.evaluations,
        target=target,
    )
    return facts, {str(facts["candidates"][0]): decision}


# ------------------------------------------------------------------------------------ report


def report(
    which: Annotated[
        str, typer.Argument(help="A report's id, an update's id, or a folder or file of one.")
    ],
    open_: Open = False,
    workspace: Folder = HERE,
    as_json: AsJson = False,
) -> None:
    """Show the report of an evaluation: the verdict as it was then."""
    app = opened(workspace)
    folder = _find(app, which)
    facts = _read(folder)
    page = folder / "report.html"
    if as_json:
        print_json({"page": str(page), **facts})
        return
    try:
        then = Evaluation.model_validate(facts["reproduce"]["settings"])
    except (ValidationError, KeyError) as error:
        raise ConfigError(
            f"{folder / 'report.json'} was made with settings that are unknown here: {error}",
            hint=f"its page {page} tells what it said",
        ) from error
    _print(facts, decided(facts, then))
    out.print(f"report {page}", markup=False)
    if open_ and not webbrowser.open(page.resolve().as_uri()):
        out.print("no browser was found to open it in", markup=False)


def _find(app: App, which: str) -> Path:
    """The folder that holds ``report.json``. Raises NotFound."""
    given = Path(which)
    for folder in (given, given / "out", given.parent if given.is_file() else given):
        if (folder / "report.json").is_file():
            return folder
    direct = app.workspace.jobs / which / "out"
    if len(given.parts) == 1 and (direct / "report.json").is_file():
        return direct
    if len(given.parts) == 1 and (app.workspace.jobs / which / "spec.json").is_file():
        raise NotFound(
            f"job {which} has no report, or none yet",
            hint=f"its log is {app.workspace.jobs / which / 'log.txt'}",
        )
    for update in app.ledger.all(Update):
        if which and update.update_id.startswith(which):
            for status in app.ledger.effects(update.update_id).values():
                if status.effect.kind == "evaluate" and status.status == "done":
                    return app.workspace.resolve(str(status.result["folder"]))
            raise NotFound(f"update {update.update_id} has no evaluation that is done")
    raise NotFound(
        f"no report {which!r}",
        hint="`intonaco eval run` prints its id; an update's id, a folder or a file do too",
    )


def _present_shots(app: App) -> str | None:
    """Digest of what ``evaluation.prompts`` asks of an arm now; None if there is no such file."""
    settings = app.config.evaluation
    if settings.prompts is None:
        return None
    prompts = read_prompts(app.workspace.resolve(settings.prompts))
    return shots_digest(shots(prompts, settings.seeds_per_prompt))


def _read(folder: Path) -> dict[str, Json]:
    file = folder / "report.json"
    try:
        facts: dict[str, Json] = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error
    fields = ("candidates", "comparisons", "shots", "reproduce")
    if not isinstance(facts, dict) or any(name not in facts for name in fields):
        raise ConfigError(f"{file} is no report of an evaluation, or not a whole one")
    return facts


# ------------------------------------------------------------------------------------ shared


def best(decisions: Mapping[str, GateDecision]) -> Verdict:
    """One candidate that passes is enough; of others the mildest word counts."""
    order = (Verdict.PASS, Verdict.INCONCLUSIVE, Verdict.FAIL, Verdict.ERROR)
    return min((d.verdict for d in decisions.values()), key=order.index, default=Verdict.ERROR)


def _verdicts(decisions: Mapping[str, GateDecision]) -> dict[str, Any]:
    return {
        name: {"verdict": str(d.verdict), "reasons": list(d.reasons)}
        for name, d in decisions.items()
    }


def _print(facts: Mapping[str, Json], decisions: Mapping[str, GateDecision]) -> None:
    for name, decision in decisions.items():
        out.print(f"{name}: {decision.verdict}", style="bold", markup=False)
        for reason in decision.reasons[:REASONS]:
            out.print(f"  {reason}", markup=False)
        if (more := len(decision.reasons) - REASONS) > 0:
            out.print(f"  and {more} more in the report", markup=False)
        print_table(
            "",
            ("metric", "slice", "change, interval", "margin", ""),
            # what slices say for information is in the report
            (_row(m) for m in decision.metrics if m.guardrail or m.slice is None),
        )
    for note in facts.get("notes", ()):
        out.print(f"note: {note}", markup=False)


def _row(m: MetricResult) -> tuple[object, ...]:
    margin = None if m.margin is None else amount(m.margin, m.metric)
    said = str(m.assessment).replace("_", " ") if m.guardrail else "for information"
    return (metric_name(m.metric), m.slice, change(m), margin, said)
