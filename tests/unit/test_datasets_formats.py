"""Every form that a data set may come in gives the items that are in it, or says what is wrong."""

from __future__ import annotations

import csv
import io
import json
import tarfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from intonaco.clock import FakeClock
from intonaco.datasets.curation import read_folder
from intonaco.datasets.formats import Columns, recognise
from intonaco.datasets.identity import dvc_id, hash_bytes, hash_file
from intonaco.datasets.store import LocalDatasetStore
from intonaco.datasets.validation import Report, validate
from intonaco.errors import ConfigError
from intonaco.training.items import read_captioned

Given = Mapping[str, tuple[bytes, Mapping[str, Any]]]


def image(n: int, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (n % 256, n // 256, 7)).save(stream, kind)
    return stream.getvalue()


ITEMS: Given = {
    "a.png": (image(1), {"text": "a cat", "topic": "cats", "consent": True, "origin": "shop"}),
    "b.png": (image(2), {"text": "a dog, wet", "topic": "dogs", "consent": False}),
    "c.png": (image(3), {"text": 'the "third"', "topic": "cats", "consent": True}),
}


def write_folder(folder: Path, items: Given = ITEMS, *, text: str = "text") -> Path:
    folder.mkdir(parents=True)
    lines = []
    for name, (raw, entry) in items.items():
        (folder / name).write_bytes(raw)
        rest = {k: v for k, v in entry.items() if k != "text"}
        lines.append(json.dumps({"file_name": name, text: entry["text"], **rest}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def write_table(folder: Path, items: Given = ITEMS, *, text: str = "text") -> Path:
    folder.mkdir(parents=True)
    with (folder / "metadata.csv").open("w", newline="") as stream:
        rows = csv.DictWriter(stream, ["file_name", text, "topic", "consent", "origin"])
        rows.writeheader()
        for name, (raw, entry) in items.items():
            (folder / name).write_bytes(raw)
            rest = {k: v for k, v in entry.items() if k != "text"}
            rows.writerow({"file_name": name, text: entry["text"], **rest})
    return folder


def write_shard(shard: Path, files: list[tuple[str, bytes]]) -> Path:
    shard.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(shard, "w:gz" if shard.suffix == ".gz" else "w") as archive:
        for name, raw in files:
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            archive.addfile(info, io.BytesIO(raw))
    return shard


def shard_files(items: Given, *, txt: bool) -> list[tuple[str, bytes]]:
    files = []
    for name, (raw, entry) in items.items():
        key = name.partition(".")[0]
        rest = {k: v for k, v in entry.items() if k != "text" or not txt}
        files += [(name, raw), (f"{key}.json", json.dumps(rest).encode())]
        if txt:
            files.append((f"{key}.txt", f"{entry['text']}\n".encode()))
    return files


@pytest.fixture
def store(tmp_path: Path) -> LocalDatasetStore:
    return LocalDatasetStore(tmp_path / "store", FakeClock(time.time() + 60))


def items_of(store: LocalDatasetStore, source: Path, **columns: str) -> dict[str, Any]:
    """By the bytes of the image: captions, topic, origin, consent."""
    version = store.put(source, name="x", columns=Columns(**columns))
    return {
        item.file.name: (item.file.read_bytes(), item.texts, item.topic, item.origin, item.consent)
        for item in read_folder(store.open(version.version))
    }


EXPECTED = {
    "a.png": (image(1), ("a cat",), "cats", "shop", True),
    "b.png": (image(2), ("a dog, wet",), "dogs", "", False),
    "c.png": (image(3), ('the "third"',), "cats", "", True),
}


@pytest.mark.parametrize("text", ["text", "caption", "prompt"])
def test_every_form_gives_the_same_items(
    text: str, store: LocalDatasetStore, tmp_path: Path
) -> None:
    renamed = {
        name: (raw, {text if k == "text" else k: v for k, v in entry.items()})
        for name, (raw, entry) in ITEMS.items()
    }
    sources = [
        write_folder(tmp_path / "folder", text=text),
        write_table(tmp_path / "table", text=text),
        write_shard(tmp_path / "txt.tar", shard_files(ITEMS, txt=True)),
        write_shard(tmp_path / "json.tar.gz", shard_files(renamed, txt=False)),
    ]
    for source in sources:
        assert items_of(store, source) == EXPECTED
    for version in store.list():
        assert version.topics == {"cats": 2, "dogs": 1}
        assert version.dvc_md5 == dvc_id(store.files(version.version))


def test_a_column_can_be_named(store: LocalDatasetStore, tmp_path: Path) -> None:
    source = write_table(tmp_path / "t", text="alt_text")
    with pytest.raises(ConfigError, match="no column of captions"):
        store.put(source, name="x")
    assert items_of(store, source, text="alt_text") == EXPECTED
    with pytest.raises(ConfigError, match="no column nothing"):
        store.put(source, name="x", columns=Columns(text="nothing"))
    both = write_folder(tmp_path / "f", text="long")
    lines = [json.loads(line) for line in (both / "metadata.jsonl").read_text().splitlines()]
    (both / "metadata.jsonl").write_text(
        "".join(f"{json.dumps(o | {'text': 'no'})}\n" for o in lines)
    )
    assert items_of(store, both, text="long") == EXPECTED


def test_what_it_was_made_from_is_known_by_its_dvc_id(
    store: LocalDatasetStore, tmp_path: Path
) -> None:
    folder, table = write_folder(tmp_path / "f"), write_table(tmp_path / "t")
    shards = tmp_path / "s"
    write_shard(shards / "0.tar", shard_files(ITEMS, txt=True))
    (shards / "0_stats.json").write_text("{}")
    (shards / "._0.tar").write_bytes(b"\0\5\x16\7")  # what macOS leaves beside a file
    assert store.put(folder, name="x").source_ids == ()  # the version's own
    for source in (table, shards):
        files = [hash_file(p, p.name) for p in source.iterdir()]
        assert store.put(source, name="x").source_ids[-1] == dvc_id(files)
    alone = shards / "0.tar"
    ids = store.put(alone, name="x").source_ids
    assert ids[-1] == hash_bytes("", alone.read_bytes()).md5  # DVC names a file by its md5
    assert len(ids) == 3  # and the table and the folder of shards, which gave the same
    (table / "link").symlink_to(table / "a.png")  # DVC would see the file behind it
    with pytest.raises(ConfigError, match=r"/link: "):  # nor may it be in a dataset
        store.put(table, name="x")


def test_shards_that_did_not_change_are_not_unpacked_again(
    store: LocalDatasetStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = tmp_path / "s"
    write_shard(shards / "0.tar", shard_files(ITEMS, txt=True))
    first = store.put(shards, name="x")
    with monkeypatch.context() as patch:
        patch.setattr("intonaco.datasets.layout.samples", None)
        assert store.put(shards, name="x") == first
    more = {"d.png": (image(4), {"text": "fourth"})}
    write_shard(shards / "1.tar", shard_files(more, txt=True))
    second = store.put(shards, name="x")
    assert store.diff_items(first.version, second.version).added == ("d.png",)


def test_samples_of_the_same_name_get_a_number(store: LocalDatasetStore, tmp_path: Path) -> None:
    for n in range(3):
        files = [("x/0.png", image(n)), ("x/0.txt", b"one")]
        write_shard(tmp_path / "s" / f"{n}.tar", files)
    version = store.put(tmp_path / "s", name="x")
    names = {f.path for f in store.files(version.version)}
    assert names == {"metadata.jsonl", "x/0.png", "x/0-2.png", "x/0-3.png"}


def test_a_json_that_is_a_caption_and_one_that_is_none(
    store: LocalDatasetStore, tmp_path: Path
) -> None:
    files = [("0.png", image(0)), ("0.json", b'"just this"'), ("notes.txt", b"no image: passed")]
    assert [v[1] for v in items_of(store, write_shard(tmp_path / "a.tar", files)).values()] == [
        ("just this",)
    ]
    bare = write_shard(tmp_path / "b.tar", [("0.png", image(0)), ("0.json", b'{"width": 8}')])
    with pytest.raises(ConfigError, match="no caption"):
        store.put(bare, name="x")


def cut(shard: Path, size: int) -> Path:
    shard.write_bytes(shard.read_bytes()[:size])
    return shard


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ([("../../0.png", image(0)), ("../../0.txt", b"x")], "not a plain path"),
        ([("/0.png", image(0)), ("/0.txt", b"x")], "not a plain path"),
        ([("é" * 128 + ".png", image(0))], "longer than a file's name may be"),
        ([("0.png", image(0)), ("0.jpg", image(0, "JPEG")), ("0.txt", b"x")], "several images"),
        ([("0.png", image(0)), ("1.txt", b"x"), ("0.txt", b"x")], "do not lie together"),
        ([("0.png", image(0)), ("0.png", image(1))], "there twice"),
        ([("0.png", image(0)), ("0.json", b"{")], "sample 0"),
        ([("0.png", image(0)), ("0.txt", b"\xff")], "sample 0"),
        ([("0.png", b"none"), ("0.txt", b"x")], "cannot be read as an image"),
        ([("0.gif", image(0))], "no usable items"),
    ],
)
def test_bad_shards_are_refused(
    files: list[tuple[str, bytes]], complaint: str, store: LocalDatasetStore, tmp_path: Path
) -> None:
    shard = write_shard(tmp_path / "in" / "bad.tar", files)
    with pytest.raises(ConfigError, match=complaint) as error:
        store.put(shard, name="x")
    assert "bad.tar" in str(error.value)
    assert not store.list()
    assert not list((store.root / "incoming").iterdir())
    assert {p.name for p in tmp_path.iterdir()} == {"in", "store"}  # nothing written elsewhere


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz"])
def test_a_shard_that_was_cut_off_is_refused_wherever_the_cut_is(
    name: str, store: LocalDatasetStore, tmp_path: Path
) -> None:
    files = [
        (f"{i}.{e}", image(i) if e == "png" else b"t") for i in range(2) for e in ("png", "txt")
    ]
    whole = write_shard(tmp_path / name, files).read_bytes()
    step = 512 if name == "x.tar" else 40
    ends = [n for n in range(0, len(whole), step) if n < (2048 * 2 if step == 512 else 10**6)]
    for end in ends:
        (tmp_path / name).write_bytes(whole[:end])
        with pytest.raises(ConfigError, match="cannot be read"):
            store.put(tmp_path / name, name="x")


def test_links_in_shards_are_refused(store: LocalDatasetStore, tmp_path: Path) -> None:
    shard = tmp_path / "l.tar"
    with tarfile.open(shard, "w") as archive:
        info = tarfile.TarInfo("0.png")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(info)
    with pytest.raises(ConfigError, match="is a link"):
        store.put(shard, name="x")


def test_bad_tables_are_refused(store: LocalDatasetStore, tmp_path: Path) -> None:
    table = write_table(tmp_path / "t")
    text = (table / "metadata.csv").read_text()
    for bad, complaint in (
        (text + "d.png,x\n", "line 5: not as many cells"),
        (text.replace("True", "perhaps"), "consent is neither"),
        (text + "d.png,x,y,,\n", r"d\.png: does not exist"),
        ("", "no column of captions"),
        (text.replace("c.png,", ","), "no object with a file_name"),
    ):
        (table / "metadata.csv").write_text(bad)
        with pytest.raises(ConfigError, match=complaint):
            store.put(table, name="x")
    (table / "metadata.csv").write_bytes(b"file_name,text\na.png,\xff\n")
    with pytest.raises(ConfigError, match="cannot be read"):
        store.put(table, name="x")
    (table / "metadata.csv").write_text(text)
    (table / "model.pkl").touch()
    with pytest.raises(ConfigError, match=r"model\.pkl"):
        store.put(table, name="x")
    (table / "model.pkl").unlink()
    (table / "metadata.jsonl").touch()
    with pytest.raises(ConfigError, match="has both"):
        store.put(table, name="x")


def test_what_is_no_data_set_is_said(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    for path, complaint in (
        (tmp_path / "none", "does not exist"),
        (tmp_path / "notes.txt", "is no data set"),
        (tmp_path, "has no metadata.jsonl, metadata.csv, .tar or .parquet"),
    ):
        with pytest.raises(ConfigError, match=complaint):
            recognise(path)


def test_without_pyarrow_a_parquet_file_says_what_to_install(
    store: LocalDatasetStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(ConfigError, match="pyarrow is not installed") as error:
        store.put(tmp_path / "x.parquet", name="x")
    assert error.value.hint == "pip install 'intonaco[parquet]'"


def write_lines(folder: Path, *lines: str) -> Path:
    """With images a.png, b.png … as many as there are lines."""
    folder.mkdir(parents=True)
    for n in range(len(lines)):
        (folder / f"{'abc'[n]}.png").write_bytes(image(n + 1))
    (folder / "metadata.jsonl").write_bytes("\n".join(lines).encode())
    return folder


@pytest.mark.parametrize("column", ["text", "caption"])
def test_only_a_line_feed_ends_a_line(
    column: str, store: LocalDatasetStore, tmp_path: Path
) -> None:
    """Also where training and `diff` read what was kept to the byte."""
    captions = ("one\u2028two", "three\u0085\x7f four")
    lines = [
        json.dumps({"file_name": f"{'ab'[n]}.png", column: text}, ensure_ascii=False)
        for n, text in enumerate(captions)
    ]
    folder = write_lines(tmp_path / "f", *lines)
    (folder / "metadata.jsonl").write_bytes(f"{lines[0]}\r\n \t\n{lines[1]}\r\n".encode())
    version = store.put(folder, name="x").version
    tree = store.open(version)
    assert [item.texts[0] for item in read_folder(tree)] == list(captions)
    assert [item.texts[0] for item in read_captioned(tree)] == list(captions)
    assert not store.diff_items(version, version).captions


def test_each_item_may_have_its_caption_in_another_column(
    store: LocalDatasetStore, tmp_path: Path
) -> None:
    said = ({"text": "one"}, {"caption": "two"}, {"prompt": "three", "caption": "not this"})
    for name, order in (("f", (0, 1)), ("g", (1, 0))):
        lines = [
            json.dumps({"file_name": f"{'ab'[n]}.png", **said[k]}) for n, k in enumerate(order)
        ]
        found = items_of(store, write_lines(tmp_path / name, *lines))
        assert [v[1][0] for v in found.values()] == [("one", "two")[k] for k in order]
    table = tmp_path / "t"
    table.mkdir()
    for n, name in enumerate(("a.png", "b.png")):
        (table / name).write_bytes(image(n))
    (table / "metadata.csv").write_text("file_name,text\na.png,\nb.png,two\n")
    with pytest.raises(ConfigError, match=r"t/a\.png: has no caption"):
        store.put(table, name="x")


def test_a_name_given_twice_is_refused(store: LocalDatasetStore, tmp_path: Path) -> None:
    line = '{"file_name": "a.png", "text": "x", "consent": false, "consent": true}'
    with pytest.raises(ConfigError, match=r"line 1: .*'consent' is given twice"):
        store.put(write_lines(tmp_path / "f", line), name="x")
    files = [("0.png", image(0)), ("0.json", line.encode())]
    with pytest.raises(ConfigError, match="sample 0: 'consent' is given twice"):
        store.put(write_shard(tmp_path / "a.tar", files), name="x")
    table = write_table(tmp_path / "t")
    text = (table / "metadata.csv").read_text().replace("topic", "text", 1)
    (table / "metadata.csv").write_text(text)
    with pytest.raises(ConfigError, match="names a column twice"):
        store.put(table, name="x")


def test_where_consent_is_asked_for_an_empty_cell_is_no_yes(
    store: LocalDatasetStore, tmp_path: Path
) -> None:
    table = write_table(tmp_path / "t")
    text = (table / "metadata.csv").read_text()
    assert text.count("True") == 2
    (table / "metadata.csv").write_text(text.replace("True", "", 1))
    with pytest.raises(ConfigError, match=r"t/a\.png: consent is neither true nor false"):
        store.put(table, name="x")


def test_a_byte_order_mark_is_no_part_of_a_caption(
    store: LocalDatasetStore, tmp_path: Path
) -> None:
    files = [("0.png", image(0)), ("0.txt", b"\xef\xbb\xbfone\r\n")]
    assert items_of(store, write_shard(tmp_path / "a.tar", files))["0.png"][1] == ("one",)


def test_metadata_that_is_a_link_is_refused(store: LocalDatasetStore, tmp_path: Path) -> None:
    """What it leads to could change unseen: the link stays what it was."""
    folder = write_folder(tmp_path / "f")
    (folder / "metadata.jsonl").rename(tmp_path / "elsewhere.jsonl")
    (folder / "metadata.jsonl").symlink_to(tmp_path / "elsewhere.jsonl")
    with pytest.raises(ConfigError, match=r"metadata\.jsonl is a link"):
        store.put(folder, name="x")


@pytest.mark.parametrize("form", ["folder", "shard"])
def test_what_changes_while_it_is_added_is_no_version(
    form: str, store: LocalDatasetStore, tmp_path: Path
) -> None:
    """Else what was hashed before would be known for ever by what was read after."""
    if form == "folder":
        source, changed = (f := write_folder(tmp_path / "f")), f / "metadata.jsonl"
    else:
        source = changed = write_shard(tmp_path / "a.tar", shard_files(ITEMS, txt=True))
    before = changed.read_bytes()

    def meanwhile(folder: Path) -> Report:
        report = validate(folder)
        changed.write_bytes(before.replace(b"a cat", b"a cut"))
        return report

    store.check = meanwhile
    with pytest.raises(ConfigError, match="changed while it was added"):
        store.put(source, name="x")
    assert store.list() == []
    store.check = validate
    changed.write_bytes(before)
    assert items_of(store, source) == EXPECTED


def test_everything_that_can_be_added_can_be_checked(
    store: LocalDatasetStore, tmp_path: Path
) -> None:
    sources = [
        write_folder(tmp_path / "folder", text="caption"),
        write_table(tmp_path / "table"),
        write_shard(tmp_path / "txt.tar", shard_files(ITEMS, txt=True)),
    ]
    for source in sources:
        report = store.examine(source)
        assert (report.folder, report.items, report.problems) == (source, 3, ())
    assert store.list() == []


# ------------------------------------------------------------------------------------ parquet


def write_parquet(file: Path, columns: Mapping[str, list[Any]]) -> Path:
    arrow = pytest.importorskip("pyarrow", reason="parquet is not verified: pyarrow is missing")
    parquet = pytest.importorskip("pyarrow.parquet")
    file.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(arrow.table(columns), file, row_group_size=2)
    return file


def columns_of(items: Given) -> dict[str, list[Any]]:
    keys = ("text", "topic", "origin", "consent")
    return {
        "image": [{"bytes": raw, "path": name} for name, (raw, _) in items.items()],
        **{key: [entry.get(key) for _, entry in items.values()] for key in keys[:-1]},
        "consent": [entry.get("consent", True) for _, entry in items.values()],
    }


def test_parquet_gives_the_same_items(store: LocalDatasetStore, tmp_path: Path) -> None:
    assert items_of(store, write_parquet(tmp_path / "d/0.parquet", columns_of(ITEMS))) == EXPECTED
    more = {f"{i}.png": (image(i), {"text": f"n {i}"}) for i in range(10, 140)}
    write_parquet(tmp_path / "d/1.parquet", columns_of(more))
    assert len(items_of(store, tmp_path / "d")) == 133


def test_parquet_of_plain_bytes_with_a_named_column(
    store: LocalDatasetStore, tmp_path: Path
) -> None:
    kinds = [image(1), image(2, "JPEG"), image(3, "WEBP")]
    captions = [["a"], ["b", "c"], ["d"]]
    columns: dict[str, list[Any]] = {"jpg": kinds, "mask": kinds, "caption": captions}
    file = write_parquet(tmp_path / "p.parquet", columns)
    with pytest.raises(ConfigError, match="2 columns of images: jpg, mask"):
        store.put(file, name="x")
    found = items_of(store, file, image="jpg")
    assert {name: v[1] for name, v in found.items()} == {
        "p-00000000.png": ("a",),
        "p-00000001.jpg": ("b", "c"),
        "p-00000002.webp": ("d",),
    }
    assert [v[0] for v in found.values()] == kinds


def test_bad_parquet_is_refused(store: LocalDatasetStore, tmp_path: Path) -> None:
    beside = columns_of(ITEMS)
    beside["image"] = [{"bytes": None, "path": "a.png"}] * 3
    for columns, complaint in (
        (beside, "row 0: image holds no bytes"),
        (columns_of(ITEMS) | {"consent": [True, None, True]}, "consent is neither true nor"),
        ({"text": ["a"]}, "0 columns of images"),
        ({"image": columns_of(ITEMS)["image"], "n": [1, 2, 3]}, "no column of captions"),
        ({**columns_of(ITEMS), "text": [None, "b", "c"]}, "no caption"),
    ):
        with pytest.raises(ConfigError, match=complaint):
            store.put(write_parquet(tmp_path / "x.parquet", columns), name="x")
    file = write_parquet(tmp_path / "x.parquet", columns_of(ITEMS))
    cut(file, file.stat().st_size // 2)
    with pytest.raises(ConfigError, match="cannot be read"):
        store.put(file, name="x")
