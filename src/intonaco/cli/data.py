"""dataset add, list, show, diff, verify, push, pull."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import progress as bars
from rich.console import Console

from intonaco.app import App
from intonaco.cli import curate
from intonaco.cli.common import HERE, AsJson, Folder, opened, out, print_json, print_table
from intonaco.cli.curate import ImageColumn, TextColumn
from intonaco.codec import as_json
from intonaco.datasets import checking
from intonaco.datasets.dvc import Dvc, find_dvc
from intonaco.datasets.formats import Columns
from intonaco.datasets.objects import Progress, silent
from intonaco.datasets.store import LocalDatasetStore
from intonaco.errors import StorageError
from intonaco.types import DatasetVersion

Version = Annotated[str, typer.Argument(help="Id of a version, or the beginning of it.")]
Name = Annotated[str, typer.Option(help="Name of the dataset.")]
Remote = Annotated[
    str | None,
    typer.Option(help="URL or folder of a DVC remote, or a name in your DVC settings."),
]
DEFAULT = "data"
SHOWN = 20  # names of a kind, for a person
STEPS = {
    "read": "reading",
    "unpack": "unpacking",
    "check": "checking",
    "store": "storing",
    "verify": "verifying",
}


def add_to(app: typer.Typer) -> None:
    datasets = typer.Typer(help="Dataset versions.", no_args_is_help=True)
    datasets.command("add")(add)
    datasets.command("list")(list_versions)
    datasets.command("show")(show)
    datasets.command("diff")(diff)
    datasets.command("verify")(verify)
    datasets.command("push")(push)
    datasets.command("pull")(pull)
    curate.add_to(datasets)
    app.add_typer(datasets, name="dataset")


def add(
    source: Annotated[
        Path,
        typer.Argument(
            help="Images with metadata.jsonl or metadata.csv, webdataset shards (.tar) or parquet."
        ),
    ],
    name: Name = DEFAULT,
    text_column: TextColumn = None,
    image_column: ImageColumn = None,
    workspace: Folder = HERE,
    as_json: AsJson = False,
) -> None:
    """Check images and captions and add them as a version. Adding again reads only what changed."""
    app = opened(workspace)
    columns = Columns(text=text_column, image=image_column)
    check = _check(app, source)
    with _bar(as_json) as progress:
        version = _store(app, check).put(source, name=name, columns=columns, progress=progress)
    _keep(app, version)
    check.keep(version.version)
    _tell(version, as_json, asked=name)


def list_versions(workspace: Folder = HERE, as_json: AsJson = False) -> None:
    """Every version, oldest first."""
    found = _store(opened(workspace)).list()
    if as_json:
        print_json(list(found))
        return
    print_table(
        "datasets",
        ("version", "name", "items", "MB", "replay", "topics"),
        (
            (
                v.version[:10],
                v.name,
                v.items,
                f"{v.bytes / 1e6:.1f}",
                f"{v.replay:.0%}",
                _counts(v.topics),
            )
            for v in found
        ),
    )


def show(
    version: Version,
    files: Annotated[bool, typer.Option(help="List the files too.")] = False,
    workspace: Folder = HERE,
    as_json: AsJson = False,
) -> None:
    """Where a version comes from and what is in it."""
    store = _store(opened(workspace))
    found = store.get(version)
    listed = store.files(found.version) if files else ()
    if as_json:
        print_json({**_fields(found), "files": list(listed)} if files else found)
        return
    mix = found.mix
    rows: list[tuple[str, object]] = [
        ("version", found.version),
        ("name", found.name),
        ("items", f"{found.items} ({found.bytes / 1e6:.1f} MB)"),
        ("topics", _counts(found.topics)),
        ("DVC", f"{found.dvc_md5}.dir"),
        ("made from", ", ".join(f"{i} (DVC's id)" for i in found.source_ids) or "the same files"),
        ("parents", ", ".join(p[:10] for p in found.parents) or "none"),
    ]
    if mix is not None:
        drawn = f"{mix.replayed} of old data beside {mix.new} new ({_counts(mix.topics)})"
        asked = f"asked for {mix.share:.0%}, by {mix.sampling}, seed {mix.seed}"
        rows.append(("replay", f"{drawn}; {asked}"))
    elif found.replay:
        rows.append(("replay", f"{found.replay:.0%}"))
    print_table("dataset version", ("", ""), rows)
    for file in listed:
        out.print(f"{file.sha256[:10]}  {file.size:>10}  {file.path}", markup=False)


def diff(
    a: Version,
    b: Version,
    every: Annotated[bool, typer.Option("--all", help="Name every item.")] = False,
    workspace: Folder = HERE,
    as_json: AsJson = False,
) -> None:
    """What changed from one version to another: items, images, captions, topics."""
    store = _store(opened(workspace))
    found = store.diff_items(store.get(a).version, store.get(b).version)
    if as_json:
        print_json(found)
        return
    kinds: tuple[tuple[str, Sequence[str]], ...] = (
        ("+ added", found.added),
        ("- removed", found.removed),
        ("> moved", [f"{old} -> {new}" for old, new in found.moved]),
        ("~ image changed", found.images),
        ("~ caption changed", found.captions),
        ("~ other metadata changed", found.facts),
    )
    for title, names in kinds:
        shown = names if every else names[:SHOWN]
        for item in shown:
            out.print(f"{title}  {item}", markup=False)
        if len(names) > len(shown):
            out.print(f"{title}  and {len(names) - len(shown)} more (--all)", markup=False)
    print_table(
        "topics",
        ("topic", "added", "removed", "changed", "items now"),
        (
            (topic or "(none)", t.added, t.removed, t.changed, t.items)
            for topic, t in found.topics.items()
        ),
    )
    counts = Counter({title[2:]: len(names) for title, names in kinds})
    out.print(_counts({k: n for k, n in counts.items() if n}) or "no difference", markup=False)


def verify(version: Version, workspace: Folder = HERE, as_json: AsJson = False) -> None:
    """Read every file of a version again. Ends with status 4 if one is not what was added."""
    store = _store(opened(workspace))
    found = store.get(version)
    with _bar(as_json) as progress:
        damage = store.verify(found.version, progress)
    if as_json:
        print_json(damage)
    if damage:
        names = [*damage.contents, *damage.tree]
        if as_json:
            raise typer.Exit(StorageError.exit_code)
        raise StorageError(
            f"dataset version {found.version[:10]}: {len(damage.contents)} contents changed or"
            f" gone, {len(damage.tree)} files of its folder not as they were, the first {names[0]}",
            hint="add or pull the same data again: that puts contents back; the folder is put right"
            " when the version is next used, but for files that are not of it",
        )
    if not as_json:
        out.print(f"{found.version[:10]}  as it was added", markup=False)


def push(
    version: Version,
    remote: Annotated[
        str, typer.Option(help="URL or folder of a DVC remote, or a name in your DVC settings.")
    ],
    file: Annotated[
        Path | None, typer.Option("--dvc-file", help="Write a .dvc file that names it here.")
    ] = None,
    workspace: Folder = HERE,
    as_json: AsJson = False,
) -> None:
    """Bring a version to a DVC remote (extra `dvc`). The .dvc file lets others `dvc pull` it."""
    store = _store(opened(workspace))
    found = store.get(version)
    text = Dvc(command=find_dvc(os.environ), store=store).push(found.version, remote, file=file)
    if as_json:
        print_json({"version": found.version, "dvc_md5": found.dvc_md5, "remote": remote})
    else:
        out.print(str(file) if file else text.rstrip(), markup=False)


def pull(
    wanted: Annotated[str, typer.Argument(help="A .dvc file, or the md5 of a folder.")],
    remote: Remote = None,
    name: Name = DEFAULT,
    text_column: TextColumn = None,
    image_column: ImageColumn = None,
    workspace: Folder = HERE,
    as_json: AsJson = False,
) -> None:
    """Fetch what a .dvc file or an md5 names (extra `dvc`) and add it as a version. Without
    --remote, `dvc pull` runs where the file lies, with that repository's settings."""
    app = opened(workspace)
    command = find_dvc(os.environ)
    named = Path(wanted) if wanted.endswith(".dvc") or Path(wanted).is_file() else wanted
    columns = Columns(text=text_column, image=image_column)
    check = _check(app, Path(wanted))
    with _bar(as_json) as progress:
        dvc = Dvc(command=command, store=_store(app, check))
        version = dvc.pull(named, remote, name=name, columns=columns, progress=progress)
    _keep(app, version)
    check.keep(version.version)
    _tell(version, as_json, asked=name)


def _fields(version: DatasetVersion) -> dict[str, Any]:
    return dict(as_json(version))


def _store(app: App, check: checking.Check | None = None) -> LocalDatasetStore:
    """What is added has to pass the ``check``; to look at versions it takes none."""
    if check is None:
        return LocalDatasetStore(app.workspace.datasets, app.clock)
    return LocalDatasetStore(
        app.workspace.datasets,
        app.clock,
        on_invalid="drop",
        check=check,
        checked_as=check.rules.digest,
    )


def _check(app: App, source: Path) -> checking.Check:
    """As the configuration asks for it."""
    pipeline = checking.pipeline_of(app.config, app.workspace, app.ledger)
    rules = checking.rules_of(app.config, app.workspace, pipeline)
    return checking.Check(rules, app.workspace, app.clock.now(), source)


def _keep(app: App, version: DatasetVersion) -> None:
    with app.ledger.begin() as tx:
        tx.put(version, id=version.version, at=version.created_at)


def _tell(version: DatasetVersion, as_json: bool, *, asked: str) -> None:
    if asked not in (version.name, DEFAULT):
        typer.echo(
            f"the same data are there since before as {version.name!r} and keep that name: nothing"
            f" that goes by the name {asked!r} sees them",
            err=True,
        )
    if as_json:
        print_json(version)
    else:
        out.print(f"{version.version[:10]}  {version.items} items  {version.name}", markup=False)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {n}".strip() for name, n in counts.items())


@contextmanager
def _bar(quiet: bool) -> Iterator[Progress]:
    """A bar on the terminal; nothing where nobody looks."""
    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield silent
        return
    with bars.Progress(*columns, console=console, transient=True) as shown:
        tasks: dict[str, bars.TaskID] = {}

        def progress(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = shown.add_task(STEPS[what], total=total or None)
            if done == total or done % 64 == 0:  # drawing each would cost more than the work
                shown.update(tasks[what], completed=done, total=total or None)

        yield progress
