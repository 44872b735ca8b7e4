"""Votes in the ledger: once for a key however many send it at once, never after the end; the same
tables on Postgres."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from sqlalchemy.schema import CreateTable
from tests.reviewed import COLOURS, START, a_review

from intonaco.config import ReviewConfig
from intonaco.errors import ConfigError, Conflict, NotFound, StorageError
from intonaco.evaluation.prompts import Prompt
from intonaco.ledger import Ledger
from intonaco.ledger import votes as rows
from intonaco.ledger.schema import metadata
from intonaco.review import desk, pictures, session
from intonaco.review.pictures import Drawn
from intonaco.types import Review, ReviewArm, Verdict, Vote
from intonaco.workspace import Workspace

DIALECT = sa.make_url("postgresql://").get_dialect()()


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger.open(tmp_path / "ledger.db", "svc")
    yield opened
    opened.close()


@pytest.fixture
def review(tmp_path: Path, ledger: Ledger) -> Review:
    return a_review(Workspace(tmp_path), ledger, prompts=6, side=16, min_prompts=2)


def cast(ledger: Ledger, review: Review, key: str, choice: str = "left", name: str = "ann") -> int:
    task = session.pairs(review, name)[0].task
    return desk.vote(
        ledger, review, name, key=key, task=task, choices={"overall": choice}, seconds=1.0, now=1.0
    ).vote_id


def test_the_same_key_at_once_from_many_is_one_vote(ledger: Ledger, review: Review) -> None:
    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(lambda _: cast(ledger, review, "one-and-the-same"), range(24)))
    assert len(set(ids)) == 1
    assert [v.vote_id for v in rows.votes(ledger, review.review_id)] == [ids[0]]


def test_keys_are_each_persons_own(ledger: Ledger, review: Review) -> None:
    cast(ledger, review, "a-key-of-ann")
    cast(ledger, review, "a-key-of-ann", name="bob")
    assert [v.reviewer for v in rows.votes(ledger, review.review_id)] == ["ann", "bob"]


def test_nothing_is_written_after_the_end_but_what_was_written_is_confirmed(
    ledger: Ledger, review: Review
) -> None:
    first = cast(ledger, review, "in-time")
    closed = desk.settle(ledger, review.review_id, review.deadline)
    assert closed.verdicts == {"sharpened-lora": Verdict.INCONCLUSIVE}
    with pytest.raises(Conflict, match="over"):
        cast(ledger, review, "too-late")
    assert cast(ledger, review, "in-time") == first  # its page had not heard
    assert len(rows.votes(ledger, review.review_id)) == 1
    again = desk.settle(ledger, review.review_id, review.deadline + 99)
    assert again == closed
    assert len(ledger.events(kind="review.closed")) == 1


def test_two_that_close_at_once_close_once(ledger: Ledger, review: Review) -> None:
    with ThreadPoolExecutor(8) as pool:
        ends = list(
            pool.map(lambda k: desk.settle(ledger, review.review_id, review.deadline + k), range(8))
        )
    assert len({e.closed_at for e in ends}) == 1
    assert len(ledger.events(kind="review.closed")) == 1


@pytest.mark.parametrize("name", ["tie", "broken"])
def test_a_release_is_not_called_as_an_answer_is(tmp_path: Path, ledger: Ledger, name: str) -> None:
    """Votes for it would be read as ties, its pictures be taken for scrambled ones."""
    COLOURS[name] = (1, 2, 3)
    with pytest.raises(ConfigError, match=f"called champion, {name} cannot be compared"):
        a_review(Workspace(tmp_path), ledger, prompts=2, side=16, arms={"champion": "a", name: "b"})
    assert ledger.all(Review) == []


def test_pictures_of_another_form_are_refused(tmp_path: Path, ledger: Ledger) -> None:
    drawn = Drawn(arm=ReviewArm(name="champion", release_id=""), file=tmp_path / "grey.npz")
    images = np.zeros((1, 8, 8, 1), dtype=np.uint8)
    np.savez(drawn.file, images=images, prompt_ids=["p"], slices=["s"], seeds=[0])
    with pytest.raises(StorageError, match=r"not \[1, 8, 8, 1\] of uint8"):
        desk.open_review(
            ledger,
            Workspace(tmp_path),
            ReviewConfig(),
            review_id="f" * 12,
            arms=[drawn],
            prompts=[Prompt(prompt_id="p", prompt="x", slice="s")],
            alpha=0.05,
            now=START,
            actor="x",
        )


def test_a_review_gets_more_time_and_is_ended_by_hand(ledger: Ledger, review: Review) -> None:
    longer = desk.extend(ledger, review, 3600.0, now=START, actor="lea")
    assert longer.deadline == review.deadline + 3600
    assert desk.settle(ledger, review.review_id, review.deadline + 1).closed_at is None
    late = desk.extend(ledger, review, 60.0, now=longer.deadline + 100, actor="lea")
    assert late.deadline == longer.deadline + 160  # from now, where its time was up
    closed = desk.end(ledger, late, "enough", now=START + 5, actor="lea")
    assert closed.closed_because == "ended by lea: enough"
    assert closed.verdicts == {"sharpened-lora": Verdict.INCONCLUSIVE}
    with pytest.raises(Conflict, match="is over: ended by lea"):
        desk.extend(ledger, late, 60.0, now=START, actor="lea")
    with pytest.raises(Conflict, match="is over: ended by lea"):
        desk.end(ledger, closed, "", now=START, actor="lea")
    assert [e.actor for e in ledger.events(kind="review.extended")] == ["lea", "lea"]
    assert [e.actor for e in ledger.events(kind="review.closed")] == ["lea"]


def test_a_vote_that_comes_while_it_ends_is_in_the_verdict_or_refused(
    ledger: Ledger, review: Review, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = rows.votes
    late: list[int] = []

    def slow(which: Ledger, review_id: str) -> list[Vote]:
        found = before(which, review_id)
        if not late:
            late.append(0)
            late.append(cast(ledger, review, "just-in-time"))
        return found

    monkeypatch.setattr(rows, "votes", slow)
    closed = desk.settle(ledger, review.review_id, review.deadline)
    assert "judged" not in closed.reasons["sharpened-lora"]  # the vote is in what is told
    assert len(before(ledger, review.review_id)) == 1


def test_a_vote_on_what_is_not_ones_own_is_refused(ledger: Ledger, review: Review) -> None:
    task = session.pairs(review, "bob")[0].task
    with pytest.raises(NotFound, match="not among yours"):
        desk.vote(
            ledger, review, "ann", key="not-mine", task=task, choices=None, seconds=0.0, now=1.0
        )
    assert rows.votes(ledger, review.review_id) == []


def test_opening_twice_is_one_review(tmp_path: Path, ledger: Ledger, review: Review) -> None:
    again = a_review(Workspace(tmp_path), ledger, prompts=6, side=16, now=START + 50)
    assert again == review
    assert len(ledger.events(kind="review.opened")) == 1


def test_what_a_prompt_shows_is_the_same_seed_of_every_release(
    tmp_path: Path, ledger: Ledger, review: Review
) -> None:
    workspace = Workspace(tmp_path)
    for item in review.items:
        assert item.seed == int(item.prompt_id[1:])
        for arm in review.arms:
            assert pictures.picture(workspace, review, arm.name, item.item)
    pictures.place(workspace, review, "champion", review.items[0].item).unlink()
    with pytest.raises(NotFound, match="not there"):
        pictures.picture(workspace, review, "champion", review.items[0].item)


def test_services_do_not_see_each_others_votes(ledger: Ledger, review: Review) -> None:
    cast(ledger, review, "of-this-service")
    other = Ledger(ledger.engine, "other")
    assert rows.votes(other, review.review_id) == []
    assert rows.invitations(other, review.review_id) == []


@pytest.mark.parametrize("name", ["votes", "invitations"])
def test_the_tables_are_ones_that_postgres_takes(name: str) -> None:
    made = str(CreateTable(metadata.tables[name]).compile(dialect=DIALECT))
    assert "BIGSERIAL" in made or name == "invitations"
    assert isinstance(metadata.tables[name].c.at.type, sa.Float)


def test_a_ledger_of_before_gets_the_tables(tmp_path: Path) -> None:
    """As the version before left it."""
    from intonaco.ledger.migrate import migrate

    ledger = Ledger.open(tmp_path / "old.db", "svc")
    with ledger.engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE votes"))
        connection.execute(sa.text("DROP TABLE invitations"))
        connection.execute(sa.text("DROP INDEX documents_by_status"))
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '0001'"))
    migrate(ledger.engine)
    review = a_review(Workspace(tmp_path), ledger, prompts=3, side=16)
    cast(ledger, review, "after-the-move")
    assert len(rows.votes(ledger, review.review_id)) == 1
    ledger.close()
