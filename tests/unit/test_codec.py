"""Every noun goes to JSON and back, whatever it holds."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import math
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from tests.traffic import Traffic

from intonaco import messages, types
from intonaco.codec import as_json, canonical, decode, digest, encode
from intonaco.errors import StorageError
from intonaco.types import (
    Action,
    Arm,
    ArmRole,
    Cause,
    JobState,
    JobStatus,
    Phase,
    Plan,
    Record,
    RoutingTable,
    Update,
)

NOUNS = sorted(
    {
        cls
        for module in (types, messages)
        for _, cls in inspect.getmembers(module, inspect.isclass)
        if dataclasses.is_dataclass(cls) and cls.__module__.startswith(module.__name__)
    },
    key=lambda cls: cls.__qualname__,
)

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=4,
)
st.register_type_strategy(float, st.floats(allow_nan=False, allow_infinity=False))


def _strategy(annotation: Any) -> st.SearchStrategy[Any]:
    """``st.from_type`` with JSON values where the annotation says Any."""
    if annotation is Any:
        return JSON
    origin, arguments = get_origin(annotation), list(get_args(annotation))
    if origin is Literal:
        return st.sampled_from(arguments)
    if dataclasses.is_dataclass(annotation):
        return _values(annotation)
    if origin is tuple and arguments[-1] is Ellipsis:
        return st.lists(_strategy(arguments[0]), max_size=2).map(tuple)
    if origin is tuple:
        return st.tuples(*map(_strategy, arguments))
    if origin is Mapping:
        return st.dictionaries(st.text(max_size=6), _strategy(arguments[1]), max_size=2)
    if arguments:  # a union with None
        return st.one_of(*map(_strategy, arguments))
    return st.from_type(annotation)


def _values(cls: Any) -> st.SearchStrategy[Any]:
    hints = inspect.get_annotations(cls, eval_str=True)
    return st.builds(cls, **{f.name: _strategy(hints[f.name]) for f in dataclasses.fields(cls)})


def test_the_list_of_nouns_is_not_empty() -> None:
    assert {"Release", "Record", "Update", "Rollout", "GenerateRequest"} <= {
        cls.__name__ for cls in NOUNS
    }


@pytest.mark.parametrize("cls", NOUNS, ids=lambda cls: cls.__name__)
@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_round_trip(cls: Any, data: st.DataObject) -> None:
    value = data.draw(_values(cls))
    text = encode(value)
    assert decode(cls, text) == value
    assert decode(cls, text.encode()) == value
    # What the ledger stores, the console shows and the digest is taken of is one and the same.
    assert json.loads(text) == as_json(value)
    assert digest(decode(cls, text)) == digest(value)


@pytest.mark.parametrize("cls", NOUNS, ids=lambda cls: cls.__name__)
def test_nouns_are_immutable_and_built_by_name(cls: Any) -> None:
    params = cls.__dataclass_params__
    assert params.frozen
    assert "__slots__" in vars(cls)
    kinds = {p.kind for p in inspect.signature(cls).parameters.values()}
    assert kinds <= {inspect.Parameter.KEYWORD_ONLY}


def test_members_come_back_as_their_types() -> None:
    plan = Plan(
        plan_id="p",
        service_id="s",
        at=1.0,
        action=Action.FINE_TUNE,
        cause=Cause.CONCEPT_DRIFT,
        reason="r",
        recipes=("a", "b"),
    )
    update = Update(
        update_id="u",
        service_id="s",
        plan=plan,
        phase=Phase.TRAIN,
        created_at=1.0,
        phase_since=2.0,
        champion=None,
        candidates=(),
    )
    back = decode(Update, encode(update))
    assert back.phase is Phase.TRAIN
    assert back.plan.action is Action.FINE_TUNE
    assert isinstance(back.plan.recipes, tuple)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"state": "done"}',
        '{"state": "running", "seconds": "soon"}',
        b"\xff\xfe",
    ],
)
def test_decode_refuses_what_is_no_value(text: str | bytes) -> None:
    with pytest.raises(StorageError, match="not a JobStatus"):
        decode(JobStatus, text)


def test_fields_of_a_later_version_are_passed_over() -> None:
    text = '{"state": "succeeded", "added_by_a_later_version": 1}'
    assert decode(JobStatus, text) == JobStatus(state=JobState.SUCCEEDED)


def test_as_json_goes_into_containers() -> None:
    arm = Arm(name="champion", role=ArmRole.CHAMPION, release="r", urls=("u",), weight=1.0)
    table = RoutingTable(service_id="s", epoch=1, salt="x", arms=(arm,))
    assert as_json({"tables": [table], "n": 1}) == {
        "tables": [
            {
                "service_id": "s",
                "epoch": 1,
                "salt": "x",
                "arms": [
                    {
                        "name": "champion",
                        "role": "champion",
                        "release": "r",
                        "urls": ["u"],
                        "weight": 1.0,
                        "start": None,
                    }
                ],
                "untrip": [],
                "reason": "",
            }
        ],
        "n": 1,
    }


def test_canonical_does_not_depend_on_the_order_of_keys() -> None:
    assert canonical({"b": 1, "a": [1.5, "ü"]}) == '{"a":[1.5,"ü"],"b":1}'
    assert canonical({"a": [1.5, "ü"], "b": 1}) == canonical({"b": 1, "a": [1.5, "ü"]})


def test_digest_is_the_sha256_of_the_canonical_text() -> None:
    # The known digest of the two bytes {}; and one computed here by hand.
    assert digest({}) == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    assert digest([1, "a"]) == hashlib.sha256(b'[1,"a"]').hexdigest()


def test_numbers_that_json_does_not_have() -> None:
    """NaN and infinity have no JSON; pydantic writes null, which no float field takes back."""
    status = JobStatus(state=JobState.RUNNING, seconds=math.nan)
    assert json.loads(encode(status))["seconds"] is None
    with pytest.raises(StorageError):
        decode(JobStatus, encode(status))


def test_adapters_are_built_once() -> None:
    from intonaco import codec

    decode(JobStatus, '{"state": "running"}')
    built = codec._ADAPTERS[JobStatus]
    assert isinstance(built, TypeAdapter)
    decode(JobStatus, '{"state": "running"}')
    assert codec._ADAPTERS[JobStatus] is built


def test_a_record_written_before_edits_were_told_apart_is_a_generation() -> None:
    now = Traffic().ask().record
    old = as_json(now)
    del old["task"], old["prompt_form"]
    for attempt in old["attempts"]:
        del attempt["retry_after_s"]
    record = decode(Record, json.dumps(old))
    assert record == now
    assert record.request_class == f"{record.width}x{record.height}x{record.steps}"
    edit = dataclasses.replace(record, task="edit")
    assert edit.request_class == f"edit {record.request_class}"
