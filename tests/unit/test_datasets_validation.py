import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from intonaco.datasets.validation import validate
from intonaco.errors import ConfigError


class Folder:
    """An image folder with one good item, to which a test adds bad ones."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir()
        self.rng = np.random.default_rng(0)
        self.lines: list[str] = []
        self.image("good.png")
        self.entry("good.png")

    def image(self, name: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(self.rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(path)
        return path

    def entry(self, name: str, text: Any = "a text", **more: Any) -> None:
        self.line(json.dumps({"file_name": name, "text": text, **more}))

    def line(self, text: str) -> None:
        self.lines.append(text)
        (self.root / "metadata.jsonl").write_text("\n".join(self.lines))


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "data")


def kinds(folder: Folder) -> list[tuple[str, str]]:
    report = validate(folder.root)
    assert "good.png" in [entry["file_name"] for entry in report.entries]
    return [(problem.file, problem.kind) for problem in report.problems]


def test_a_good_folder_has_no_problems(folder: Folder) -> None:
    folder.image("sub/b.webp")
    folder.entry("sub/b.webp", ["one", "two"], consent=False)
    report = validate(folder.root)
    assert report.problems == ()
    assert [entry["file_name"] for entry in report.entries] == ["good.png", "sub/b.webp"]
    report.raise_if_invalid()


@pytest.mark.parametrize("ending", [".png", ".jpg", ".webp"])
def test_truncated_images(folder: Folder, ending: str) -> None:
    path = folder.image(f"cut{ending}")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    folder.entry(f"cut{ending}")
    assert kinds(folder) == [(f"cut{ending}", "unreadable")]


@pytest.mark.parametrize("raw", [b"", b"hello", b"\x89PNG\r\n\x1a\n"])
def test_no_images(folder: Folder, raw: bytes) -> None:
    (folder.root / "x.png").write_bytes(raw)
    folder.entry("x.png")
    assert kinds(folder) == [("x.png", "unreadable")]


def test_missing_file(folder: Folder) -> None:
    folder.entry("gone.png")
    assert kinds(folder) == [("gone.png", "missing")]


@pytest.mark.parametrize("text", ["", "  ", [], ["fine", ""], None, 3, [None], {"a": 1}])
def test_empty_captions(folder: Folder, text: Any) -> None:
    folder.image("x.png")
    folder.entry("x.png", text)
    assert kinds(folder) == [("x.png", "caption")]


def test_forbidden_files(folder: Folder, tmp_path: Path) -> None:
    (folder.root / "weights.pkl").write_bytes(pickle.dumps({"a": 1}))
    (folder.root / "listed.pt").write_bytes(b"x")
    folder.entry("listed.pt")
    (folder.root / ".DS_Store").write_bytes(b"x")
    outside = tmp_path / "secret.png"
    outside.write_bytes((folder.root / "good.png").read_bytes())
    (folder.root / "link.png").symlink_to(outside)
    folder.entry("link.png")
    assert sorted(kinds(folder)) == [
        ("link.png", "forbidden"),
        ("listed.pt", "forbidden"),
        ("weights.pkl", "forbidden"),
    ]


@pytest.mark.parametrize("name", ["../secret.png", "/etc/x.png", "sub/../../x.png", "./good.png"])
def test_paths_out_of_the_folder(folder: Folder, name: str) -> None:
    folder.entry(name)
    assert kinds(folder) == [(name, "outside")]


@pytest.mark.parametrize("name", [".git/a.png", "sub/.dvc/a.png"])
def test_what_is_never_looked_through_cannot_be_an_item(folder: Folder, name: str) -> None:
    folder.image(name)
    folder.entry(name)
    assert kinds(folder) == [(name, "forbidden")]


def test_exact_duplicates_keep_the_first(folder: Folder) -> None:
    (folder.root / "again.png").write_bytes((folder.root / "good.png").read_bytes())
    folder.entry("again.png")
    assert kinds(folder) == [("again.png", "duplicate")]
    assert "good.png" in validate(folder.root).problems[0].detail


def test_repeated_and_unlisted_images(folder: Folder) -> None:
    folder.entry("good.png", "another text")
    folder.image("unlisted.png")
    assert kinds(folder) == [("good.png", "repeated"), ("unlisted.png", "unlisted")]


TWICE = '{"file_name": "good.png", "text": "x", "consent": false, "consent": true}'


@pytest.mark.parametrize("line", ["{not json", "[]", '{"text": "x"}', '{"file_name": 3}', TWICE])
def test_bad_lines_are_named(folder: Folder, line: str) -> None:
    folder.line(line)
    assert kinds(folder) == [("metadata.jsonl", "metadata")]
    assert "line 2" in validate(folder.root).problems[0].detail


def test_no_metadata(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"metadata\.jsonl"):
        validate(tmp_path)


def test_the_error_names_the_first_file_and_how_many_more(folder: Folder) -> None:
    for name in ("a.png", "b.png", "c.png"):
        folder.entry(name)
    report = validate(folder.root)
    assert report.counts == {"missing": 3}
    with pytest.raises(ConfigError, match=r"a\.png.*\(and 2 more\)") as error:
        report.raise_if_invalid()
    assert error.value.hint is not None
    assert "3 missing" in error.value.hint
