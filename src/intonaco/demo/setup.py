"""The demo's workspace: data, extractor, and an ``intonaco.yaml`` that a user can go on from."""

from __future__ import annotations

import json
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path
from string import Template

from intonaco.demo.strategies import TELLINGS
from intonaco.errors import ConfigError
from intonaco.workspace import Workspace

UNPINNED = "null"
MARKER = ".intonaco-demo"
TEMPLATE = Path(__file__).parent / "demo.yaml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How long the parts of the demo are. Measured: docs/decisions/0004-demo-recipe.md."""

    extractor_steps: int
    vae_steps: int
    base_steps: int
    base_seconds: float  # estimates for the cost of a plan
    tune_steps: int
    tune_seconds: float
    forget_steps: int
    forget_seconds: float
    reference: int  # requests that say what is normal
    armed: int  # requests that must pass quietly before users change
    seeds_per_prompt: int
    latency_rounds: int
    benchmark_waves: int  # of requests at once, for throughput
    margin_adherence: float
    margin_slice: float
    shadow_pairs: int
    step_units: tuple[int, int, int, int]  # users judged at 5, 25, 50 and 100 %


FULL = Size(
    extractor_steps=500,
    vae_steps=150,
    base_steps=450,
    base_seconds=45,
    tune_steps=300,
    tune_seconds=30,
    forget_steps=200,
    forget_seconds=20,
    reference=250,
    armed=320,
    seeds_per_prompt=4,
    latency_rounds=12,
    benchmark_waves=5,
    margin_adherence=0.06,
    margin_slice=0.25,
    shadow_pairs=60,
    step_units=(5, 25, 50, 40),
)
QUICK = Size(
    extractor_steps=400,
    vae_steps=100,
    base_steps=300,
    base_seconds=22,
    tune_steps=250,
    tune_seconds=25,
    forget_steps=120,
    forget_seconds=15,
    reference=200,
    armed=300,
    seeds_per_prompt=3,
    latency_rounds=6,
    benchmark_waves=0,
    margin_adherence=0.10,
    margin_slice=0.35,
    shadow_pairs=40,
    step_units=(3, 15, 40, 25),
)


def make_workspace(root: Path) -> Workspace:
    """An empty workspace. What an earlier demo left there is replaced; anything else is not
    touched. Raises ConfigError."""
    workspace = Workspace(root)
    if root.exists() and any(root.iterdir()):
        if not (root / MARKER).exists():
            raise ConfigError(
                f"{root} is not empty and was not written by the demo",
                hint="choose another folder with --workspace",
            )
        running = [info.name for info in workspace.processes()]
        if running:
            raise ConfigError(
                f"{root} is in use: {', '.join(running)} runs",
                hint="end it first, or choose another folder with --workspace",
            )
        shutil.rmtree(root)
    root.mkdir(parents=True, exist_ok=True)
    (root / MARKER).write_text(
        "This folder was written by `intonaco demo`, which may replace it.\n"
    )
    return workspace


def write_config(
    workspace: Workspace, size: Size, *, seed: int, ask: bool, strategy: str = "canary"
) -> None:
    """Write ``intonaco.yaml``. The extractor is not there yet: ``pin_extractor`` writes its digest
    in when it is."""
    told = TELLINGS[strategy]
    text = Template(TEMPLATE.read_text()).substitute(
        seed=seed,
        digest=UNPINNED,
        approval="ask" if ask else "auto",
        strategy="\n  ".join(
            [strategy, *(f"{k}: {json.dumps(v)}" for k, v in told.settings.items())]
        ),
        replicas=told.replicas,
        bake_seconds=told.bake_seconds,
        gateway_port=free_port(8321),
        console_port=free_port(8322),
        vae_steps=size.vae_steps,
        base_steps=size.base_steps,
        base_seconds=size.base_seconds,
        tune_steps=size.tune_steps,
        tune_seconds=size.tune_seconds,
        forget_steps=size.forget_steps,
        forget_seconds=size.forget_seconds,
        reference=size.reference,
        seeds_per_prompt=size.seeds_per_prompt,
        latency_rounds=size.latency_rounds,
        benchmark_waves=size.benchmark_waves,
        margin_adherence=size.margin_adherence,
        margin_slice=size.margin_slice,
        shadow_pairs=size.shadow_pairs,
        fault_after=told.fault_after or round(1.6 * size.shadow_pairs) + 20,
        units_5=size.step_units[0],
        units_25=size.step_units[1],
        units_50=size.step_units[2],
        units_100=size.step_units[3],
    )
    workspace.config_file.write_text(text)


def pin_extractor(workspace: Workspace, digest: str) -> None:
    """Write the extractor's digest into ``intonaco.yaml``: nothing else may judge from now on."""
    text = workspace.config_file.read_text()
    workspace.config_file.write_text(text.replace(f"digest: {UNPINNED}", f"digest: {digest}"))


def free_port(wanted: int) -> int:
    """The wanted port if it is free, else any free one."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise ConfigError("no free port on 127.0.0.1")
