"""A review over HTTP: who may do what, every answer as the OpenAPI document says, nothing that
tells a reviewer which release is which, votes written once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from starlette.testclient import TestClient
from tests.reviewed import ARMS, START, a_review
from tests.unit.console.test_console_openapi import DOCUMENT, hold

from intonaco import config
from intonaco.clock import FakeClock
from intonaco.console import create_app
from intonaco.console.problems import SECURITY_HEADERS
from intonaco.ledger import Ledger
from intonaco.ledger import votes as rows
from intonaco.review import desk, session
from intonaco.review.session import BROKEN
from intonaco.types import TIE, Act, Review, TaskKind, Verdict
from intonaco.workspace import Workspace

PERSON = hashlib.sha256(b"a person's own token").hexdigest()
WATCHER = hashlib.sha256(b"only looks").hexdigest()
CONFIG = f"""
service: svc
console:
  people:
    - {{name: dan, role: reviewer, sha256: {PERSON}}}
    - {{name: eve, sha256: {WATCHER}}}
"""


class Desk:
    """A review, its console and clients of several people; holds answers against the document."""

    def __init__(self, root: Path, **settings: Any) -> None:
        self.workspace = Workspace(root)
        self.ledger = Ledger.open(self.workspace.ledger, "svc")
        self.clock = FakeClock(START)
        self.review = a_review(self.workspace, self.ledger, **settings)
        self.base = f"/review/{self.review.review_id}"
        self.app = create_app(self.ledger, self.workspace, config.parse(CONFIG), clock=self.clock)
        self.clients: dict[str, TestClient] = {}

    def client(self, name: str = "", role: str = "reviewer") -> TestClient:
        if name not in self.clients:
            found = TestClient(self.app, base_url="http://127.0.0.1", raise_server_exceptions=False)
            self.clients[name] = found
            if name:
                token = desk.invite(
                    self.ledger, self.review, name, role, now=self.clock.now(), actor="x"
                )
                entered = found.post(f"/api{self.base}/enter", json={"token": token})
                assert entered.json() == {"name": name, "role": role}
        return self.clients[name]

    def get(self, path: str, name: str = "", status: int = 200) -> Any:
        return self.check("GET", path, self.client(name).get(f"{path}"), status)

    def post(self, path: str, body: Any, name: str = "", status: int = 200) -> Any:
        answer = self.client(name).post(f"/api{self.base}/{path}", json=body)
        return self.check("POST", f"/api{self.base}/{path}", answer, status)

    def check(self, method: str, path: str, answer: Any, status: int) -> Any:
        assert answer.status_code == status, answer.text
        template = path.replace(self.review.review_id, "{review_id}").replace(
            "0" * 12, "{review_id}"
        )
        if "/pictures/" in template:
            template = "/review/{review_id}/pictures/{task}/{side}"
        said = DOCUMENT["paths"][template][method.lower()]["responses"][str(status)]
        kind = answer.headers["content-type"].partition(";")[0]
        assert kind in said["content"], (template, kind)
        if kind == "application/json":
            hold(answer.json(), said["content"][kind]["schema"], template)
        for header, value in SECURITY_HEADERS.items():
            assert answer.headers[header] == value
        return answer

    def next(self, name: str) -> Any:
        return self.get(f"/api{self.base}/next", name).json()

    def vote(self, name: str, key: str, choice: str, told: Any | None = None) -> Any:
        task = (told or self.next(name))["tasks"][0]["task"]
        choices = dict.fromkeys(self.review.questions, choice)
        return self.post("votes", {"key": key, "task": task, "choices": choices}, name).json()

    def votes(self) -> list[Any]:
        return rows.votes(self.ledger, self.review.review_id)

    def all(self, name: str, wanted: str) -> None:
        """One attentive person's votes, to the end."""
        for number in range(1000):
            told, _ = session.upcoming(self.review, name, self.votes())
            if not told or self.ledger.get(Review, self.review.review_id).closed_at:
                return
            task = told[0]
            if task.kind is TaskKind.SAME:
                choice = TIE
            elif BROKEN in (task.left, task.right):
                choice = "right" if task.left == BROKEN else "left"
            else:
                choice = "left" if task.left == wanted else "right"
            self.vote(name, f"{name}-{number:08d}", choice)


@pytest.fixture
def review_desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path, prompts=12, min_prompts=5)
    yield made
    made.ledger.close()


# ------------------------------------------------------------------ who may


def test_without_a_link_nothing_is_told(review_desk: Desk) -> None:
    d = review_desk
    d.get(d.base)  # the page itself is the same for everybody
    d.get(f"{d.base}/result")
    assert "reviewers" not in d.get(f"{d.base}/result").text.lower().split("<main", 1)[1]
    d.get(f"/api{d.base}/next", status=401)
    d.get(f"/api{d.base}/result", status=401)
    d.get(f"{d.base}/live", status=401)
    d.get(f"{d.base}/pictures/{'a' * 20}/left", status=401)
    d.post("votes", {"key": "k" * 8, "task": "t", "skip": True}, status=401)
    d.post("undo", {"key": "k" * 8}, status=401)
    d.post("enter", {"token": "no"}, status=401)
    d.post("enter", {"token": 1}, status=400)
    assert d.votes() == []


def test_an_unknown_review_is_404(review_desk: Desk) -> None:
    other = "0" * 12
    for path in ("", "/result", "/live"):
        review_desk.get(f"/review/{other}{path}", status=404)
    review_desk.get(f"/api/review/{other}/next", status=404)
    beginning = f"/review/{review_desk.review.review_id[:6]}"
    assert review_desk.client().get(beginning).status_code == 404


def test_roles_are_kept_apart(review_desk: Desk) -> None:
    d = review_desk
    d.client("lea", "lead")
    d.get(f"/api{d.base}/result", "lea")
    d.get(f"{d.base}/live", "lea")
    d.get(f"/api{d.base}/next", "lea", status=403)
    d.post("votes", {"key": "k" * 8, "task": "t", "skip": True}, "lea", status=403)
    d.next("ann")
    d.get(f"/api{d.base}/result", "ann", status=403)
    d.get(f"{d.base}/live", "ann", status=403)


def test_people_of_the_configuration_may_too(review_desk: Desk) -> None:
    d = review_desk
    bare = d.client()
    found = bare.get(f"/api{d.base}/next", headers={"authorization": "Bearer a person's own token"})
    assert found.json()["reviewer"] == "dan"
    looks = bare.get(f"/api{d.base}/next", headers={"authorization": "Bearer only looks"})
    assert looks.status_code == 401


def test_a_new_invitation_ends_the_old_one_and_a_revoked_one_is_none(review_desk: Desk) -> None:
    d = review_desk
    d.next("ann")
    desk.invite(d.ledger, d.review, "ann", "reviewer", now=START, actor="x")
    d.get(f"/api{d.base}/next", "ann", status=401)
    d.next("bob")
    with d.ledger.begin() as tx:
        assert rows.revoke(tx, d.review.review_id, "bob", START)
        assert not rows.revoke(tx, d.review.review_id, "bob", START)
    d.get(f"/api{d.base}/next", "bob", status=401)


def test_the_cookie_is_out_of_scripts_reach(review_desk: Desk) -> None:
    d = review_desk
    token = desk.invite(d.ledger, d.review, "ann", "reviewer", now=START, actor="x")
    answer = d.client().post(f"/api{d.base}/enter", json={"token": token})
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    written = [f.read_bytes() for f in d.workspace.ledger.parent.iterdir()]
    assert not any(token.encode() in raw for raw in written)  # only its digest is kept
    form = d.client().post(
        f"/api{d.base}/undo", content="key=kkkkkkkk",
        headers={"content-type": "application/x-www-form-urlencoded"},
    )  # fmt: skip
    assert form.status_code == 415


# ------------------------------------------------------------------ blind


def test_nothing_that_a_reviewer_is_sent_tells_the_releases_apart(tmp_path: Path) -> None:
    d = Desk(tmp_path, prompts=12, min_prompts=5, checks=0.5)
    hidden = [*ARMS, *ARMS.values(), *(r[:10] for r in ARMS.values())]
    seen: list[str] = [d.get(d.base, "ann").text]
    addresses: list[str] = []
    lengths: set[tuple[str, ...]] = set()
    for number in range(40):
        told = d.next("ann")
        if not told["tasks"]:
            break
        seen.append(json.dumps(told))
        task = told["tasks"][0]
        assert set(task) == {"task", "prompt", "left", "right"}
        for side in ("left", "right"):
            picture = d.get(task[side], "ann")
            addresses.append(task[side])
            assert set(picture.headers) - set(SECURITY_HEADERS) == {
                "content-type",
                "content-length",
                "cache-control",
            }
            assert chunks(picture.content) == ["IHDR", "IDAT", "IEND"]
            lengths.add(tuple(picture.headers))
        answer = d.vote("ann", f"ann-{number:08d}", "left", told)
        seen.append(json.dumps(answer))
    assert number > 15
    assert len(lengths) == 1
    assert len(set(addresses)) == len(addresses)  # one picture twice has two addresses
    text = " ".join([*seen, *addresses, *map(str, d.client("ann").headers.items())])
    assert [h for h in hidden if h in text] == []
    assert {v.kind for v in d.votes()} == set(TaskKind)


def chunks(raw: bytes) -> list[str]:
    names: list[str] = []
    at = 8
    while at < len(raw):
        name = raw[at + 4 : at + 8].decode()
        if name != "IDAT" or names[-1:] != ["IDAT"]:
            names.append(name)
        at += int.from_bytes(raw[at : at + 4], "big") + 12
    return names


def test_an_open_result_is_blind_and_a_closed_one_is_not(review_desk: Desk) -> None:
    d = review_desk
    d.all("ann", "sharpened-lora")
    d.client("lea", "lead")
    told = d.get(f"/api{d.base}/result", "lea")
    page = d.get(f"{d.base}/live", "lea").text
    for text in (told.text.replace('"candidates":["sharpened-lora"]', ""), page):
        assert "sharpened" not in text
        assert "champion" not in text
    body = told.json()
    assert body["unblinded"] is False
    assert {body["answers"][0]["first"], body["answers"][0]["second"]} == {"A", "B"}
    assert body["answers"][0]["threshold"] is None
    d.all("bob", "sharpened-lora")
    closed = d.get(f"/api{d.base}/result", "lea").json()
    assert closed["unblinded"] is True
    assert closed["verdicts"] == {"sharpened-lora": Verdict.PASS}
    assert closed["answers"][0]["first"] == "sharpened-lora"
    assert closed["releases"] == ARMS
    assert "sharpened-lora" in d.get(f"{d.base}/live", "lea").text
    (listed,) = d.client().get("/api/reviews").json()
    assert listed["open"] is False


def test_blind_figures_are_the_open_ones_turned(review_desk: Desk) -> None:
    from intonaco import readmodel

    d = review_desk
    d.all("ann", "sharpened-lora")
    for number in range(4):
        d.vote("bob", f"bob-{number:08d}", "left")
    blind = readmodel.review_result(d.ledger, d.review, unblinded=False)["answers"][0]
    known = readmodel.review_result(d.ledger, d.review, unblinded=True)["answers"][0]
    turned = session.labels(d.review)["champion"] == "A"
    same = ("for_second", "for_first") if turned else ("for_first", "for_second")
    assert (blind[same[0]], blind[same[1]]) == (known["for_first"], known["for_second"])
    share = 1 - known["share"] if turned else known["share"]
    assert blind["share"] == pytest.approx(share)
    low, high = known["interval"]
    assert blind["interval"] == pytest.approx([1 - high, 1 - low] if turned else [low, high])
    assert blind["interval"][0] <= blind["share"] <= blind["interval"][1]


def test_two_reviewers_see_other_orders_and_sides(review_desk: Desk) -> None:
    d = review_desk
    ann, bob = (session.pairs(d.review, name) for name in ("ann", "bob"))
    assert [t.item for t in ann] != [t.item for t in bob]
    assert {t.task for t in ann}.isdisjoint(t.task for t in bob)
    sides = [(t.left, next(o.left for o in bob if o.item == t.item)) for t in ann]
    assert len(set(sides)) > 1
    d.next("bob")
    d.get(f"{d.base}/pictures/{ann[0].task}/left", "bob", status=404)  # another's pair
    mine = session.pairs(d.review, "bob")[0].task
    d.get(f"{d.base}/pictures/{mine}/left", "bob")
    d.get(f"{d.base}/pictures/{mine}/top", "bob", status=404)


# ------------------------------------------------------------------ votes


def test_a_vote_is_written_once_however_often_it_is_sent(review_desk: Desk) -> None:
    d = review_desk
    told = d.next("ann")
    first = d.vote("ann", "the-same-key", "left", told)
    for _ in range(3):
        assert d.vote("ann", "the-same-key", "right", told) == first
    (vote,) = d.votes()
    assert (vote.reviewer, vote.act, vote.key) == ("ann", Act.VOTE, "the-same-key")
    assert first["tasks"][0]["task"] == told["tasks"][1]["task"]  # as it was told ahead
    assert (first["done"], first["can_undo"]) == (1, True)
    assert vote.answers["overall"] in ARMS or vote.answers["overall"] == "left"


def test_undo_takes_back_the_last_and_once(review_desk: Desk) -> None:
    d = review_desk
    d.next("ann")
    d.post("undo", {"key": "undo-nothing"}, "ann", status=409)
    told = [d.next("ann")]
    for number in range(3):
        told.append(d.vote("ann", f"key-{number:08d}", "right"))
    for _ in range(2):  # sent twice, done once
        back = d.post("undo", {"key": "undo-first-one"}, "ann").json()
        assert back["tasks"][0] == told[2]["tasks"][0]
    back = d.post("undo", {"key": "undo-second-one"}, "ann").json()
    assert back["tasks"][0] == told[1]["tasks"][0]
    assert back["done"] == 1
    assert [v.act for v in d.votes()] == [Act.VOTE] * 3 + [Act.UNDO] * 2
    d.vote("ann", "again-0000", TIE)
    assert [v.act for v in session.standing(d.votes())] == [Act.VOTE] * 2


def test_a_skip_is_not_a_vote_and_is_not_shown_again(review_desk: Desk) -> None:
    d = review_desk
    first = d.next("ann")["tasks"][0]["task"]
    d.post("votes", {"key": "skip-00000", "task": first, "skip": True}, "ann")
    assert d.votes()[0].act is Act.SKIP
    shown = {d.next("ann")["tasks"][0]["task"]}
    for number in range(20):
        told = d.vote("ann", f"key-{number:08d}", TIE)
        if not told["tasks"]:
            break
        shown.add(told["tasks"][0]["task"])
    assert first not in shown


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 400),
        ([], 400),
        ({"key": "short", "task": "t", "skip": True}, 400),
        ({"key": "k" * 65, "task": "t", "skip": True}, 400),
        ({"key": "with spaces", "task": "t", "skip": True}, 400),
        ({"key": "k" * 8, "task": 1, "skip": True}, 400),
        ({"key": "k" * 8, "task": "t", "choices": {}}, 400),
        ({"key": "k" * 8, "task": "t", "choices": {"overall": "both"}}, 400),
        ({"key": "k" * 8, "task": "t", "choices": {"overall": ["left"]}}, 400),
        ({"key": "k" * 8, "task": "t", "choices": {"quality": "left"}}, 400),
        ({"key": "k" * 8, "task": "t", "skip": "yes"}, 400),
        ({"key": "k" * 8, "task": "t", "skip": True, "seconds": -1}, 400),
        ({"key": "k" * 8, "task": "t", "skip": True, "seconds": "1"}, 400),
        ({"key": "k" * 8, "task": "t", "skip": True, "other": 1}, 400),
        ({"key": "k" * 8, "task": "not-a-task", "skip": True}, 404),
        ({"key": "k" * 8, "task": "t", "skip": True, "seconds": 1, "choices": "x" * 5000}, 413),
    ],
)
def test_what_is_wrong_is_not_written(review_desk: Desk, body: Any, status: int) -> None:
    review_desk.next("ann")
    review_desk.post("votes", body, "ann", status=status)
    assert review_desk.votes() == []


def test_bodies_that_are_hardly_json(review_desk: Desk) -> None:
    d = review_desk
    d.next("ann")
    for raw in (b"{", b"\xff\xfe", b'{"seconds": NaN}', b"[" * 4000):
        answer = d.client("ann").post(
            f"/api{d.base}/votes", content=raw, headers={"content-type": "application/json"}
        )
        assert answer.status_code == 400, raw


def test_a_disk_that_is_full_keeps_the_vote_in_the_browser_and_the_log_quiet(
    review_desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    d = review_desk
    told = d.next("ann")

    @sa.event.listens_for(d.ledger.engine, "begin")
    def full(connection: sa.Connection) -> None:
        connection.exec_driver_sql("PRAGMA max_page_count=1")

    written, key = 0, ""
    for number in range(100):
        key = f"full-{number:08d}"
        body = {"key": key, "task": told["tasks"][0]["task"], "skip": True}
        answer = d.client("ann").post(f"/api{d.base}/votes", json=body)
        if answer.status_code != 200:
            break
        written += 1
    assert answer.status_code == 503  # which the page keeps and sends again
    assert len(d.votes()) == written
    assert "full" in caplog.text
    assert "ann" not in caplog.text.replace("cannot", "")
    assert "champion" not in caplog.text
    sa.event.remove(d.ledger.engine, "begin", full)
    with d.ledger.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count=1073741823")
    d.vote("ann", key, "left", told)
    assert len(d.votes()) == written + 1


def test_a_vote_after_the_end_is_refused_and_said(review_desk: Desk) -> None:
    d = review_desk
    told = d.next("ann")
    d.clock.advance(8 * 86_400)
    desk.settle(d.ledger, d.review.review_id, d.clock.now())
    task = told["tasks"][0]["task"]
    answer = d.post("votes", {"key": "too-late-1", "task": task, "skip": True}, "ann", status=409)
    assert "over" in answer.json()["error"]["message"]
    assert d.votes() == []
    last = d.next("ann")
    assert (last["over"], last["tasks"], last["can_undo"]) == (True, [], False)
    closed = d.ledger.get(Review, d.review.review_id)
    assert closed.verdicts == {"sharpened-lora": Verdict.INCONCLUSIVE}


def test_three_questions_are_answered_together(tmp_path: Path) -> None:
    d = Desk(tmp_path, prompts=6, questions=("quality", "style", "adherence"))
    told = d.next("ann")
    assert [q["name"] for q in told["questions"]] == ["quality", "style", "adherence"]
    task = told["tasks"][0]["task"]
    choices = {"quality": "left", "style": TIE, "adherence": "right"}
    d.post("votes", {"key": "three-0001", "task": task, "choices": choices}, "ann")
    (vote,) = d.votes()
    assert list(vote.answers) == ["quality", "style", "adherence"]
    assert vote.answers["style"] == TIE


def test_the_list_and_its_page(review_desk: Desk) -> None:
    d = review_desk
    page = d.client().get("/reviews")
    assert d.review.review_id in page.text
    (listed,) = d.client().get("/api/reviews").json()
    assert (listed["votes"], listed["wanted"], listed["open"]) == (0, 24, True)
