"""environment list, lock, add, build, remove."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from intonaco.app import App
from intonaco.cli.common import HERE, AsJson, Folder, opened, out, print_json, print_table
from intonaco.environments import EnvironmentStore, State, capture, environment_versions
from intonaco.environments.lock import difference, parse
from intonaco.errors import ConfigError, Conflict
from intonaco.releases import ReleaseStore

Id = Annotated[str, typer.Argument(help="Environment id, or the beginning of it.")]


def add_to(app: typer.Typer) -> None:
    environments = typer.Typer(
        help="Environments: the exact packages of each release's worker.", no_args_is_help=True
    )
    environments.command("list")(list_environments)
    environments.command("lock")(lock)
    environments.command("add")(add)
    environments.command("build")(build)
    environments.command("remove")(remove)
    app.add_typer(environments, name="environment")


def store_of(app: App) -> EnvironmentStore:
    """The workspace's environments, built as its workers' are."""
    serving = app.config.serving
    return EnvironmentStore(
        app.workspace, base=serving.environment_base, timeout_s=serving.environment_timeout_s
    )


def named_by_releases(app: App) -> dict[str, list[str]]:
    """Environments that releases name, with the releases."""
    named: dict[str, list[str]] = {}
    for release in ReleaseStore(app.workspace, app.config.service).list():
        named.setdefault(release.serving.environment, []).append(release.short)
    return named


def list_environments(workspace: Folder = HERE, as_json: AsJson = False) -> None:
    """Every environment known, how it stands and which releases name it."""
    app = opened(workspace)
    store, named = store_of(app), named_by_releases(app)
    here = environment_versions()
    rows: list[dict[str, Any]] = []
    for environment in sorted({*store.list(), *named}):
        standing = store.standing(environment)
        known = standing.state is not State.UNKNOWN
        versions = store.lock(environment).versions if known else {}
        rows.append(
            {
                "environment": environment,
                "state": str(standing.state),
                "kind": standing.facts.get("kind"),
                "bytes": store.sizes(environment),
                "releases": named.get(environment, []),
                "versions": dict(versions),
                "text": standing.text,
            }
        )
    if as_json:
        print_json(rows)
        return
    print_table(
        "environments",
        ("environment", "state", "kind", "MB", "releases", "differs from this interpreter"),
        (
            (
                r["environment"][:10],
                r["state"],
                r["kind"],
                f"{r['bytes'] / 1e6:.1f}" if r["bytes"] else "",
                ", ".join(r["releases"]),
                difference(r["versions"], here) if r["versions"] else r["text"],
            )
            for r in rows
        ),
    )


def lock(
    environment: Annotated[
        str | None, typer.Argument(help="Environment id; this interpreter's if none is given.")
    ] = None,
    workspace: Folder = HERE,
) -> None:
    """Print a lock: a requirements file of exact pins."""
    if environment is None:
        typer.echo(capture().text(), nl=False)
        return
    store = store_of(opened(workspace))
    typer.echo(store.lock(store.find(environment)).text(), nl=False)


def add(
    file: Annotated[
        Path | None, typer.Argument(help="A whole lock: a requirements file of exact pins.")
    ] = None,
    pin: Annotated[
        list[str] | None,
        typer.Option(help="NAME==VERSION, in place of that of --base; repeatable."),
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="Environment to change; this interpreter's by default.")
    ] = None,
    workspace: Folder = HERE,
    as_json: AsJson = False,
) -> None:
    """Keep a lock, so that a release can name it: from a file, or another one with some pins
    changed."""
    if (file is None) == (not pin) or (file is not None and base is not None):
        raise ConfigError("give a file with a whole lock, or --pin with an optional --base")
    store = store_of(opened(workspace))
    if file is not None:
        try:
            text = file.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{file} cannot be read: {error}") from error
        wanted = parse(text, source=str(file))
    else:
        before = store.lock(store.find(base)) if base else capture()
        pins = parse("\n".join(pin or ()), source="--pin", python=before.python, whole=False)
        wanted = before.replaced(pins)
    environment = store.keep(wanted)
    told = difference(wanted.versions, environment_versions())
    if as_json:
        print_json({"environment": environment, "versions": dict(wanted.versions)})
    else:
        out.print(f"{environment[:10]}  {told or 'the same as this interpreter'}", markup=False)


def build(environment: Id, workspace: Folder = HERE, as_json: AsJson = False) -> None:
    """Build an environment now, so that staging a release need not wait for it."""
    store = store_of(opened(workspace))
    found = store.find(environment)
    python = store.build(found)
    standing = store.standing(found)
    if as_json:
        print_json({"environment": found, "python": str(python), **standing.facts})
        return
    text = "this interpreter's" if standing.state is State.HERE else standing.facts["kind"]
    out.print(f"{found[:10]}  {text}  {python}", markup=False)


def remove(
    environment: Annotated[
        str | None, typer.Argument(help="Environment id, or the beginning of it.")
    ] = None,
    unused: Annotated[
        bool, typer.Option("--unused", help="All that no release names, with their locks.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Also if releases name it; its lock is kept.")
    ] = False,
    workspace: Folder = HERE,
    as_json: AsJson = False,
) -> None:
    """Remove what was built of an environment. It is built again when it is needed."""
    if (environment is None) != unused:
        raise ConfigError("give an environment, or --unused")
    app = opened(workspace)
    store, named = store_of(app), named_by_releases(app)
    freed: dict[str, int] = {}
    if environment is not None:
        found = store.find(environment)
        if named.get(found) and not force:
            raise Conflict(
                f"release {named[found][0]} names environment {found[:10]}",
                hint="--force removes what was built and keeps the lock",
            )
        freed[found] = store.remove(found)
    else:
        for found in store.unused(named):
            freed[found] = store.remove(found, lock=True)
        for found in (e for e in store.list() if e in named):
            freed[found] = store.remove_outdated(found)
    if as_json:
        print_json(freed)
        return
    for found, size in freed.items():
        if size or environment is not None:
            out.print(f"{found[:10]}  {size / 1e6:.1f} MB freed", markup=False)
