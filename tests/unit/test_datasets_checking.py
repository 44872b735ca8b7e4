"""A check as the configuration asks for it: what is kept, what the command says, how it ends."""

import base64
import io
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.unit.test_datasets_checks import bytes_of, folder_of, picture
from typer.testing import CliRunner

from intonaco import config
from intonaco.app import check as check_config
from intonaco.cli.main import app
from intonaco.clock import FakeClock
from intonaco.datasets import checking
from intonaco.datasets.store import LocalDatasetStore
from intonaco.datasets.tokens import tokens_of
from intonaco.datasets.validation import validate
from intonaco.errors import ConfigError, NotFound
from intonaco.types import DatasetVersion
from intonaco.workspace import Workspace

CONFIG = """
service: svc
model: {generation: {width: 64, height: 96}}
data:
  reference: reference
  checks: {near_duplicate: drop, leak: drop, caption_long: fail}
  bounds: {caption_chars: 30}
evaluation: {prompts: prompts.jsonl}
registry: {type: none}
tracker: {type: none}
"""


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    (tmp_path / "intonaco.yaml").write_text(CONFIG)
    prompt = {"prompt_id": "1", "prompt": "A cat", "slice": "cats"}
    (tmp_path / "prompts.jsonl").write_text(json.dumps(prompt))
    folder_of(tmp_path / "reference", {"held.png": bytes_of(picture(1), "PNG")})
    return Workspace(tmp_path)


def data(root: Path, *, long: bool = False) -> Path:
    files = {
        "held.png": bytes_of(picture(1), "PNG"),
        "held-again.jpg": bytes_of(picture(1).resize((60, 50)), "JPEG"),
        "own.png": bytes_of(picture(2), "PNG"),
        "<b>own.png": bytes_of(picture(2).resize((60, 50)), "PNG"),
        "small.png": bytes_of(picture(3, (15, 40)), "PNG"),
        "other.png": bytes_of(picture(4), "PNG"),
    }
    captions = {"small.png": "a  CAT", "other.png": "word " * (9 if long else 1)}
    return folder_of(root, files, captions)


def rules(workspace: Workspace) -> Any:
    return checking.rules_of(config.load(workspace.config_file), workspace)


class Closed(HTMLParser):
    """What a page asks for from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.pictures: list[bytes] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "iframe", "b") or (tag == "b" and not attrs)
        for name, value in attrs:
            if name in ("src", "href"):
                head, _, body = str(value).partition(",")
                assert head == "data:image/png;base64"
                self.pictures.append(base64.b64decode(body))


def test_the_report_says_what_was_found_and_needs_no_other_file(workspace: Workspace) -> None:
    given = rules(workspace)
    assert (given.min_side, given.unit, given.most) == (16, "characters", 30)
    report = validate(data(workspace.root / "data"), given)
    target = workspace.root / "out" / "report"
    for _ in range(2):  # a second one replaces the first
        checking.keep(report, given, target, 7.0)
    told = json.loads((target / "report.json").read_text())
    assert (told["verdict"], told["items"], told["kept"], told["at"]) == ("pass", 6, 4, 7.0)
    assert (told["left_out"], told["left_out_count"]) == (["<b>own.png", "held.png"], 2)
    assert {k: (v["policy"], v["count"], v["names"]) for k, v in told["kinds"].items()} == {
        "leak": ("drop", 1, ["held.png"]),
        "small": ("warn", 1, ["small.png"]),
        "near_duplicate": ("drop", 1, ["<b>own.png"]),
        "near_leak": ("warn", 1, ["held-again.jpg"]),
        "prompt_leak": ("warn", 1, ["small.png"]),
    }
    assert told["held_out"] == {"images": 1, "prompts": 1}
    lines = [json.loads(line) for line in (target / "problems.jsonl").read_text().splitlines()]
    assert len(lines) == 5
    assert {"file": "held.png", "kind": "leak", "policy": "drop"}.items() <= lines[0].items()
    page = (target / "report.html").read_text()
    parser = Closed()
    parser.feed(page)
    assert len(parser.pictures) == 6  # three pairs
    for raw in parser.pictures:
        with Image.open(io.BytesIO(raw)) as image:
            assert max(image.size) <= 128
    assert "<b>own" not in page
    assert "&lt;b&gt;own.png" in page


def test_names_are_bounded_and_all_are_in_the_file(workspace: Workspace) -> None:
    files = {f"{n:03d}.png": b"no image" for n in range(90)}
    report = validate(folder_of(workspace.root / "data", files), rules(workspace))
    checking.keep(report, rules(workspace), workspace.root / "out", 0.0)
    told = json.loads((workspace.root / "out" / "report.json").read_text())
    assert told["verdict"] == "fail"
    assert told["kinds"]["unreadable"]["count"] == 90
    assert len(told["kinds"]["unreadable"]["names"]) == 20
    assert len((workspace.root / "out" / "problems.jsonl").read_text().splitlines()) == 90
    assert "and 70 more" in (workspace.root / "out" / "report.html").read_text()
    with pytest.raises(ConfigError, match="no usable items"):
        checking.clean_copy(report, workspace.root / "clean")


def test_the_clean_copy_is_what_stays(workspace: Workspace) -> None:
    folder = data(workspace.root / "data")
    report = validate(folder, rules(workspace))
    clean = checking.clean_copy(report, workspace.root / "clean")
    names = {"held-again.jpg", "own.png", "small.png", "other.png"}
    assert {p.name for p in clean.iterdir()} == {*names, "metadata.jsonl"}
    again = validate(clean, rules(workspace))
    assert (again.problems, len(again.entries)) == ((), 4)


def run(*words: str) -> Any:
    return CliRunner().invoke(app, ["dataset", "check", *words])


def test_the_command_ends_as_the_verdict_is(workspace: Workspace) -> None:
    root = str(workspace.root)
    folder = data(workspace.root / "data")
    done = run(str(folder), "-w", root, "--json", "--report", str(workspace.root / "out"))
    assert done.exit_code == 0
    assert json.loads(done.stdout)["kept"] == 4
    assert (workspace.root / "out" / "report.html").is_file()
    done = run(str(data(workspace.root / "bad", long=True)), "-w", root)
    assert done.exit_code == 1
    assert re.search(r"caption_long +fail +1 +other\.png", done.stdout)
    assert "fail: 3 of 6 items stay, 3 files are left out" in done.stdout
    assert isinstance(run("nothing", "-w", root).exception, NotFound)


def test_the_command_takes_a_version_too(workspace: Workspace) -> None:
    folder = folder_of(workspace.root / "data", {"a.png": bytes_of(picture(5), "PNG")})
    root = str(workspace.root)
    added = CliRunner().invoke(app, ["dataset", "add", str(folder), "-w", root, "--json"])
    version = json.loads(added.stdout)["version"]
    done = run(version[:8], "-w", root, "--json")
    assert (done.exit_code, json.loads(done.stdout)["kept"]) == (0, 1)


def test_adding_leaves_out_what_is_held_out(workspace: Workspace) -> None:
    root = str(workspace.root)
    folder = data(workspace.root / "data")
    done = CliRunner().invoke(app, ["dataset", "add", str(folder), "-w", root, "--json"])
    assert done.exception is None
    version = json.loads(done.stdout)
    assert version["items"] == 4
    kept = checking.kept(workspace, version["version"])
    assert json.loads((kept / "report.json").read_text())["left_out_count"] == 2
    assert (kept / "report.html").is_file()


def test_without_its_reference_folder_nothing_is_said_to_be_held_out(tmp_path: Path) -> None:
    parsed = config.parse("service: a\ndata: {reference: gone}\n")
    with pytest.raises(ConfigError, match=r"data\.reference"):
        checking.rules_of(parsed, Workspace(tmp_path))
    prompts = "service: a\nevaluation: {prompts: gone.jsonl}\n"
    assert not checking.rules_of(config.parse(prompts), Workspace(tmp_path)).held_out.prompts
    strict = config.parse(prompts + "data: {checks: {prompt_leak: drop}}\n")
    with pytest.raises(ConfigError, match=r"gone\.jsonl"):
        checking.rules_of(strict, Workspace(tmp_path))


# ------------------------------------------------------------------------------------- tokens

TEXTS = (
    "a handwritten zero",
    "A  photo\tof 12 cats, isn't it?!",
    "Ünïcödé – 猫が好き 🐈 “quotes”",
    "x" * 300,
    "",
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from intonaco.demo.data import WORDS
    from intonaco.demo.model import build_tokenizer

    return build_tokenizer(WORDS)


def test_captions_are_counted_as_the_pipeline_reads_them(tmp_path: Path, tokenizer: Any) -> None:
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    tokens = tokens_of(tmp_path)
    assert tokens is not None
    assert tokens.most == tokenizer.model_max_length
    for text in TEXTS:
        assert tokens.count(text) == len(tokenizer(text, truncation=False)["input_ids"]), text


def test_clips_own_files_are_read_alike(tmp_path: Path, tokenizer: Any) -> None:
    """Folders from before there was a tokenizer.json."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps(backend["vocab"]))
    merges = (m if isinstance(m, str) else " ".join(m) for m in backend["merges"])
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges))
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 77}')
    tokens = tokens_of(tmp_path)
    assert tokens is not None
    for text in TEXTS:
        assert tokens.count(text) == len(tokenizer(text, truncation=False)["input_ids"]), text


def test_the_longest_of_several_tokenizers_counts(tmp_path: Path, tokenizer: Any) -> None:
    for name, most in (("tokenizer", 77), ("tokenizer_2", 256), ("tokenizer_3", 10**30)):
        tokenizer.save_pretrained(tmp_path / name)
        file = tmp_path / name / "tokenizer_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"model_max_length": most}))
    tokens = tokens_of(tmp_path)
    assert tokens is not None
    assert tokens.most == 256


def test_no_tokenizer_is_no_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tokens_of(tmp_path) is None
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer_config.json").write_text('{"model_max_length": 77}')
    assert tokens_of(tmp_path) is None
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("[]")
    assert tokens_of(tmp_path) is None
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert tokens_of(tmp_path) is None


def test_the_models_tokenizer_judges_captions(workspace: Workspace, tokenizer: Any) -> None:
    tokenizer.save_pretrained(workspace.root / "model" / "tokenizer")
    parsed = config.load(workspace.config_file)
    given = checking.rules_of(parsed, workspace, workspace.root / "model")
    assert (given.unit, given.most) == ("tokens", tokenizer.model_max_length)
    folder = folder_of(
        workspace.root / "data",
        {"a.png": bytes_of(picture(5), "PNG"), "b.png": bytes_of(picture(6), "PNG")},
        {"a.png": "zero one two three four five six", "b.png": "qwertyuiopasdf"},
    )
    (problem,) = validate(folder, given).problems
    assert (problem.file, problem.kind) == ("b.png", "caption_long")
    count = len(tokenizer("qwertyuiopasdf")["input_ids"])
    assert f"{count} tokens, more than 12" in problem.detail


def test_a_stores_check_keeps_its_report_only_for_a_version(workspace: Workspace) -> None:
    checks = checking.kept(workspace, "")
    refused = checking.Check(rules(workspace), workspace, 0.0)
    with pytest.raises(ConfigError, match=r"other\.png"):
        refused(data(workspace.root / "bad", long=True))
    assert not checks.exists()
    given_up = checking.Check(rules(workspace), workspace, 0.0)
    assert len(given_up(data(workspace.root / "data")).problems) == 2
    assert not checks.exists()  # a killed add leaves nothing of it
    checking.Check(rules(workspace), workspace, 0.0).keep("v0")  # the store knew that version
    assert not checks.exists()
    for at in (1.0, 2.0):  # a second one of the same version replaces the first
        check = checking.Check(rules(workspace), workspace, at)
        check(data(workspace.root / "data"))
        check.keep("v1")
    assert [p.name for p in checks.iterdir()] == ["v1"]
    assert json.loads((checks / "v1" / "report.json").read_text())["at"] == 2.0


def test_what_stays_is_laid_out_where_the_next_process_clears_up(workspace: Workspace) -> None:
    """A killed update leaves no folder in the workspace."""
    store = LocalDatasetStore(workspace.datasets, FakeClock())
    places = []

    def put(folder: Path) -> DatasetVersion:
        places.append(folder.parent.parent)
        assert {p.name for p in workspace.root.iterdir()} == before | {"datasets"}
        return store.put(folder, name="x")

    folder = data(workspace.root / "data")
    before = {p.name for p in workspace.root.iterdir()}
    version, _ = checking.put(put, folder, rules(workspace), workspace, 0.0)
    assert (places, version.items) == ([workspace.datasets / "incoming"], 4)


def test_files_that_curation_reads_must_be_there(workspace: Workspace) -> None:
    (workspace.root / "consents.jsonl").write_text("")
    told = {"enabled": True, "consents": "consents.jsonl", "labels": "labels.jsonl"}
    text = CONFIG.replace("data:\n", f"data:\n  curation: {json.dumps(told)}\n")
    problems = check_config(config.parse(text), workspace)
    (problem,) = [p for p in problems if p.startswith("data.curation")]
    assert problem.startswith("data.curation.labels: ")
