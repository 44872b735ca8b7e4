"""What of live traffic is proposed as training data, and what never is."""

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from intonaco import config
from intonaco.codec import encode
from intonaco.config import Curation
from intonaco.datasets import proposals
from intonaco.datasets.curation import Item, read_folder, write_folder
from intonaco.datasets.generated import bound_generated
from intonaco.datasets.proposing import Choice, Proposed, choose
from intonaco.datasets.served import (
    Consents,
    Label,
    LabelFile,
    Served,
    read_consents,
    read_served,
    read_votes,
)
from intonaco.errors import ConfigError
from intonaco.segment_log import SegmentWriter
from intonaco.types import ClusterMove, Feedback, Record, ScoredRecord
from intonaco.workspace import Workspace

ALL = Consents({}, required=False)


def digest(unit: str) -> str:
    return hashlib.sha256(unit.encode()).hexdigest()[:32]


def served(n: int, **changes: Any) -> Served:
    rng = random.Random(n)
    values: dict[str, Any] = {
        "request": f"r{n}",
        "image": f"images/{n}.png",
        "prompt": f"prompt {n}",
        "at": float(n),
        "release": "rel",
        "unit": f"unit{n}",
        "named": True,
        "score": 0.9,
        "moved": False,
        "hash": f"{rng.getrandbits(64):016x}",
    }
    return Served(**(values | changes))


def settings(**changes: Any) -> Curation:
    values = {"enabled": True, "consent": "assumed", "min_score": 0.5, "per_unit_cap": 3}
    return Curation.model_validate(values | changes)


def label(image: str, word: Any = "good", reviewer: str = "ann", **changes: Any) -> Label:
    return Label(image=image, prompt="a pair", label=word, reviewer=reviewer, **changes)


def sources(choice: Choice) -> dict[str, str]:
    return {item.image: item.source for item in choice.items}


def test_votes_scores_and_moved_topics_decide() -> None:
    all_served = [
        served(0),  # voted up, scores high
        served(1, score=0.4),  # voted up, scores low
        served(2),  # voted down
        served(3, moved=True),
        served(4, moved=True, score=0.1),
        served(5, moved=True),  # voted down
        served(6),  # nobody said anything
        served(7, score=None),  # voted up, never scored
    ]
    votes = {"r0": 1, "r1": 1, "r2": -1, "r5": -1, "r7": 1}
    choice = choose(all_served, votes, [], ALL, settings(), finding="f1")
    assert sources(choice) == {"images/0.png": "feedback", "images/3.png": "finding"}
    assert [i.finding for i in choice.items] == ["", "f1"]
    assert all(i.generated and i.consent for i in choice.items)


def test_without_a_bound_the_upper_quarter_scores_high() -> None:
    all_served = [served(n, score=n / 100, moved=True) for n in range(100)]
    choice = choose(all_served, {}, [], ALL, settings(min_score=None, max_items=5000))
    assert choice.min_score == pytest.approx(0.7425)
    assert {i.image for i in choice.items} == {f"images/{n}.png" for n in range(75, 100)}
    nothing = [served(n, score=None, moved=True) for n in range(3)]
    assert choose(nothing, {}, [], ALL, settings(min_score=None)).items == ()


def test_no_unit_brings_about_more_than_its_cap() -> None:
    """One that votes everything up, one among a thousand without a name, and everybody else."""
    busy = [served(n, unit="busy") for n in range(50)]
    nameless = [served(100 + n, named=False) for n in range(50)]
    others = [served(200 + n, unit=f"u{n % 10}") for n in range(50)]
    all_served = [*busy, *nameless, *others]
    votes = {one.request: 1 for one in all_served}
    for seed in range(5):
        random.Random(seed).shuffle(all_served)
        choice = choose(all_served, votes, [], ALL, settings())
        of_unit = Counter(i.unit for i in choice.items)
        assert of_unit == {"busy": 3, "": 3, **{f"u{n}": 3 for n in range(10)}}
        assert choice.left_out == {"cap": 150 - 36}
    # … nor by having its own images labelled
    labels = [label(one.image) for one in busy]
    choice = choose(all_served, votes, labels, ALL, settings())
    assert Counter(i.unit for i in choice.items)["busy"] == 3


def test_only_who_agreed() -> None:
    all_served = [
        *(served(0, unit="yes"), served(1, unit="no"), served(2, unit="silent")),
        served(3, named=False),
    ]
    votes = {f"r{n}": 1 for n in range(4)}
    said = {"yes": True, "no": False}

    def units(required: bool, *labels: Label) -> set[str]:
        choice = choose(all_served, votes, labels, Consents(said, required=required), settings())
        return {i.image.removeprefix("images/").removesuffix(".png") for i in choice.items}

    assert units(True) == {"0"}
    assert units(False) == {"0", "2", "3"}
    # A reviewer's word is not the user's: neither by path nor by request does it get round a no.
    for around in (label("images/1.png"), label("other.png", request="r1")):
        for consent in (None, True):
            assert units(True, replace(around, consent=consent)) == {"0"}
    # Whose image it was is not known any more.
    assert units(False, label("images/gone.png", consent=True)) == {"0", "2", "3"}
    assert units(False, label("x.png", request="gone", consent=True)) == {"0", "2", "3"}
    # What a reviewer brings along.
    own = label("mine/a.png")
    assert "mine/a" in units(False, own)
    assert "mine/a" not in units(True, own)
    assert "mine/a" in units(True, replace(own, consent=True))
    assert "mine/a" not in units(False, replace(own, consent=False))


def test_what_a_person_dropped_is_not_proposed_again() -> None:
    everything = [served(n) for n in range(3)]
    votes = {f"r{n}": 1 for n in range(3)}
    said = [label("images/1.png", request="r1")]
    first = choose(everything, votes, said, ALL, settings())
    assert len(first.items) == 3
    gone = {i.item_id for i in first.items if i.image != "images/2.png"}
    again = choose(everything, votes, said, ALL, settings(), dropped=gone)
    assert [i.image for i in again.items] == ["images/2.png"]
    assert again.left_out == {"dropped": 2}


def test_reviewers_have_a_voice_each_and_change_their_mind() -> None:
    labels = [
        *(label("a.png") for _ in range(5)),  # one reviewer, five times
        *(label("b.png", reviewer=r) for r in ("ann", "bo")),
        *(label("c.png", reviewer=r) for r in ("ann", "bo")),
        label("c.png", "bad", "cy"),
        *(label("d.png", reviewer=r) for r in ("ann", "bo")),
        label("d.png", "bad", "ann"),
    ]
    choice = choose([], {}, labels, ALL, settings(min_votes=2))
    assert sources(choice) == {"b.png": "review"}
    assert [i.votes for i in choice.items] == [2]
    one = served(0)
    assert choose([one], {"r0": 1}, [label(one.image, "bad")], ALL, settings()).items == ()


def test_reviewed_first_and_no_more_than_there_is_room_for() -> None:
    all_served = [served(n, score=0.5 + n / 100) for n in range(20)]
    votes = {f"r{n}": 1 for n in range(20)}
    choice = choose(all_served, votes, [label("z.png")], ALL, settings(max_items=4))
    assert [i.image for i in choice.items] == [
        "z.png",
        *(f"images/{n}.png" for n in (19, 18, 17)),
    ]
    assert choice.left_out == {"room": 17}


def test_the_same_picture_is_proposed_once() -> None:
    all_served = [served(n, hash=f"{0xABCDEF0123456700 + (n % 2):016x}") for n in range(10)]
    votes = {one.request: 1 for one in all_served}
    choice = choose(all_served, votes, [], ALL, settings())
    assert (len(choice.items), choice.left_out) == (1, {"alike": 9})


# ------------------------------------------------------------------------------ what is read


def record(n: int, **changes: Any) -> Record:
    values: dict[str, Any] = {
        "gateway": "gateway",
        "gateway_epoch": 1,
        "seq": n,
        "service_id": "svc",
        "request_id": f"q-{n}",
        "at": 1000.0 + n,
        "unit": f"user{n}",
        "assigned_arm": "champion",
        "probability": 1.0,
        "routing_epoch": 1,
        "salt": "s",
        "attempts": (),
        "served_by": "rel",
        "served_arm": "champion",
        "status": 200,
        "seconds": 1.0,
        "prompt": f"prompt {n}",
        "seed": n,
        "steps": 5,
        "guidance_scale": 1.0,
        "width": 32,
        "height": 32,
        "image": f"images/{n}.png",
    }
    return Record(**(values | changes))


def write_scores(workspace: Workspace, items: Iterable[ScoredRecord]) -> None:
    writer = SegmentWriter(workspace.scores, "scorer")
    for item in items:
        writer.append(encode(item))
    writer.close()


def scored(one: Record, **changes: Any) -> ScoredRecord:
    values: dict[str, Any] = {
        "record": one,
        "prompt_embedding": (1.0, 0.0),
        "scores": {"clip": 0.7, "aesthetic": 5.0},
        "extractor": "x",
        "image_hash": "00ff00ff00ff00ff",
    }
    return ScoredRecord(**(values | changes))


def test_only_images_that_users_asked_for_and_that_were_kept(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    write_scores(
        workspace,
        [
            scored(record(0)),
            scored(record(1, probe=True)),
            scored(record(2, shadow_of="q-0")),
            scored(record(3, status=500)),
            scored(record(4, image=None)),
            scored(record(5, prompt_form="hash", prompt="ab12")),
            scored(record(6, task="edit")),
            scored(record(7, at=10.0)),
            scored(record(8), image_broken=True),
            scored(record(9, prompt="  ")),
            scored(record(10, unit="q-10"), prompt_embedding=(0.0, 1.0)),
            scored(record(11, request_id="q-11-3", unit="q-11")),
            scored(record(12), scores={}),
        ],
    )
    with next(workspace.scores.glob("*/*.jsonl")).open("a") as log:
        log.write("{}\nhalf a line")
    moved = [a_cluster((0.0, 1.0), moved=True), a_cluster((1.0, 0.0), moved=False)]
    found = read_served(workspace, 500.0, digest, score="aesthetic", clusters=moved)
    assert [s.request for s in found] == ["q-0", "q-10", "q-11-3", "q-12"]
    assert [s.named for s in found] == [True, False, False, True]
    assert [s.moved for s in found] == [False, True, False, False]
    assert [s.score for s in found] == [5.0, 5.0, 5.0, None]
    assert found[0].unit == digest("user0")
    assert "user0" not in repr(found)


def a_cluster(centroid: tuple[float, ...], *, moved: bool) -> ClusterMove:
    return ClusterMove(
        cluster=0,
        share_before=0.1,
        share_now=0.4,
        share_now_interval=(0.3, 0.5),
        quality_inside=None,
        quality_outside=None,
        sample_prompts=(),
        sample_images=(),
        centroid=centroid,
        moved=moved,
    )


def test_votes_are_what_people_said(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    writer = SegmentWriter(workspace.feedback, "gateway")
    for n, (kind, vote) in enumerate(
        [
            *(("explicit", v) for v in ("up", "down", "5", "4", "3", "2", "1")),
            ("regenerate", None),
            ("download", None),
        ]
    ):
        writer.append(
            encode(
                Feedback(
                    gateway="gateway",
                    gateway_epoch=1,
                    seq=n,
                    service_id="svc",
                    at=1000.0,
                    request_id=f"q-{n}",
                    made_at=999.0,
                    assigned_arm="champion",
                    release="rel",
                    unit="u",
                    kind=kind,
                    vote=vote,
                )
            )
        )
    writer.close()
    expected = {"q-0": 1, "q-1": -1, "q-2": 1, "q-3": 1, "q-5": -1, "q-6": -1}
    assert read_votes(workspace, 0.0) == expected
    assert read_votes(workspace, 1e12) == {}


def test_the_last_word_on_consent_counts(tmp_path: Path) -> None:
    file = tmp_path / "consents.jsonl"
    lines = [("a", True), ("b", True), ("a", False), ("c", False)]
    file.write_text("\n".join(json.dumps({"unit": u, "consent": c}) for u, c in lines))
    required = read_consents(file, digest, required=True)
    assert [required.of(digest(u)) for u in "abcd"] == [False, True, False, False]
    assumed = read_consents(file, digest, required=False)
    assert [assumed.of(digest(u)) for u in "abcd"] == [False, True, False, True]


@pytest.mark.parametrize("line", ["{", "[]", '{"unit": "a"}', '{"unit": 1, "consent": true}'])
def test_a_line_that_may_be_somebodys_no_is_never_passed_over(line: str, tmp_path: Path) -> None:
    file = tmp_path / "consents.jsonl"
    file.write_text(f'{{"unit": "a", "consent": true}}\n{line}\n')
    with pytest.raises(ConfigError, match="line 2"):
        read_consents(file, digest, required=False)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_consents(tmp_path / "gone.jsonl", digest, required=False)


@pytest.mark.parametrize(
    "change",
    [{"label": "fine"}, {"image": ""}, {"prompt": 3}, {"reviewer": None}, {"consent": "yes"}],
)
def test_a_label_that_cannot_be_read_is_named(change: dict[str, Any], tmp_path: Path) -> None:
    good = {"image": "a.png", "prompt": "p", "label": "good", "reviewer": "ann"}
    file = tmp_path / "labels.jsonl"
    file.write_text(json.dumps(good) + "\n\n" + json.dumps(good | {"consent": True}))
    assert [one.consent for one in LabelFile(file).labelled()] == [None, True]
    file.write_text(json.dumps(good) + "\n" + json.dumps(good | change))
    with pytest.raises(ConfigError, match="line 2"):
        list(LabelFile(file).labelled())


# --------------------------------------------------------------------------- what is written


def proposed(n: int, image: str, **changes: Any) -> Proposed:
    values = {"item_id": f"item{n}", "image": image, "prompt": f"p{n}", "source": "feedback"}
    return Proposed(**(values | {"unit": f"unit{n}", "request": f"r{n}"} | changes))


def test_a_proposal_keeps_its_images_and_leaves_out_what_it_should(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "ws")
    (workspace.images).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for n in range(3):
        pixels = rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((400, 300)).save(workspace.images / f"{n}.png")
    (tmp_path / "secret.png").write_bytes((workspace.images / "0.png").read_bytes())
    (workspace.images / "link.png").symlink_to(tmp_path / "secret.png")
    (workspace.images / "cut.png").write_bytes((workspace.images / "0.png").read_bytes()[:90])
    (workspace.run).mkdir()
    (workspace.run / "instance.key").write_text("secret")
    paths = [
        *(f"images/{n}.png" for n in range(3)),
        *("images/link.png", "images/cut.png", "images/gone.png", "../secret.png"),
        *(str(tmp_path / "secret.png"), "run/instance.key", "images", "\0"),
    ]
    choice = Choice(items=tuple(proposed(n, p) for n, p in enumerate(paths)), considered=20)
    made = proposals.make(workspace, "u1", choice, 5.0, 2**20)
    assert proposals.make(workspace, "u1", Choice(), 9.0, 2**20) == made  # the first one is it
    assert [i.item_id for i in made.items] == ["item0", "item1", "item2"]
    assert made.left_out == {"gone": 8}
    assert proposals.find(workspace, "u1") == made
    assert proposals.find(workspace, "../u1") is None
    for n in range(3):
        (workspace.images / f"{n}.png").unlink()  # retention
    items = proposals.items_of(
        workspace, made, Consents({"unit1": False}, required=False), {"item2"}
    )
    (item,) = items
    assert (item.texts, item.generated, item.origin) == (("p0",), True, "traffic/feedback")
    assert item.file.read_bytes() == (tmp_path / "secret.png").read_bytes()
    with Image.open(proposals.root(workspace) / "u1" / "thumbs" / "item0.png") as small:
        assert small.size == (256, 192)
    proposals.make(workspace, "u2", Choice(), 6.0, 2**20)
    assert [p.update_id for p in proposals.known(workspace)] == ["u1", "u2"]
    proposals.forget(workspace, {"u2"})
    assert [p.update_id for p in proposals.known(workspace)] == ["u2"]


def test_origin_survives_the_folder(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    Image.new("RGB", (8, 8), "red").save(tmp_path / "b.png")
    told = {"request": "r", "release": "rel", "finding": "f", "at": 5.0, "unit": "d1"}
    made = Item(
        file=tmp_path / "a.png",
        texts=("a",),
        origin="traffic/feedback",
        generated=True,
        provenance=told,
    )
    real = Item(file=tmp_path / "b.png", texts=("b",))
    write_folder([made, real], tmp_path / "out")
    back = read_folder(tmp_path / "out")
    assert [(i.generated, dict(i.provenance)) for i in back] == [(True, told), (False, {})]
    lines = (tmp_path / "out" / "metadata.jsonl").read_text().splitlines()
    assert set(json.loads(lines[1])) == {"file_name", "text", "topic", "origin", "consent"}


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("made", [0, 1, 7, 40])
@pytest.mark.parametrize("spare", [0, 5, 1000])
def test_generated_images_keep_to_their_share(share: float, made: int, spare: int) -> None:
    def item(name: str, generated: bool = False, consent: bool = True) -> Item:
        return Item(file=Path(name), texts=("t",), generated=generated, consent=consent)

    real = [item(f"r{n}") for n in range(10)]
    items = [*real, *(item(f"g{n}", True) for n in range(made)), item("no", True, False)]
    old = [*(item(f"o{n}") for n in range(spare)), item("og", True), item("on", consent=False)]
    mixed = bound_generated(items, old, share, np.random.default_rng(0))
    agreed = [i for i in mixed if i.consent]
    kept = sum(i.generated for i in agreed)
    assert kept <= share * len(agreed) + 1e-9
    assert set(real) <= set(mixed)
    assert len({i.file for i in mixed}) == len(mixed)
    if spare == 1000 and share:
        assert kept == made  # there was enough that is real to keep them all
    more = [i for i in mixed if i not in items]
    assert all(i in old and not i.generated and i.consent for i in more)
    if kept == made and more:  # and not more than that takes
        assert made > share * (len(agreed) - 1)


def test_configurations_that_could_learn_nothing_are_refused() -> None:
    with pytest.raises(ValidationError, match="nobody can give it"):
        Curation(enabled=True)
    Curation(enabled=True, consents="consents.jsonl")
    for gateway in ("{prompts: hash}", "{keep_images: 0}"):
        with pytest.raises(ConfigError, match="needs prompts and images"):
            config.parse(
                f"service: a\nserving: {{gateway: {gateway}}}\n"
                "monitoring: {signals: {}}\n"
                "data: {curation: {enabled: true, consent: assumed}}"
            )
