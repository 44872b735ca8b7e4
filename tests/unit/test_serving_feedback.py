"""Votes on images: whose they are, that they count once, and where they are written."""

from __future__ import annotations

import asyncio
import base64
import json
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from tests.fixtures_gateway import NEW, OLD, Stage, in_one_loop

from intonaco.clock import FakeClock
from intonaco.codec import decode
from intonaco.messages import BACKGROUND_UNIT
from intonaco.segment_log import SegmentReader
from intonaco.serving.gateway.digests import Digests
from intonaco.serving.gateway.feedback import DAY_S, Tokens, Voteable, Votes
from intonaco.serving.gateway.problems import Refused
from intonaco.types import Feedback, Json

IMAGE = Voteable(
    request_id="req_1", assigned_arm="champion", release=OLD, unit="d1", made_at=1_700_000_000
)
TOKENS = Tokens(Digests(b"key"), 30.0)


def test_a_token_says_what_was_signed() -> None:
    token = TOKENS.sign(IMAGE)
    assert TOKENS.read(token, IMAGE.made_at + 29 * DAY_S) == IMAGE
    with pytest.raises(Refused) as caught:
        TOKENS.read(token, IMAGE.made_at + 31 * DAY_S)
    assert caught.value.error.code == "expired_token"


def test_forged_tokens() -> None:
    payload, mac = TOKENS.sign(IMAGE).split(".")
    other, _ = Tokens(TOKENS.digests, 30.0).sign(replace(IMAGE, unit="d2")).split(".")
    stranger = Tokens(Digests(b"other key"), 30.0).sign(IMAGE)
    unsigned = base64.urlsafe_b64encode(json.dumps(["x"] * 6).encode()).decode().rstrip("=")
    for forged in (
        *("", ".", "..", "a.b.c", payload, f"{payload}.", f".{mac}", f"{other}.{mac}"),
        *(f"{payload}.{mac}=", f"{payload}.{mac[:-1]}", f"{payload}\n.{mac}", "é.é", "\ud800.x"),
        *(stranger, f"{unsigned}.{mac}"),
    ):
        with pytest.raises(Refused) as caught:
            TOKENS.read(forged, IMAGE.made_at)
        assert (caught.value.status, caught.value.error.code) == (400, "invalid_token")
    # The last character of a mac holds spare bits: another spelling is another token.
    spelled = {mac[:-1] + c for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_"}
    good = []
    for one in spelled:
        try:
            TOKENS.read(f"{payload}.{one}", IMAGE.made_at)
        except Refused:
            continue
        good.append(one)
    assert good == [mac] or (not good and mac[-1].isdigit())


def test_marks_are_shared_and_atomic(tmp_path: Path) -> None:
    """Two gateways, one table: of many at the same time exactly one counts."""
    from concurrent.futures import ThreadPoolExecutor

    tables = [Votes(tmp_path / "feedback" / "votes.db", 100) for _ in range(2)]

    def vote(i: int) -> int:
        try:
            tables[i % 2].mark("req_1", "explicit", "u", 5)
        except Refused as refused:
            return refused.status
        return 201

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(vote, range(8))) == [201] + [409] * 7


def test_a_unit_has_so_many_a_day(tmp_path: Path) -> None:
    votes = Votes(tmp_path / "votes.db", 2)
    votes.mark("a", "explicit", "u", 5)
    votes.mark("b", "explicit", "u", 5)
    with pytest.raises(Refused) as caught:
        votes.mark("c", "explicit", "u", 5)
    assert caught.value.status == 429
    votes.mark("c", "explicit", "other", 5)
    votes.mark("d", "explicit", "u", 6)
    assert votes.forget(6) == 3
    votes.mark("a", "explicit", "u", 7)
    assert Votes(tmp_path / "none" / "votes.db", 2).forget(9) == 0


async def token(stage: Stage, **body: Json) -> str:
    answer = await stage.ask(**body)
    found: str = answer.json()["data"][0]["feedback_token"]
    return found


async def vote(stage: Stage, **body: Json) -> tuple[int, str]:
    answer = await stage.http.post("/v1/feedback", json=body)
    content = answer.json()
    return answer.status_code, content.get("error", {}).get("code", "")


def log(stage: Stage) -> list[Feedback]:
    lines = SegmentReader(stage.workspace.feedback).read(10**6)
    return [decode(Feedback, line) for line in lines]


async def test_a_vote_is_written_with_what_was_shown(tmp_path: Path) -> None:
    clock = FakeClock()
    async with in_one_loop(tmp_path, clock=clock) as stage:
        stage.route(1.0)
        signed = await token(stage, user="alice")
        clock.advance(60)
        assert await vote(stage, token=signed, vote="down") == (201, "")
        assert await vote(stage, token=signed, vote="up") == (409, "already_voted")
        assert await vote(stage, token=signed, stars=5) == (409, "already_voted")
        assert await vote(stage, token=signed, kind="download") == (201, "")
        assert await vote(stage, token=signed, kind="download") == (409, "already_voted")
        [record] = await stage.records()
        said, did = log(stage)
        assert (said.kind, said.vote, did.kind, did.vote) == ("explicit", "down", "download", None)
        assert said.request_id == record.request_id
        assert (said.assigned_arm, said.release) == ("challenger:x", NEW)
        assert (said.made_at, said.at) == (int(record.at), clock.now())
        assert said.unit == stage.new.asked[0].unit
        assert said.service_id == "tiny"
        text = await stage.metrics()
        labels = f'kind="explicit",vote="down",arm="challenger:x",release="{NEW[:10]}"'
        assert f"feedback_total{{{labels}}} 1" in text
        assert 'rejected_total{reason="already_voted"} 3' in text
        assert "alice" not in text + "".join(map(str, log(stage)))


async def test_tokens_outlive_the_process_and_votes_too(tmp_path: Path) -> None:
    async with in_one_loop(tmp_path) as stage:
        stage.route()
        first, second = [await token(stage), await token(stage)]
        assert await vote(stage, token=first, stars=4) == (201, "")
    async with in_one_loop(tmp_path) as stage:
        assert await vote(stage, token=first, stars=4) == (409, "already_voted")
        assert await vote(stage, token=second, stars=1) == (201, "")
        assert [(f.vote, f.gateway_epoch) for f in log(stage)] == [("4", 1), ("1", 2)]
        mode = (stage.workspace.run / "instance.key").stat().st_mode
        assert stat.S_IMODE(mode) == 0o600


async def test_what_is_no_vote(tmp_path: Path) -> None:
    clock = FakeClock()
    async with in_one_loop(
        tmp_path, "feedback: {token_days: 2, votes_per_day: 3}", clock=clock
    ) as stage:
        stage.route()
        good = await token(stage)
        for body in (
            *({}, {"token": good}, {"token": good, "vote": "up", "stars": 3}, {"token": 3}),
            *({"token": good, "vote": "meh"}, {"token": good, "stars": 0}),
            *({"token": good, "stars": 6}, {"token": good, "stars": True}),
            *({"token": good, "kind": "explicit"}, {"token": good, "kind": "bribe"}),
            *({"token": good, "kind": "download", "vote": "up"},),
            *({"token": good, "vote": "up", "weight": 9}, {"token": "x" * 3000, "vote": "up"}),
            *({"token": good[:-2], "vote": "up"}, {"token": "", "vote": "up"}),
        ):
            assert (await vote(stage, **body))[0] == 400, body
        raw = await stage.http.post("/v1/feedback", content=b" " * 9000)
        assert raw.status_code == 413
        assert log(stage) == []
        for status in (201, 201, 201, 429):
            assert (await vote(stage, token=await token(stage), vote="up"))[0] == status
        clock.advance(2 * DAY_S + 1)
        assert await vote(stage, token=good, vote="up") == (400, "expired_token")
        assert stage.gateway.desk.forget() == 0
        clock.advance(2 * DAY_S)
        await stage.gateway.tidy()
        assert stage.gateway.desk.forget() == 0, "they are forgotten already"


async def test_a_vote_that_cannot_be_stored_can_be_sent_again(tmp_path: Path) -> None:
    async with in_one_loop(tmp_path) as stage:
        stage.route()
        good = await token(stage)
        stage.workspace.feedback.mkdir()
        log_folder = stage.workspace.feedback / "gateway"
        log_folder.write_text("a file where the folder should be")
        assert await vote(stage, token=good, vote="up") == (503, "storage")
        log_folder.unlink()
        assert await vote(stage, token=good, vote="up") == (201, "")
        assert len(log(stage)) == 1


async def test_many_at_once(tmp_path: Path) -> None:
    async with in_one_loop(tmp_path) as stage:
        stage.route()
        good = await token(stage)
        tries = await asyncio.gather(*(vote(stage, token=good, vote="up") for _ in range(10)))
        assert sorted(t[0] for t in tries) == [201] + [409] * 9
        assert len(log(stage)) == 1


async def test_probes_have_no_token(tmp_path: Path) -> None:
    async with in_one_loop(tmp_path) as stage:
        stage.route()
        admin = {"authorization": f"Bearer {stage.workspace.admin_token()}"}
        probe = admin | {"x-intonaco-probe": "1", "x-intonaco-release": OLD}
        assert "feedback_token" not in (await stage.ask(probe)).json()["data"][0]
        assert stage.old.asked[0].unit == BACKGROUND_UNIT
