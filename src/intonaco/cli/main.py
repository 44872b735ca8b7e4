"""``intonaco``: entry point. Errors are one line and a hint; exit codes are in ``errors.py``."""

from __future__ import annotations

import logging
import sys

import typer
from rich.console import Console

from intonaco import __version__
from intonaco.cli import (
    data,
    decide,
    deploy,
    drift,
    environment,
    evaluate,
    inspect,
    notify,
    review,
    steer,
    train,
    workspace,
)
from intonaco.errors import IntonacoError

app = typer.Typer(
    name="intonaco",
    help="Keep a deployed image-generation model fresh.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"intonaco {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version and end."
    ),
) -> None:
    """Serve, watch, decide, train, prove, roll out, roll back."""


deploy.add_to(app)
inspect.add_to(app)
steer.add_to(app)
drift.add_to(app)
decide.add_to(app)
data.add_to(app)
train.add_to(app)
review.add_to(app)
notify.add_to(app)
evaluate.add_to(app)
environment.add_to(app)
workspace.add_to(app)


def main() -> None:
    """Run the command line and exit."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        app(standalone_mode=True)
    except IntonacoError as error:
        console = Console(stderr=True, highlight=False, soft_wrap=True)
        console.print(f"error: {error}", style="red", markup=False)
        if error.hint:
            console.print(f"hint: {error.hint}", markup=False)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
