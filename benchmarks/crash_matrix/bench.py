"""Does it matter where the controller is killed?

The real controller over twins of everything outside it goes through four updates (a first release;
one that is promoted and rolled back while it bakes; its retry; a way back) with a `kill -9` right
before or right after each call to the outside and each commit of the ledger, one point a story, and
is begun again. `points`: at how many it was killed; `failed`: where anything differed from the
undisturbed story, a job was begun twice, or the outside was asked for what would harm a user. The
harness is that of `tests/integration/test_crash_matrix.py`.

Half an hour on one core. `CRASH_MATRIX_EVERY=60` takes every 60th point only, to see whether it
works: its figures are printed and not written down.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from pathlib import Path

import parts

EVERY = int(os.environ.get("CRASH_MATRIX_EVERY", "1"))
ROOT = Path(__file__).resolve().parents[2]


def run() -> dict[str, float]:
    """Numbers of points. Raises Incomplete, with no figure, for a sample of them."""
    if EVERY < 1:
        raise ValueError(f"CRASH_MATRIX_EVERY is {EVERY}: give 1 or more")
    if str(ROOT) not in sys.path:  # for ``tests``
        sys.path.insert(0, str(ROOT))
    from tests.crashing import killed_at, points_of
    from tests.crashing import run as tell

    logging.disable(logging.CRITICAL)  # each killed controller says much
    try:
        with tempfile.TemporaryDirectory() as folder:
            expected, killed = tell(Path(folder) / "reference")
            if killed:
                raise RuntimeError("the undisturbed story was killed")
            chosen = points_of(Path(folder) / "reference")[::EVERY]
            failed = 0
            for point in chosen:
                wrong = killed_at(Path(folder) / "service", point, expected)
                if wrong:
                    failed += 1
                    print(f"{point}: {wrong}", file=sys.stderr, flush=True)
    finally:
        logging.disable(logging.NOTSET)
    found = {"points": float(len(chosen)), "failed": float(failed)}
    if EVERY > 1:
        print(f"every {EVERY}th point: {found}", file=sys.stderr)
        raise parts.Incomplete({})
    return found
