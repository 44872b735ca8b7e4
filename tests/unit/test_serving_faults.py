from __future__ import annotations

from pathlib import Path

import pytest

from intonaco.config import Serving
from intonaco.errors import ConfigError
from intonaco.serving.faults import parse_fault
from intonaco.serving.local import LocalServingBackend
from intonaco.workspace import Workspace


def test_errors_after_a_number_of_requests() -> None:
    fault = parse_fault("errors:after=2")
    assert fault is not None
    assert [fault.hits(i) for i in range(4)] == [False, False, True, True]


def test_a_count_ends_it() -> None:
    fault = parse_fault("errors:after=1,count=2")
    assert fault is not None
    assert [fault.hits(i) for i in range(5)] == [False, True, True, False, False]


def test_one_in_so_many() -> None:
    fault = parse_fault("errors:after=2,every=3,count=2")
    assert fault is not None
    assert [i for i in range(12) if fault.hits(i)] == [2, 5]
    endless = parse_fault("errors:after=1,every=4")
    assert endless is not None
    assert [i for i in range(12) if endless.hits(i)] == [1, 5, 9]


def test_slow() -> None:
    fault = parse_fault("slow:after=20,seconds=1.5")
    assert fault is not None
    assert (fault.kind, fault.after, fault.seconds) == ("slow", 20, 1.5)
    assert parse_fault("") is None


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("explode:after=1", "unknown kind 'explode'; known: errors, slow"),
        ("errors:afer=1", "unknown field 'afer'"),
        ("errors:after=many", "after must be int"),
        ("errors:after=-1", "not negative"),
        ("slow:after=1", "seconds must be given"),
        ("slow:seconds=inf", "finite"),
        ("errors:every=0", "every must be 1 or more"),
    ],
)
def test_a_bad_spec_is_refused_by_name(spec: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=why):
        parse_fault(spec)
    with pytest.raises(ConfigError, match=why):
        LocalServingBackend(Workspace(tmp_path), Serving(faults={"r": ("", spec)}))
