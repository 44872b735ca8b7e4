"""dataset add, list, diff."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from intonaco.cli import curate
from intonaco.cli.common import HERE, AsJson, Folder, opened, out, print_json, print_table
from intonaco.datasets import checking
from intonaco.datasets.store import LocalDatasetStore


def add_to(app: typer.Typer) -> None:
    datasets = typer.Typer(help="Dataset versions.", no_args_is_help=True)
    datasets.command("add")(add)
    datasets.command("list")(list_versions)
    datasets.command("diff")(diff)
    curate.add_to(datasets)
    app.add_typer(datasets, name="dataset")


def add(
    folder: Annotated[Path, typer.Argument(help="Images with a metadata.jsonl.")],
    name: Annotated[str, typer.Option(help="Name of the dataset.")] = "data",
    workspace: Folder = HERE,
    as_json: AsJson = False,
) -> None:
    """Check a folder of images and captions and add it as a version."""
    app = opened(workspace)
    pipeline = checking.pipeline_of(app.config, app.workspace, app.ledger)
    rules = checking.rules_of(app.config, app.workspace, pipeline)
    check = checking.Check(rules, app.workspace, app.clock.now())
    store = LocalDatasetStore(app.workspace.datasets, app.clock, on_invalid="drop", check=check)
    try:
        version = store.put(folder, name=name)
        check.keep(version.version)
    finally:
        check.forget()
    with app.ledger.begin() as tx:
        tx.put(version, id=version.version, at=version.created_at)
    if as_json:
        print_json(version)
    else:
        out.print(f"{version.version[:10]}  {version.items} items  {version.name}", markup=False)


def list_versions(workspace: Folder = HERE, as_json: AsJson = False) -> None:
    """Every version, oldest first."""
    app = opened(workspace)
    found = LocalDatasetStore(app.workspace.datasets, app.clock).list()
    if as_json:
        print_json(list(found))
        return
    print_table(
        "datasets",
        ("version", "name", "items", "replay", "topics"),
        (
            (
                v.version[:10],
                v.name,
                v.items,
                f"{v.replay:.0%}",
                ", ".join(f"{t} {n}" for t, n in v.topics.items()),
            )
            for v in found
        ),
    )


def diff(a: str, b: str, workspace: Folder = HERE, as_json: AsJson = False) -> None:
    """What changed from one version to another."""
    app = opened(workspace)
    found = LocalDatasetStore(app.workspace.datasets, app.clock).diff(a, b)
    if as_json:
        print_json(found)
        return
    for sign, names in (("+", found.added), ("-", found.removed), ("~", found.changed)):
        for name in names:
            out.print(f"{sign} {name}", markup=False)
