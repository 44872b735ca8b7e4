"""Releases over one base, for tests of workers that share it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import fixtures_tiny
from tests.integration.test_serving_engine_adapters import save_adapter, spoilt

from intonaco.folders import ADAPTERS
from intonaco.types import Release
from intonaco.workspace import Workspace


@dataclass(frozen=True)
class Made:
    """A workspace with releases over one base: ``base``, ``a`` (over the text encoder too), ``b``
    (two adapters, scaled), and those that must not share it."""

    workspace: Workspace
    base: Release
    a: Release
    b: Release
    fused: Release
    other: Release  # the weights of another base
    options: Release  # the same files, drawn otherwise
    bad: Release  # its adapter loses tensors on loading

    @property
    def sharing(self) -> tuple[Release, ...]:
        return self.base, self.a, self.b

    def folder(self, release: Release) -> Path:
        return self.workspace.resolve(release.path)


def make(root: Path) -> Made:
    workspace = Workspace(root / "w")
    base = fixtures_tiny.save(root / "base")
    one = save_adapter(root / "one", seed=1, text=True)
    two = save_adapter(root / "two", seed=2)
    lost = spoilt(save_adapter(root / "lost", seed=3), lambda t: t.pop(sorted(t)[0]))

    def add(*adapters: tuple[str, Path], on: Path = base, **options: Any) -> Release:
        folder = root / f"p{len(list(root.iterdir()))}"
        shutil.copytree(on, folder)
        for text, source in adapters:
            shutil.copytree(source, folder / ADAPTERS / text.partition(":")[0])
        named = tuple(text for text, _ in adapters)
        return fixtures_tiny.add_release(workspace, folder, adapters=named, **options)

    return Made(
        workspace=workspace,
        base=add(),
        a=add(("x", one), recipe="a"),
        b=add(("x:0.5", two), ("y:1.5", one)),
        fused=add(("x", one), fused=True),
        other=add(("x", two), on=fixtures_tiny.save(root / "other", seed=1)),
        options=add(("x", two), options=("vae_slicing",)),
        bad=add(("x", lost)),
    )
