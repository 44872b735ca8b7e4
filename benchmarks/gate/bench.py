"""How often is the gate wrong?

Made-up evaluations with known truth (`intonaco.testing.evaluations`): 60 prompts in five slices,
four seeds each, heavy tails, images of a prompt alike. `false_pass`: share of candidates that are
exactly at one guardrail's margin and pass, over eleven harms; at most 0.05 is right.
`false_fail`: share of candidates no different from the champion that fail where only guardrails
count; at most 0.05 is right. `passed` of them, planned for `planned_power`; `false_superior`: share
of them that pass where an improvement is wanted. `cover_least`: the least coverage of any interval
of nominal level 0.9. `compare_s`: processor seconds of one comparison of 300 prompts, 4 seeds, 512
features. GATE_EFFORT=0.1 does a tenth.
"""

from __future__ import annotations

import os
import time

import numpy as np

from intonaco.config import Margins
from intonaco.evaluation.arms import ArmImages, Reference
from intonaco.evaluation.comparison import compare
from intonaco.testing.evaluations import World, find_truth

EFFORT = float(os.environ.get("GATE_EFFORT", "1"))
IDENTICAL, AT_MARGIN = 1000, 200
ENOUGH = 200  # intervals, for a coverage to be told


def run() -> dict[str, float]:
    truth = find_truth(
        World(),
        identical=max(10, round(IDENTICAL * EFFORT)),
        at_margin=max(2, round(AT_MARGIN * EFFORT)),
        seed=20,
    )
    print("\n".join(truth.lines()))
    covers = [c.share for c in truth.covers.values() if c.runs >= min(ENOUGH, truth.identical)]
    return {
        "false_pass": truth.false_pass,
        "false_fail": truth.false_fail,
        "passed": truth.passed / truth.identical,
        "planned_power": truth.planned_power,
        "false_superior": truth.superior / truth.identical,
        "cover_least": min(covers),
        "compare_s": compare_seconds(),
    }


def compare_seconds() -> float:
    rng = np.random.default_rng(0)
    prompts, seeds, width = 300, 4, 512
    slices = np.repeat(np.arange(5), prompts // 5 * seeds)
    centres = rng.normal(size=(5, width))

    def arm() -> ArmImages:
        return ArmImages(
            prompt_ids=tuple(str(p) for p in np.repeat(np.arange(prompts), seeds)),
            slices=tuple(str(s) for s in slices),
            adherence=rng.normal(size=len(slices)),
            features=centres[slices] + rng.normal(size=(len(slices), width)),
        )

    topics = np.arange(1000) % 5
    reference = Reference(
        features=centres[topics] + rng.normal(size=(1000, width)),
        topics=tuple(str(t) for t in topics),
        training=centres[np.arange(2000) % 5] + rng.normal(size=(2000, width)),
    )
    champion, candidate = arm(), arm()
    started = time.process_time()
    compare(
        champion,
        candidate,
        reference,
        None,
        keep=[str(s) for s in range(5)],
        improve=(),
        alpha=0.05,
        margins=Margins(),
    )
    return time.process_time() - started
