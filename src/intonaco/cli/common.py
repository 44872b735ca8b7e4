"""What the commands share: options, opening a workspace, printing facts."""

from __future__ import annotations

import getpass
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from intonaco.app import App, open_app
from intonaco.codec import as_json

Folder = Annotated[
    Path,
    typer.Option("--workspace", "-w", help="Folder that holds intonaco.yaml.", show_default=True),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
HERE = Path()

# A pipe has no width: tables keep their lines whole there.
out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 200)


def opened(workspace: Path) -> App:
    """The workspace. Raises ConfigError, StorageError."""
    return open_app(workspace)


def actor() -> str:
    """Who is at the keyboard."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "somebody"


def print_json(value: Any) -> None:
    typer.echo(json.dumps(as_json(value), indent=2, ensure_ascii=False))


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    table = Table(title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*("" if cell is None else str(cell) for cell in row))
    out.print(table)


def ago(seconds: float) -> str:
    """A duration in the largest fitting unit."""
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
