"""Scalar streams: how soon is a change noticed, and how often is there a false alarm?

The protocol is that of ``intonaco.testing.scalars``: 40 streams a change, 400,000 requests of each
null. ``python benchmarks/monitoring/scalars.py [REFERENCE]`` prints the table.
"""

from __future__ import annotations

import sys

from intonaco.testing import scalars


def figures() -> dict[str, float]:
    """``scalar.KIND.median_delay`` in requests and ``scalar.NULL.alarms_per_10k``, with a reference
    of 10,000 values. About a minute."""
    return scalars.figures(scalars.table())


if __name__ == "__main__":
    reference = int(sys.argv[1]) if len(sys.argv) > 1 else scalars.REFERENCE
    print(scalars.markdown(scalars.table(reference=reference)))
