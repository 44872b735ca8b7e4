"""The words of the code are in the glossary, and its tables are the code's."""

from __future__ import annotations

import inspect
import re
from enum import StrEnum
from pathlib import Path

import pytest

from intonaco import protocols, types
from intonaco.types import ArmRole, Assessment, Cause, Phase, RolloutStatus, Verdict

DOCS = Path(__file__).parents[2] / "docs"
GLOSSARY = (DOCS / "glossary.md").read_text()
TERMS = set(re.findall(r"\*\*([^*]+)\*\*(?=(?:, \*\*[^*]+\*\*)*\n:)", GLOSSARY)) | set(
    re.findall(r"\*\*([^*]+)\*\*, \*\*", GLOSSARY)
)

# Values that hold others together; a page of words does not need them.
PLUMBING = {
    "BreakerTrip",
    "ClusterMove",
    "DatasetDiff",
    "JobHandle",
    "JobSpec",
    "JobStatus",
    "MetricAssessment",
    "MetricResult",
    "Observed",
    "PairComparison",
    "Provenance",
    "RolloutStep",
    "ScoredRecord",
    "ServingSpec",
    "ServingStatus",
    "SignalStatus",
    "SplitArm",
    "StepResult",
}


def _words(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()


@pytest.mark.parametrize("values", [Phase, Verdict, Assessment, ArmRole, RolloutStatus])
def test_every_state_is_named(values: type[StrEnum]) -> None:
    assert [v for v in values if f"`{v}`" not in GLOSSARY and f"`{v}:NAME`" not in GLOSSARY] == []


def test_every_noun_is_explained() -> None:
    nouns = {
        _words(name)
        for name, cls in inspect.getmembers(types, inspect.isclass)
        if hasattr(cls, "__dataclass_fields__") and name not in PLUMBING
    }
    assert {"release", "record", "update", "rollout", "finding"} <= nouns
    explained = TERMS | {"dataset version", "routing table"}
    assert nouns - explained == set()


def test_plumbing_is_still_there() -> None:
    assert {n for n in PLUMBING if not hasattr(types, n)} == set()


def test_no_word_is_explained_twice() -> None:
    terms = re.findall(r"^\*\*([^*]+)\*\*", GLOSSARY, re.MULTILINE)
    assert len(terms) > 50
    assert {t for t in terms if terms.count(t) > 1} == set()


def test_causes_are_those_of_the_code() -> None:
    page = (DOCS / "concepts" / "causes.md").read_text().partition("\n## ")[0]
    listed = re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)
    assert listed == [str(c) for c in Cause]


def test_every_seam_says_what_it_promises() -> None:
    seams = [
        cls
        for _, cls in inspect.getmembers(protocols, inspect.isclass)
        if cls.__module__ == protocols.__name__
    ]
    assert len(seams) >= 10
    methods = {s: [m for n, m in vars(s).items() if callable(m) and n[0] != "_"] for s in seams}
    silent = [s for s in seams if not any(o.__doc__ for o in [s, *methods[s]])]
    assert silent == []
