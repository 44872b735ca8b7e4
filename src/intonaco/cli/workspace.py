"""workspace gc."""

from __future__ import annotations

import shutil
from typing import Annotated, Any

import typer

from intonaco import sources
from intonaco.app import App
from intonaco.cli.common import HERE, AsJson, Folder, opened, out, print_json, print_table
from intonaco.cli.environment import named_by_releases, store_of
from intonaco.evaluation.cache import EvaluationCache
from intonaco.releases import ReleaseStore
from intonaco.types import Review

BUSY_S = 3600.0
Yes = Annotated[bool, typer.Option("--yes", help="Remove it; without this it is only shown.")]


def add_to(app: typer.Typer) -> None:
    workspaces = typer.Typer(help="The folder that a service lives in.", no_args_is_help=True)
    # With one command of its own a group would become that command.
    workspaces.callback()(lambda: None)
    workspaces.command("gc")(gc)
    app.add_typer(workspaces, name="workspace")


def gc(workspace: Folder = HERE, yes: Yes = False, as_json: AsJson = False) -> None:
    """Free the disk of what no release needs: environments that were built (their locks stay),
    models that were fetched, what evaluations keep beyond evaluation.cache_gb and
    evaluation.cache_days, all of which is made again when it is needed; and the pictures of reviews
    that are over, which nobody is shown any more. What is in use, or was within the hour, stays."""
    app = opened(workspace)
    found = [
        *_environments(app, yes),
        *_models(app, yes),
        *_evaluations(app, yes),
        *_reviews(app, yes),
    ]
    if as_json:
        print_json({"removed": yes, "found": found, "bytes": sum(f["bytes"] for f in found)})
        return
    if not found:
        out.print("nothing to remove")
        return
    print_table(
        "removed" if yes else "would be removed",
        ("what", "MB", "path"),
        ((f["what"], f"{f['bytes'] / 1e6:.1f}", f["path"]) for f in found),
    )
    if not yes:
        out.print("nothing was removed; --yes removes it", markup=False)


def _environments(app: App, remove: bool) -> list[dict[str, Any]]:
    store = store_of(app)
    told = []
    for build in store.spare(named_by_releases(app)):
        size = store.remove_build(build) if remove else store.size(build)
        if size is not None:
            told.append({"what": "environment", "path": str(build), "bytes": size})
    return told


def _models(app: App, remove: bool) -> list[dict[str, Any]]:
    releases = ReleaseStore(app.workspace, app.config.service).list()
    cache = sources.Cache(app.workspace.models)
    kept = {cache.folder(r.path, r.serving.weights) for r in releases if sources.is_remote(r.path)}
    now = app.clock.now()
    told = []
    for folder in cache.spare(kept, configured=app.config.model.path, now=now):
        size = cache.remove(folder, now=now) if remove else cache.size(folder)
        if size is not None:
            told.append({"what": "model", "path": str(folder), "bytes": size})
    return told


def _evaluations(app: App, remove: bool) -> list[dict[str, Any]]:
    settings = app.config.evaluation
    now = app.clock.now()
    told = []
    for file, used, size in EvaluationCache(app.workspace.evaluations).spare(
        keep_bytes=int(settings.cache_gb * 1e9), unused_s=settings.cache_days * 86_400, now=now
    ):
        if now - used < BUSY_S:
            continue
        if remove:
            file.unlink(missing_ok=True)
        told.append({"what": "evaluation", "path": str(file), "bytes": size})
    return told


def _reviews(app: App, remove: bool) -> list[dict[str, Any]]:
    now = app.clock.now()
    told = []
    for review in app.ledger.all(Review):
        folder = app.workspace.reviews / review.review_id
        if review.closed_at is None or now - review.closed_at < BUSY_S or not folder.is_dir():
            continue
        size = sum(file.stat().st_size for file in folder.iterdir())
        if remove:
            shutil.rmtree(folder)
        told.append({"what": "review", "path": str(folder), "bytes": size})
    return told
