"""A required review, end to end in headless Chromium: two reviewers press real keys for forty votes
while the server is killed in the middle; then the update that waited for them goes on."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.chromium import PROGRAM, Page, chromium
from tests.fixtures_serving import until
from tests.integration.test_review_in_memory import Reviewed

from intonaco.clock import FakeClock
from intonaco.ledger import votes as rows
from intonaco.review import desk, pictures, session
from intonaco.review.result import result_of
from intonaco.review.session import BROKEN, Task
from intonaco.types import Act, Phase, Review, TaskKind, Verdict

pytestmark = pytest.mark.skipif(
    PROGRAM is None, reason="not verified: there is no chromium (Debian: apt-get install chromium)"
)
PROMPTS = 20
READY = (
    "!document.getElementById('vote').hidden && !document.getElementById('choose-tie').disabled"
    " && document.getElementById('left').getAttribute('src').includes('{}')"
)

OVER = "document.getElementById('over-text').textContent.includes('is over')"


class Server:
    """The console's process, on a port that stays the same."""

    def __init__(self, world: Reviewed) -> None:
        self.world = world
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        world.workspace.config_file.write_text(f"service: svc\nconsole: {{port: {port}}}\n")
        self.url = f"http://127.0.0.1:{port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        root = str(self.world.root)
        self.process = process = subprocess.Popen(
            [sys.executable, "-m", "intonaco.console.main", "--workspace", root],
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        until(lambda: self.world.workspace.process("console"), lambda i: i is not None)
        assert process.poll() is None

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(20)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Reviewed]:
    made = Reviewed(tmp_path, prompts=PROMPTS, clock=FakeClock(time.time()))  # the server's day
    made.first_release()
    made.technique()
    yield made
    made.close()


@contextmanager
def serving(world: Reviewed) -> Iterator[Server]:
    server = Server(world)
    server.start()
    try:
        yield server
    finally:
        server.kill()


class Reviewer:
    """A person at a keyboard, who likes the candidate on four prompts of five."""

    def __init__(self, world: Reviewed, review: Review, name: str, page: Page) -> None:
        self.world, self.review, self.name, self.page = world, review, name, page

    def facing(self) -> Task | None:
        """What the session says this reviewer sees; waits for the page to show it. None at the
        end, which a decision may bring before a check that was due."""
        votes = rows.votes(self.world.ledger, self.review.review_id)
        told, _ = session.upcoming(self.review, self.name, votes)
        if not told:
            return None
        shown = READY.format(told[0].task)
        self.page.until(f"{shown} || ({OVER})")
        return told[0] if self.page.value(shown) else None

    def key(self, task: Task) -> str:
        if task.kind is TaskKind.SAME:
            return "ArrowDown"
        if BROKEN in (task.left, task.right):
            return "ArrowRight" if task.left == BROKEN else "ArrowLeft"
        number = int(next(i.prompt_id for i in self.review.items if i.item == task.item)[1:])
        wanted = "champion" if number % 5 == 0 else "fewer"
        return "ArrowLeft" if task.left == wanted else "ArrowRight"

    def mine(self) -> int:
        votes = rows.votes(self.world.ledger, self.review.review_id)
        return sum(v.reviewer == self.name for v in votes)

    def press(self, key: str) -> None:
        """A key whose act is in the ledger before anything else is seen."""
        before = self.mine()
        self.page.press(key)
        until(self.mine, lambda n: n == before + 1)

    def work(self, most: int = 1000) -> int:
        for number in range(most):
            task = self.facing()
            if task is None:
                return number
            self.press(self.key(task))
        return most

    def sees(self) -> str:
        return str(self.page.value("document.getElementById('status').textContent"))


def test_forty_votes_by_two_people_and_a_server_that_dies(world: Reviewed, tmp_path: Path) -> None:
    review = world.the_review()
    tokens = {
        name: desk.invite(world.ledger, review, name, role, now=world.clock.now(), actor="x")
        for name, role in (("ann", "reviewer"), ("bob", "reviewer"), ("lea", "lead"))
    }
    with serving(world) as server, chromium(tmp_path / "profile") as browser:
        address = f"{server.url}/review/{review.review_id}"
        people = []
        for name in ("ann", "bob"):
            page = browser.page()
            page.open(f"{address}#{tokens[name]}")
            people.append(Reviewer(world, review, name, page))
        ann, bob = people

        # Undo and skip, by their keys, and the token is nowhere to be seen.
        first = ann.facing()
        assert first is not None
        assert ann.page.value("location.hash + document.cookie") == ""
        ann.press(ann.key(first))
        ann.facing()
        ann.press("u")
        assert ann.facing() == first
        ann.press("s")
        ann.facing()
        ann.press("u")
        assert ann.facing() == first
        ann.page.down("z")
        assert ann.page.value("document.getElementById('pair').classList.contains('zoomed')")
        ann.page.up("z")
        assert not ann.page.value("document.getElementById('pair').classList.contains('zoomed')")

        assert ann.work(9) == 9
        assert bob.work(5) == 5
        stood = len(rows.votes(world.ledger, review.review_id))

        # Ann's vote is under way when the server dies, bob's comes after.
        anns, bobs = ann.facing(), bob.facing()
        assert anns is not None
        assert bobs is not None
        ann.page.press(ann.key(anns))
        server.kill()
        bob.page.press(bob.key(bobs))
        bob.page.until("document.getElementById('status').className === 'bad'")
        assert "Not saved yet" in bob.sees()
        bob.page.press("ArrowLeft")  # of no effect: the pair waits for its first answer
        kept = json.loads(
            bob.page.value(f"localStorage.getItem('intonaco-review-{review.review_id}-bob')")
        )
        assert [act["body"]["task"] for act in kept] == [bobs.task]
        assert len(rows.votes(world.ledger, review.review_id)) in (stood, stood + 1)
        bob.page.open("about:blank")  # bob gives up for now, the vote in the browser's keeping
        assert world.updates()[-1].phase is Phase.REVIEW
        server.start()
        bob.page.open(address)
        until(lambda: len(rows.votes(world.ledger, review.review_id)), lambda n: n == stood + 2)

        lea = browser.page()
        lea.open(f"{address}/result#{tokens['lea']}")
        lea.until("document.body.innerText.includes('blind until it is decided')")
        told = lea.value("document.documentElement.outerHTML")
        assert "fewer" not in told
        assert "champion" not in told

        ann.work()
        world.tick()
        assert world.updates()[-1].phase is Phase.REVIEW
        bob.work()
        for reviewer in people:
            reviewer.page.open(address)
            reviewer.page.until("!document.getElementById('over').hidden")
            assert reviewer.page.complaints() == []
        lea.until("document.body.innerText.includes('fewer against champion')")
        assert lea.complaints() == []

        votes = rows.votes(world.ledger, review.review_id)
    counted = [v for v in session.standing(votes) if v.kind is TaskKind.PAIR]
    assert len(counted) == 2 * PROMPTS  # forty, each once
    assert len({(v.reviewer, v.item) for v in counted}) == 2 * PROMPTS
    assert all(v.act is Act.VOTE for v in counted)
    closed = world.ledger.get(Review, review.review_id)
    result = result_of(closed, votes)
    assert (result.votes, result.counted) == (40, 2)
    assert [r.checks.failed for r in result.reviewers] == [0, 0]
    assert result.answers[0].wins == 32
    assert result.answers[0].losses == 8
    assert closed.verdicts == {"fewer": Verdict.PASS}
    world.until(lambda: world.updates()[-1].phase not in (Phase.REVIEW, Phase.GATE))
    assert world.updates()[-1].candidates[0].verdict is Verdict.PASS


def test_a_pair_whose_picture_never_comes_can_be_skipped_and_a_double_click_is_one_answer(
    world: Reviewed, tmp_path: Path
) -> None:
    review = world.the_review()
    token = desk.invite(world.ledger, review, "ann", "reviewer", now=world.clock.now(), actor="x")
    (task, *_), _ = session.upcoming(review, "ann", [])
    pictures.place(world.workspace, review, task.left, task.item).unlink()
    with serving(world) as server, chromium(tmp_path / "profile") as browser:
        page = browser.page(width=390, height=844)
        page.open(f"{server.url}/review/{review.review_id}#{token}")
        page.until("!document.getElementById('skip').disabled")
        assert "skipped" in page.value("document.getElementById('status').textContent")
        assert page.value("document.getElementById('choose-left').disabled")
        page.press("ArrowLeft")  # of no effect: it was not seen
        page.press("s")
        votes = until(lambda: rows.votes(world.ledger, review.review_id), lambda v: len(v) == 1)
        (second, *_), _ = session.upcoming(review, "ann", votes)  # a pair, or a check
        page.until(READY.format(second.task))
        for count in (2, 1):  # the rest of a double click; a click
            # At once: until it is saved, and no longer, the buttons are dead.
            sent = page.value(
                "(() => { const tie = document.getElementById('choose-tie');"
                f" tie.dispatchEvent(new MouseEvent('click', {{detail: {count}, bubbles: true}}));"
                " return tie.disabled; })()"
            )
            assert sent is (count == 1)
        until(lambda: len(rows.votes(world.ledger, review.review_id)), lambda n: n == 2)
    skip, vote = rows.votes(world.ledger, review.review_id)
    assert (skip.act, skip.task) == (Act.SKIP, task.task)
    assert vote.act is Act.VOTE
