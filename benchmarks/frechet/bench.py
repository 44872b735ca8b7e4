"""How long does one more Fréchet distance to the same reference take?

Features of 2,048 columns, 10,000 rows a side: normal, with variances that fall as i^-1.2, turned at
random, in float64. Means and covariances are there already on both sides, and so is the reference's
root, which is made once. In turns, on one thread, the best of three each: ours, from that root, and
the same formula with `scipy.linalg.sqrtm`, as pytorch-fid, clean-fid and dgm-eval have it.
`sqrtm_seconds_over_ours` is the one over the other, `difference` that of the two values, relative.
`root_s` is paid once for a reference, `statistics_s` once for a side; `fewer_rows_s` is the whole
distance of 1,000 rows to the reference, from singular values.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import parts

COLUMNS, ROWS, FEWER, ROUNDS = 2048, 10_000, 1000, 3
MEASURE = Path(__file__).resolve().parent / "measure.py"


def run() -> dict[str, float]:
    """In an interpreter of its own: NumPy's threads are counted when it is imported."""
    sizes = (str(n) for n in (COLUMNS, ROWS, FEWER, ROUNDS))
    done = subprocess.run(
        [sys.executable, str(MEASURE), *sizes],
        check=True,
        env=parts.environment(),
        stdout=subprocess.PIPE,
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found
