"""init, check, up, run, demo."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Annotated

import typer

from intonaco import config as configuration
from intonaco.app import check as check_config
from intonaco.app import notes
from intonaco.cli.common import HERE, AsJson, Folder, opened, out, print_json
from intonaco.demo.strategies import TELLINGS
from intonaco.errors import ConfigError
from intonaco.supervisor import PROCESSES, Supervisor, command, gateway_names
from intonaco.workspace import Workspace

STRATEGIES = tuple(TELLINGS)
EXAMPLE = Path(__file__).parent / "example.yaml"


def add_to(app: typer.Typer) -> None:
    app.command()(init)
    app.command()(check)
    app.command()(up)
    app.command()(run)
    app.command()(demo)


def init(workspace: Folder = HERE) -> None:
    """Write a commented intonaco.yaml to start from."""
    target = workspace / "intonaco.yaml"
    if target.exists():
        raise ConfigError(f"{target} exists already", hint="edit it, or choose another folder")
    workspace.mkdir(parents=True, exist_ok=True)
    target.write_text(EXAMPLE.read_text())
    out.print(f"wrote {target}; edit it, then `intonaco check`", markup=False)


def check(
    workspace: Folder = HERE,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check the configuration and every file that it names, and say what is missing before
    anything can be served."""
    if schema:
        print_json(configuration.json_schema())
        return
    place = Workspace(workspace)
    wrong: ConfigError | None = None
    said: list[str] = []
    try:
        config = configuration.load(place.config_file)
        problems = check_config(config, place)
        said = notes(config, place)
    except ConfigError as error:
        problems = configuration.mistakes(error, str(place.config_file))
        wrong = error if len(problems) == 1 else None
    if as_json:
        print_json({"ok": not problems, "problems": problems, "notes": said})
    elif not problems:
        well = "no mistakes" if said else "all is well"
        out.print(f"{place.config_file}: {well}", markup=False)
        _say(said)
    elif len(problems) > 1:
        for problem in problems:
            out.print(f"- {problem}", markup=False, soft_wrap=True)
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise wrong or ConfigError(problems[0] + more)


def _say(said: list[str]) -> None:
    for note in said:
        out.print(f"note: {note}", markup=False, soft_wrap=True)


def up(workspace: Folder = HERE) -> None:
    """Start everything on this machine and keep it running until Ctrl-C. Requests under way are
    answered first; a second Ctrl-C cuts that short."""
    app = opened(workspace)
    problems = check_config(app.config, app.workspace)
    if problems:
        raise ConfigError(problems[0], hint="`intonaco check` lists all")
    app.ledger.close()
    watched = app.config.extractor is not None
    gateways = gateway_names(app.config.serving.gateway.processes)
    kinds = [n for n in PROCESSES if watched or n != "scorer"]
    names = [n for kind in kinds for n in (gateways if kind == "gateway" else (kind,))]
    supervisor = Supervisor(app.workspace, names)
    stop, hurry = threading.Event(), threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: (hurry if stop.is_set() else stop).set())
    try:
        supervisor.start()
        gateway, console = app.workspace.process("gateway"), app.workspace.process("console")
        out.print(f"gateway  {gateway.url if gateway else '?'}/v1/images/generations", markup=False)
        out.print(f"console  {console.url if console else '?'}", markup=False)
        _say(notes(app.config, app.workspace))
        supervisor.watch(stop)
        drain_s = app.config.serving.gateway.request_timeout_s
        out.print(f"answers what it took, at most {drain_s:g} s; Ctrl-C again ends it at once")
    finally:
        supervisor.stop(drain_s=app.config.serving.gateway.request_timeout_s, hurry=hurry)


def run(
    process: Annotated[str, typer.Argument(help=f"One of: {', '.join(PROCESSES)}.")],
    workspace: Folder = HERE,
) -> None:
    """Run one process in the foreground, for a supervisor of your own."""
    try:
        module = command(process)
    except KeyError:
        raise ConfigError(
            f"no process {process!r}; there are: {', '.join(PROCESSES)}"
            " (and gateway-1, gateway-2, ... where serving.gateway.processes is over 1)"
        ) from None
    configuration.load(Workspace(workspace).config_file)
    whole = [sys.executable, "-m", *module, "--workspace", str(workspace)]
    raise typer.Exit(subprocess.run(whole, check=False).returncode)


def demo(
    workspace: Annotated[
        Path, typer.Option("--workspace", "-w", help="Folder for the demo's workspace.")
    ] = Path("demo-workspace"),
    quick: Annotated[bool, typer.Option("--quick", help="Shorter, with coarser figures.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of data, models and traffic.")] = 0,
    approve: Annotated[
        str, typer.Option(help="auto, or ask: wait for `intonaco update approve`.")
    ] = "auto",
    strategy: Annotated[
        str,
        typer.Option(help="How releases go out: " + ", ".join(STRATEGIES) + "."),
    ] = "canary",
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the console page.")
    ] = True,
) -> None:
    """The whole loop, once, on a real model of handwritten digits."""
    from intonaco.demo.story import Options, tell

    if approve not in ("auto", "ask"):
        raise ConfigError(f"--approve: {approve!r} is neither auto nor ask")
    if strategy not in STRATEGIES:
        raise ConfigError(f"--strategy: {strategy!r} is none of {', '.join(STRATEGIES)}")
    options = Options(
        workspace=workspace,
        quick=quick,
        seed=seed,
        ask=approve == "ask",
        browser=browser,
        strategy=strategy,
    )
    raise typer.Exit(tell(options))
