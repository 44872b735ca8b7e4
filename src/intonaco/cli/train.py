"""train: one recipe, by hand."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer

from intonaco.cli.common import HERE, AsJson, Folder, actor, opened, out, print_json
from intonaco.cli.jobs import wait_for
from intonaco.codec import digest
from intonaco.config import Recipe
from intonaco.errors import ConfigError, Conflict, NotFound
from intonaco.executor import Parts
from intonaco.executor.data import dataset_of, put_checked
from intonaco.executor.exporting import export_training
from intonaco.executor.models import code_revision
from intonaco.executor.training import (
    ENTRYPOINT,
    Base,
    base_of,
    base_of_release,
    cost_of,
    limits_by_hand,
    order,
    params_of,
    release_of,
    set_aside,
    settle_up,
)
from intonaco.folders import check_folder
from intonaco.jobs import JobFolder, job_folder
from intonaco.types import JobSpec, JobState, Provenance, Release


def add_to(app: typer.Typer) -> None:
    app.command()(train)


def train(
    recipe: Annotated[str | None, typer.Option(help="Recipe of training.recipes to train.")] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            help="Dataset version (or how it begins), or a folder, which becomes one. By default "
            "data.train, else what the base learnt from."
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            help="Release (or how it begins) or folder of a pipeline to start from, instead of the "
            "recipe's init."
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Instead of the recipe's.")] = None,
    max_seconds: Annotated[
        float | None, typer.Option(min=1, help="End with what is there before that time.")
    ] = None,
    max_money: Annotated[
        float | None,
        typer.Option(min=0.000001, help="End before so much is spent, at the hour's price."),
    ] = None,
    follow: Annotated[
        str | None,
        typer.Option(help="Wait for a training by hand that runs already: its job's id."),
    ] = None,
    workspace: Folder = HERE,
    as_json: AsJson = False,
) -> None:
    """Train one recipe and keep the result as a release: no update, no gate, no traffic. Ctrl-C
    cancels. Ends with 0, or 4 if the training failed."""
    app = opened(workspace)
    p = app.parts()
    if (recipe is None) == (follow is None):
        raise ConfigError(
            "give --recipe, or --follow for a training that runs",
            hint=f"training.recipes has: {', '.join(p.config.training.recipes)}",
        )
    if follow is not None:
        if any(v is not None for v in (dataset, base, seed, max_seconds, max_money)):
            raise ConfigError("--follow goes with no option but --workspace and --json")
        spec = _running(p, follow)
    else:
        spec = _ordered(p, str(recipe), dataset, base, seed, max_seconds, max_money)
    _see_through(p, spec, as_json=as_json)


def _ordered(
    p: Parts,
    name: str,
    dataset: str | None,
    base: str | None,
    seed: int | None,
    max_seconds: float | None,
    max_money: float | None,
) -> JobSpec:
    """The job that is asked for, its budget set aside. Raises ConfigError, NotFound, Conflict."""
    settings = p.config.training.recipes.get(name)
    if settings is None:
        known = ", ".join(p.config.training.recipes)
        raise NotFound(f"no recipe {name!r}; training.recipes has: {known}")
    champion = p.ledger.champion()
    start = _base(p, settings, base, p.releases.get(champion) if champion else None)
    limits = limits_by_hand(p, settings, max_seconds, max_money)
    version = _dataset(p, dataset, start)
    at = p.clock.now()
    key = f"{p.config.service}:train:{name}:{digest([name, version, start.folder, seed, at])[:12]}"
    spec = order(
        p,
        key,
        settings,
        version,
        start,
        limits.told,
        max_seconds=limits.seconds,
        **({} if seed is None else {"seed": seed}),
        by_hand={
            "recipe": name,
            "parent": start.release.release_id if start.release else None,
            "actor": actor(),
        },
    )
    set_aside(p, key, limits)
    return spec


def _see_through(p: Parts, spec: JobSpec, *, as_json: bool) -> None:
    """Run or adopt the job, export it on its way, and release what it made."""
    told = spec.payload["by_hand"]
    params = params_of(str(told["recipe"]), spec.payload)
    job = job_folder(p.workspace, spec.key).name
    handle = None
    try:
        with _ending_as_ctrl_c():
            handle = p.training.submit(spec)
            if not as_json:
                out.print(f"training {told['recipe']}, job {job}", markup=False)
            status = wait_for(
                p,
                handle,
                what="the training",
                quiet=as_json,
                look=lambda: export_training(p, spec.key, params),
            )
    finally:
        # Also of one that was cancelled or failed: what it took is spent.
        status_now = None if handle is None else p.training.poll(handle)
        if status_now is None or status_now.state is not JobState.RUNNING:
            settle_up(p, spec.key, 0.0 if status_now is None else status_now.seconds)
        export_training(p, spec.key, params)
    parent = p.releases.get(told["parent"]) if told["parent"] else None
    champion = p.ledger.champion()
    like = parent or (p.releases.get(champion) if champion else None)
    release = release_of(
        p,
        spec,
        status,
        Recipe.model_validate(spec.payload["recipe"]),
        like,
        Provenance(
            created_at=p.clock.now(),
            parent=told["parent"],
            recipe=str(told["recipe"]),
            dataset_version=spec.payload["dataset_version"],
            training_job=spec.key,
            code_revision=code_revision(),
            note=f"trained by hand by {told['actor']}",
        ),
    )
    _tell(p, spec, release, status.result, status.seconds, cost_of(p.config, status), as_json)


def _tell(
    p: Parts,
    spec: JobSpec,
    release: Release,
    result: Any,
    seconds: float,
    cost: float,
    as_json: bool,
) -> None:
    folder = job_folder(p.workspace, spec.key)
    recipe = str(spec.payload["by_hand"]["recipe"])
    if as_json:
        print_json(
            {
                "release": release,
                "job": folder.name,
                "folder": str(folder),
                "seconds": seconds,
                "cost": cost,
                "result": result,
            }
        )
        return
    text = (
        f"release {release.short}: {result['steps']} steps in {seconds:.0f} s, "
        f"{result['images_per_second']:.1f} images/s, loss {result['loss_first']:.4g} to "
        f"{result['loss_last']:.4g}"
    )
    if cost > 0:
        text += f", cost {cost:.2f} {p.config.decision.budget.currency}"
    out.print(text, markup=False)
    if result.get("stopped"):
        out.print(f"it ended early: {result['stopped']}", markup=False)
    out.print(
        f"it serves nobody; prove it with `intonaco eval run --release {release.short}`, or let "
        f"an update train, prove and roll out: `intonaco update start --recipe {recipe}`",
        markup=False,
    )


def _base(p: Parts, recipe: Recipe, given: str | None, champion: Release | None) -> Base:
    """Raises ConfigError, NotFound."""
    if given is None:
        return base_of(p, recipe, champion)
    folder = Path(given)
    if folder.is_dir():
        check_folder(folder)
        return Base(folder=str(folder.resolve()))
    found = [r for r in p.releases.list() if r.release_id.startswith(given)] if given else []
    if len(found) != 1:
        if found:
            raise ConfigError(f"--base {given} begins {len(found)} releases: give more of the id")
        raise NotFound(
            f"--base {given}: neither a release nor a folder",
            hint="`intonaco release list` shows the releases",
        )
    return base_of_release(p, found[0])


def _dataset(p: Parts, given: str | None, base: Base) -> str:
    """The version to learn from, made if it is a folder. Raises ConfigError, NotFound."""
    if given is not None and not Path(given).is_dir():
        found = [v.version for v in p.datasets.list() if given and v.version.startswith(given)]
        if len(found) == 1:
            return found[0]
        if found:
            raise ConfigError(f"--dataset {given} begins {len(found)} versions: give more of it")
        raise NotFound(
            f"--dataset {given}: neither a version nor a folder",
            hint="`intonaco dataset list` shows the versions",
        )
    folder = Path(given) if given is not None else None
    if folder is None and p.config.data.train is not None:
        folder = p.workspace.resolve(p.config.data.train)
    if folder is None:
        learnt = dataset_of(p, base.release.release_id if base.release else None)
        if learnt is None:
            raise ConfigError(
                "no data to train on: data.train is not given, and the base names no dataset",
                hint="--dataset VERSION or --dataset FOLDER",
            )
        return learnt.version
    version, _ = put_checked(p, folder, name=folder.name)
    with p.ledger.begin() as tx:
        tx.put(version, id=version.version, at=version.created_at)
    return version.version


def _running(p: Parts, job: str) -> JobSpec:
    """The order of a training by hand, by its job's id. Raises NotFound, Conflict."""
    folder = p.workspace.jobs / job
    if len(Path(job).parts) != 1 or not (folder / "spec.json").is_file():
        raise NotFound(f"no job {job!r}", hint="`intonaco train` prints its id when it begins")
    spec = JobFolder(folder).spec
    if spec.entrypoint != ENTRYPOINT or "by_hand" not in spec.payload:
        raise Conflict(
            f"job {job} was not begun by `intonaco train`",
            hint="`intonaco update list` shows updates; the controller looks after their jobs",
        )
    return spec


@contextmanager
def _ending_as_ctrl_c() -> Iterator[None]:
    """A closed terminal and ``kill`` end a training as Ctrl-C does, which cancels its job."""

    def end(number: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    before = {s: signal.signal(s, end) for s in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for sign, handler in before.items():
            signal.signal(sign, handler)
