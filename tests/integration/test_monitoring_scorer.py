"""The scorer over real segment logs and image files, with an extractor that needs no torch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from tests.traffic import Traffic

from intonaco.clock import Clock, FakeClock
from intonaco.codec import as_json, decode, encode
from intonaco.config import Head, Scoring
from intonaco.errors import BackendError
from intonaco.monitoring.client import ScorerClient
from intonaco.monitoring.embed_server import EmbedServer
from intonaco.monitoring.scorer import NAME, Scorer
from intonaco.segment_log import SegmentReader, SegmentWriter
from intonaco.types import Record, ScoredRecord
from intonaco.workspace import Workspace

EXTRACTOR = textwrap.dedent(
    '''
    """Colours: the mean colour of an image, and the colour a text names."""
    import numpy as np

    COLOURS = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1)}

    class Colours:
        name = "colours"
        digest = "c" * 64
        texts_seen = 0

        def __init__(self, *_):
            pass

        def images(self, images):
            rows = np.array([np.asarray(i, float).reshape(-1, 3).mean(0) + 1e-6 for i in images])
            return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

        def texts(self, texts):
            self.texts_seen += len(texts)
            rows = [COLOURS.get(t.split()[-1], (1, 1, 1)) for t in texts]
            rows = np.array(rows, float)
            return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    '''
)
_made: dict[str, Any] = {}
exec(EXTRACTOR, _made)  # the same text is a module of its own for the process below


def extractor() -> Any:
    return _made["Colours"]()


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    made = Workspace(tmp_path)
    made.images.mkdir()
    for name, colour in (("red", (250, 0, 0)), ("blue", (0, 0, 250))):
        Image.new("RGB", (8, 8), colour).save(made.images / f"{name}.png")
    (made.images / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n not an image")
    return made


Make = Callable[..., Scorer]


@pytest.fixture
def make(workspace: Workspace) -> Iterator[Make]:
    """Scorers of the workspace, closed at the end. An earlier one is left as a kill leaves it."""
    made = []

    def scorer(
        *, clock: Clock | None = None, using: Any = None, scoring: Scoring | None = None
    ) -> Scorer:
        made.append(Scorer(workspace, using or extractor(), scoring=scoring, clock=clock))
        return made[-1]

    yield scorer
    for each in made:
        each.close()


def record(prompt: str, image: str | None, **changes: Any) -> Record:
    base = Traffic().ask().record
    return replace(base, prompt=prompt, image=image and f"images/{image}.png", **changes)


def write(workspace: Workspace, records: Sequence[Record], gateway: str = "gateway") -> list[str]:
    """Append to a new epoch of a gateway's log; the keys written."""
    log = SegmentWriter(workspace.records, gateway)
    keys = []
    for r in records:
        keyed = replace(r, gateway=gateway, gateway_epoch=log.epoch, seq=log.seq)
        keys.append(keyed.key)
        log.append(encode(keyed))
    log.close()
    return keys


def scored(workspace: Workspace) -> list[ScoredRecord]:
    return [decode(ScoredRecord, line) for line in SegmentReader(workspace.scores).read(10**6)]


def drain(scorer: Scorer) -> int:
    total = 0
    while n := scorer.step():
        total += n
    return total


def test_scores_what_was_made_and_passes_on_what_was_not(workspace: Workspace, make: Make) -> None:
    write(
        workspace,
        [
            record("a red", "red"),
            record("a blue", "red"),
            record("a red", None, served_by=None, status=500),
            record("a red", "broken"),
            record("a red", "deleted"),
            record("a red", "red", shadow_of="r1"),
            record("a red", "red", probe=True),
        ],
    )
    scorer = make(clock=FakeClock())
    assert drain(scorer) == 7
    out = scored(workspace)
    assert [i.scores.get("clip") for i in out] == [
        pytest.approx(1.0),
        pytest.approx(0.0, abs=1e-5),
        None,
        None,
        None,
        pytest.approx(1.0),
        None,
    ]
    assert out[0].prompt_embedding == (1.0, 0.0, 0.0)
    assert out[2].prompt_embedding == (1.0, 0.0, 0.0)
    assert {i.extractor for i in out} == {"c" * 64}
    assert (scorer.scored, scorer.broken_images) == (7, 2)
    assert scorer.extractor.texts_seen == 2  # type: ignore[attr-defined]  # the test's own
    beat = json.loads((workspace.run / "scorer-heartbeat.json").read_text())
    assert beat["lag_bytes"] == 0
    assert beat["at"] == FakeClock().at


def test_prompts_that_were_not_kept_give_no_data(workspace: Workspace, make: Make) -> None:
    """Neither a vector nor a score, though the image is there: a guess would pass for evidence."""
    write(
        workspace,
        [
            record("f" * 64, "red", prompt_form="hash"),
            record("a red", "red"),
            record("", "red", prompt_form="none"),
        ],
    )
    scorer = make()
    assert drain(scorer) == 3
    hashed, known, dropped = scored(workspace)
    assert (hashed.prompt_embedding, dict(hashed.scores)) == ((), {})
    assert (dropped.prompt_embedding, dict(dropped.scores)) == ((), {})
    assert known.scores["clip"] == pytest.approx(1.0)
    assert scorer.extractor.texts_seen == 1  # type: ignore[attr-defined]  # the test's own


def test_what_a_picture_shows_is_noted(workspace: Workspace, make: Make) -> None:
    write(
        workspace,
        [
            record("a red", "red"),
            record("f" * 64, "red", prompt_form="hash"),
            record("a red", "broken"),
            record("a red", "deleted"),
            record("a red", None),
            record("a red", "blue", task="edit", condition="images/red.png"),
            record("a red", "red", probe=True),
        ],
    )
    drain(make(scoring=Scoring(heads={"sharpness": Head(type="sharpness")})))
    red, hashed, broken, deleted, none, edit, probe = scored(workspace)
    assert red.image_embedding == hashed.image_embedding == (1.0, 0.0, 0.0)
    assert red.image_hash == hashed.image_hash == "0" * 16
    assert red.image_facts["contrast"] == 0.0
    assert dict(hashed.scores) == {"sharpness": 0.0}  # which needs no prompt
    assert set(red.scores) == {"clip", "sharpness"}
    assert len(red.heads) == 64
    kept = [i.image_broken for i in (red, hashed, broken, deleted, none, edit, probe)]
    assert kept == [False, False, True, None, None, False, None]
    for nothing in (broken, deleted, none, probe):
        assert (nothing.image_embedding, nothing.image_hash) == ((), "")
        assert (dict(nothing.scores), dict(nothing.image_facts)) == ({}, {})
    assert edit.image_embedding == (0.0, 0.0, 1.0)
    assert edit.condition_embedding == (1.0, 0.0, 0.0)
    assert red.condition_embedding == ()


def test_a_share_of_pictures_is_looked_at_the_same_after_a_restart(
    workspace: Workspace, make: Make
) -> None:
    records = [record("a red", "red", request_id=f"q{n}") for n in range(300)]
    records += [record("a red", "red", request_id=f"s{n}", shadow_of=f"q{n}") for n in range(300)]
    write(workspace, records)
    scoring = Scoring(sample=0.25, images=False)
    make(scoring=scoring).step()
    drain(make(scoring=scoring))
    looked = {i.record.request_id for i in scored(workspace) if i.image_hash}
    users = {q for q in looked if q[0] == "q"}
    assert len(users) == pytest.approx(75, abs=25)
    assert {q[1:] for q in users} == {q[1:] for q in looked - users}  # pairs are whole
    assert all(i.prompt_embedding for i in scored(workspace))
    assert not any(i.image_embedding for i in scored(workspace))
    assert all(bool(i.scores) == bool(i.image_hash) for i in scored(workspace))


def test_scored_records_of_before_are_read() -> None:
    old = as_json(Traffic().ask())
    for name in (
        *("image_embedding", "condition_embedding", "image_hash", "image_facts", "image_broken"),
        "heads",
    ):
        del old[name]
    del old["record"]["condition"]
    item = decode(ScoredRecord, json.dumps(old))
    assert item == Traffic().ask()


def test_a_line_that_is_no_record_is_skipped_and_counted(workspace: Workspace, make: Make) -> None:
    log = SegmentWriter(workspace.records, "gateway")
    log.append('{"nonsense": 1}')
    log.append(encode(record("a red", "red")))
    log.close()
    scorer = make()
    drain(scorer)
    assert scorer.broken_lines == 1
    assert len(scored(workspace)) == 1


def test_a_cut_line_is_neither_read_nor_counted_as_lag(workspace: Workspace, make: Make) -> None:
    write(workspace, [record("a red", "red")])
    file = next(workspace.records.glob("*/*.jsonl"))
    with file.open("ab") as out:
        out.write(b'{"gateway": "cut off')
    scorer = make()
    assert drain(scorer) == 1
    assert scorer.lag_bytes == 0


def test_restart_goes_on_where_it_was(workspace: Workspace, make: Make) -> None:
    keys = write(workspace, [record("a red", "red")] * 100)
    first = make()
    first.step()
    assert first.lag_bytes > 0
    drain(make())
    keys += write(workspace, [record("a blue", "blue")] * 10)
    drain(make())
    assert [i.record.key for i in scored(workspace)] == keys


class Killed(BaseException):
    """Stands for the end of the process: nothing after it runs."""


@pytest.mark.parametrize("after", [0, 1, 5, 63, 64])
def test_killed_between_writing_and_committing_loses_and_doubles_nothing(
    workspace: Workspace, make: Make, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """Killed after ``after`` lines of a batch, or after the whole batch and before the commit;
    then again; meanwhile another gateway, read before the first, has written."""
    keys = set(write(workspace, [record("a red", "red")] * 100, gateway="m"))

    class Writer(SegmentWriter):
        """Not slotted, so that its methods can be replaced."""

    monkeypatch.setattr("intonaco.monitoring.scorer.SegmentWriter", Writer)

    def killed_after(lines: int) -> Scorer:
        scorer = make()
        real, left = scorer._writer.append, [lines]

        def append(line: str) -> int:
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            return real(line)

        def commit() -> None:
            raise Killed

        monkeypatch.setattr(scorer._writer, "append", append)
        monkeypatch.setattr(scorer, "_commit", commit)
        return scorer

    with pytest.raises(Killed):
        killed_after(after).step()
    keys |= set(write(workspace, [record("a blue", "blue")] * 70, gateway="a"))
    with pytest.raises(Killed):
        killed_after(3).step()
    # this one commits a batch of gateway "a" while keys of "m" are written ahead, then is gone
    make().step()
    drain(make())
    out = [i.record.key for i in scored(workspace)]
    assert len(out) == 170
    assert set(out) == keys


@pytest.fixture
def server(workspace: Workspace, make: Make) -> Iterator[str]:
    scorer = make()
    with EmbedServer(scorer.embed, workspace.admin_token()) as running:
        workspace.announce(NAME, url=running.url, digest=scorer.extractor.digest)
        yield running.url


def test_client_embeds_texts(workspace: Workspace, server: str) -> None:
    texts = ["a red", "a blue", "what"] * 150
    rows = ScorerClient(workspace).embed(texts)
    assert rows.shape == (450, 3)
    assert np.allclose(np.linalg.norm(rows, axis=1), 1)
    assert rows[1].tolist() == [0.0, 0.0, 1.0]


def test_endpoint_wants_the_token_and_a_sane_body(workspace: Workspace, server: str) -> None:
    good = {"authorization": f"Bearer {workspace.admin_token()}"}
    with httpx.Client(base_url=server, trust_env=False) as client:
        assert client.post("/embed", json={"texts": ["a"]}).status_code == 401
        wrong = {"authorization": "Bearer x"}
        assert client.post("/embed", json={"texts": ["a"]}, headers=wrong).status_code == 401
        bodies: list[Any] = [
            {"texts": []},
            {"texts": "a"},
            {"texts": [1]},
            {},
            {"texts": ["a"] * 257},
        ]
        for body in bodies:
            assert client.post("/embed", json=body, headers=good).status_code == 400
        assert client.post("/embed", content=b"{", headers=good).status_code == 400
        assert client.post("/other", json={"texts": ["a"]}, headers=good).status_code == 404
        assert client.post("/embed", json={"texts": ["a"]}, headers=good).status_code == 200


def test_client_without_a_scorer_says_so(workspace: Workspace) -> None:
    with pytest.raises(BackendError, match="does not run") as caught:
        ScorerClient(workspace).embed(["a"])
    assert caught.value.retriable


def test_failing_extractor_is_the_clients_error_not_the_servers_end(
    workspace: Workspace, make: Make
) -> None:
    class Failing:
        name, digest = "failing", "d" * 64

        def images(self, images: Sequence[Any]) -> NDArray[Any]:
            raise RuntimeError

        def texts(self, texts: Sequence[str]) -> NDArray[Any]:
            raise RuntimeError("out of memory")

    with EmbedServer(make(using=Failing()).embed, workspace.admin_token()) as running:
        workspace.announce(NAME, url=running.url)
        for _ in range(2):
            with pytest.raises(BackendError, match="500"):
                ScorerClient(workspace).embed(["a"])


COMMAND = (sys.executable, "-m", "intonaco.monitoring.scorer", "--workspace")


def start(workspace: Workspace) -> subprocess.Popen[bytes]:
    """The real process, its extractor from a module in the workspace."""
    environment = {**os.environ, "PYTHONPATH": str(workspace.root), "OMP_NUM_THREADS": "1"}
    with (workspace.root / "scorer.log").open("ab") as log:
        process = subprocess.Popen(
            [*COMMAND, str(workspace.root)], env=environment, stdout=log, stderr=log
        )
    deadline = time.monotonic() + 120
    while (info := workspace.process(NAME)) is None or info.pid != process.pid:
        assert process.poll() is None, (workspace.root / "scorer.log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process


def test_the_process_survives_kill_9_without_loss_or_doubling(workspace: Workspace) -> None:
    (workspace.root / "colours.py").write_text(EXTRACTOR)
    workspace.config_file.write_text(
        "service: colours\nextractor: {type: 'colours:Colours', path: extractor}\n"
    )
    keys = write(workspace, [record("a red", "red")] * 500)
    process = start(workspace)
    try:
        second = subprocess.run([*COMMAND, str(workspace.root)], capture_output=True, check=False)
        assert second.returncode == 2
        assert b"runs already" in second.stderr
        _wait(lambda: len(scored(workspace)) >= 64)
    finally:
        process.kill()
        process.wait()
    keys += write(workspace, [record("a blue", "blue")] * 50)
    process = start(workspace)
    try:
        _wait(lambda: len(scored(workspace)) >= 550)
        assert ScorerClient(workspace).embed(["a blue"]).tolist() == [[0.0, 0.0, 1.0]]
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    out = [i.record.key for i in scored(workspace)]
    assert sorted(out) == sorted(keys)
    assert workspace.process(NAME) is None


def _wait(done: Any) -> None:
    deadline = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.05)
