"""Does it matter where the controller is killed?

The real controller over twins of everything outside it goes through four updates (a first release;
one that is promoted and rolled back while it bakes; its retry; a way back) with a `kill -9` right
before or right after each call to the outside and each commit of the ledger, one point a story, and
is begun again. All of it once for each way of rolling out that the harness of
`tests/integration/test_crash_matrix.py` tells of: `canary.points`, at how many points it was
killed; `canary.failed`, where anything differed from the undisturbed story, a job was begun twice,
or the outside was asked for what would harm a user; `rolling.points`, ... `points` and `failed`
are those of all stories.

About seventy minutes on two cores. `CRASH_MATRIX_STORIES=rolling,baseline` tells these only, and
takes the others as they were written down last. `CRASH_MATRIX_EVERY=60` takes every 60th point
only, to see whether it works: its figures are printed and not written down. The files lie in memory
where they can (`/dev/shm`): what ends is a process, and whether pages have reached a disk is
nothing to it.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import parts
from rich.console import Console
from rich.progress import track

EVERY = int(os.environ.get("CRASH_MATRIX_EVERY", "1"))
ONLY = [s.strip() for s in os.environ.get("CRASH_MATRIX_STORIES", "").split(",") if s.strip()]
ROOT = Path(__file__).resolve().parents[2]
MEMORY = Path("/dev/shm")
Task = tuple[Path, tuple[str, int], Mapping[str, Any], str]


def killed(task: Task) -> str:
    """What was wrong, "" if nothing was."""
    from tests.crashing import killed_at

    logging.disable(logging.CRITICAL)  # each killed controller says much
    folder, point, expected, story = task
    return killed_at(folder / f"{story} {os.getpid()}", point, expected, story)


def earlier() -> dict[str, float]:
    """The figures written down last."""
    name = Path(__file__).parent.name
    written = json.loads((ROOT / "benchmarks/results.json").read_text())
    return {
        key.removeprefix(f"{name}."): entry["value"]
        for key, entry in written.items()
        if key.startswith(f"{name}.")
    }


def run() -> dict[str, float]:
    """Numbers of points. Raises Incomplete, with no figure, for a sample of them, and ValueError
    for a story that there is not, or one left out that was never told."""
    if EVERY < 1:
        raise ValueError(f"CRASH_MATRIX_EVERY is {EVERY}: give 1 or more")
    if str(ROOT) not in sys.path:  # for ``tests``
        sys.path.insert(0, str(ROOT))
    from tests.crashing import STORIES, points_of
    from tests.crashing import run as tell

    stories = ONLY or [*STORIES]
    if unknown := {*stories} - {*STORIES}:
        raise ValueError(
            f"CRASH_MATRIX_STORIES: no story {', '.join(sorted(unknown))}: {[*STORIES]}"
        )
    if EVERY == 1 and (
        missing := {*STORIES} - {*stories} - {key.split(".")[0] for key in earlier()}
    ):
        raise ValueError(f"CRASH_MATRIX_STORIES: {', '.join(sorted(missing))} was never told")
    found: dict[str, float] = {}
    with (
        tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder,
        ProcessPoolExecutor(mp_context=multiprocessing.get_context("fork")) as pool,
    ):
        for story in stories:
            reference = Path(folder) / f"{story} reference"
            expected, times = pool.submit(tell, reference, None, story).result()
            if times:
                raise RuntimeError(f"{story}: the undisturbed story was killed")
            tasks: list[Task] = [
                (Path(folder), point, expected, story) for point in points_of(reference)[::EVERY]
            ]
            failed = 0
            ended = zip(tasks, pool.map(killed, tasks), strict=True)
            for task, wrong in track(ended, story, len(tasks), console=Console(stderr=True)):
                if wrong:
                    failed += 1
                    print(f"{story}, {task[1]}: {wrong}", file=sys.stderr, flush=True)
            found |= {f"{story}.points": float(len(tasks)), f"{story}.failed": float(failed)}
    if EVERY > 1:
        print(f"every {EVERY}th point: {found}", file=sys.stderr)
        raise parts.Incomplete({})
    counts = earlier() | found
    for what in ("points", "failed"):
        found[what] = sum(counts[f"{story}.{what}"] for story in STORIES)
    return found
