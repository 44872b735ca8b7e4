import json
from pathlib import Path

import numpy as np
import pytest

from intonaco.datasets.curation import Item, read_folder, select_moved, write_folder
from intonaco.errors import ConfigError
from intonaco.types import ClusterMove


def item(name: str, *, consent: bool = True, folder: str = "f") -> Item:
    return Item(
        file=Path(folder) / name, texts=(name,), topic="t", origin=f"o/{name}", consent=consent
    )


def cluster(centroid: tuple[float, ...], *, moved: bool) -> ClusterMove:
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


def test_items_nearest_to_a_moved_cluster_are_selected() -> None:
    rng = np.random.default_rng(0)
    centroids = rng.normal(size=(5, 8))
    moved = [True, False, True, False, False]
    vectors = rng.normal(size=(200, 8))
    items = [item(f"{i}.png") for i in range(200)]
    clusters = [cluster(tuple(c), moved=m) for c, m in zip(centroids, moved, strict=True)]
    chosen = select_moved(items, vectors, clusters)
    expected = [
        one
        for one, v in zip(items, vectors, strict=True)
        if moved[int(np.argmin([np.linalg.norm(v - c) for c in centroids]))]
    ]
    assert chosen == expected
    assert 0 < len(chosen) < 200


def test_nothing_moved_selects_nothing() -> None:
    vectors = np.zeros((1, 2))
    assert select_moved([item("a")], vectors, []) == []
    assert select_moved([item("a")], vectors, [cluster((0.0, 0.0), moved=False)]) == []
    assert select_moved([], np.zeros((0, 2)), [cluster((0.0, 0.0), moved=True)]) == []


def test_shapes_that_do_not_agree_are_refused() -> None:
    with pytest.raises(ValueError, match="2 vectors"):
        select_moved([item("a")], np.zeros((2, 2)), [cluster((0.0, 0.0), moved=True)])
    with pytest.raises(ValueError, match="3 numbers"):
        select_moved([item("a")], np.zeros((1, 2)), [cluster((0.0, 0.0, 0.0), moved=True)])


def files(tmp_path: Path) -> list[Item]:
    items = []
    for folder, name, consent in (
        ("a", "x.png", True),
        ("b", "x.png", True),
        ("b", "n.png", False),
    ):
        path = tmp_path / folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(f"{folder}/{name}".encode())
        items.append(
            Item(file=path, texts=("one", "two"), topic="t", origin=folder, consent=consent)
        )
    return items


def test_written_folder_reads_back_without_items_that_lack_consent(tmp_path: Path) -> None:
    items, target = files(tmp_path), tmp_path / "out"
    assert write_folder(items, target) == 2
    back = read_folder(target)
    assert [(i.texts, i.topic, i.origin, i.consent) for i in back] == [
        (("one", "two"), "t", "a", True),
        (("one", "two"), "t", "b", True),
    ]
    assert [i.file.read_bytes() for i in back] == [b"a/x.png", b"b/x.png"]
    assert not list(target.glob("n*"))
    assert back[0].file.samefile(items[0].file)


def test_written_again_it_replaces_and_does_not_depend_on_order(tmp_path: Path) -> None:
    items, target = files(tmp_path), tmp_path / "out"
    write_folder(items, target)
    first = {p.name: p.read_bytes() for p in target.iterdir()}
    write_folder(items[:1], target)
    assert len(list(target.iterdir())) == 2
    write_folder(items[::-1], target)
    assert first == {p.name: p.read_bytes() for p in target.iterdir()}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "out"]


def test_the_same_image_from_two_folders_is_written_once(tmp_path: Path) -> None:
    items = files(tmp_path)
    twin = tmp_path / "z.png"
    twin.write_bytes(items[0].file.read_bytes())
    again = Item(file=twin, texts=("other",), topic="t", origin="z", consent=True)
    assert write_folder([again, *items], tmp_path / "out") == 2
    assert {i.origin for i in read_folder(tmp_path / "out")} == {"a", "b"}


def test_an_image_that_is_gone_leaves_the_old_folder(tmp_path: Path) -> None:
    items, target = files(tmp_path), tmp_path / "out"
    write_folder(items, target)
    items[0].file.unlink()
    with pytest.raises(ConfigError, match=r"x\.png"):
        write_folder(items, target)
    assert len(read_folder(target)) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "out"]


BAD_LINES = (
    "{",
    "[]",
    '{"text": "x"}',
    '{"file_name": "a"}',
    '{"file_name": "a", "text": 3}',
    '{"file_name": "a", "text": "x", "consent": "no"}',
)


@pytest.mark.parametrize("line", BAD_LINES)
def test_bad_metadata_names_its_line(tmp_path: Path, line: str) -> None:
    good = json.dumps({"file_name": "a.png", "text": "x"})
    (tmp_path / "metadata.jsonl").write_text(f"{good}\n{line}\n")
    with pytest.raises(ConfigError, match="line 2"):
        read_folder(tmp_path)


def test_no_metadata(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"metadata\.jsonl"):
        read_folder(tmp_path)
