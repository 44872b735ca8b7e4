import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from intonaco.demo.data import (
    FIRST_TOPICS,
    LATER_TOPICS,
    NAMES,
    PARTS,
    PHRASINGS,
    WORDS,
    enlarge,
    shrink,
    split,
    write_demo_data,
)


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_parts_are_disjoint_and_stratified(seed: int) -> None:
    parts = split(seed)
    rows = np.concatenate([part.indices for part in parts.values()])
    assert len(rows) == len(set(rows.tolist()))
    whole = np.bincount(load_digits().target, minlength=10) / 1797
    for name, part in parts.items():
        assert abs(len(part.labels) - PARTS[name]) <= 5
        share = np.bincount(part.labels, minlength=10) / len(part.labels)
        assert np.abs(share - whole).max() < 0.01
    assert np.array_equal(parts["judge"].labels, load_digits().target[parts["judge"].indices])


def test_another_seed_splits_otherwise() -> None:
    assert not np.array_equal(split(0)["judge"].indices, split(1)["judge"].indices)


def test_sizes_beyond_the_data_are_refused() -> None:
    with pytest.raises(ValueError, match="1797"):
        split(0, {"generator": 1000, "judge": 1000})


def test_enlarge_agrees_with_torch() -> None:
    import torch

    digits = load_digits().images[:20]
    small = torch.tensor(digits / 16.0)[:, None]
    expected = torch.nn.functional.interpolate(
        small, size=(32, 32), mode="bilinear", align_corners=False
    )
    assert (
        np.abs(enlarge(digits)[..., 0] / 255.0 - expected[:, 0].numpy()).max() <= 0.5 / 255 + 1e-9
    )


def test_shrink_averages_blocks() -> None:
    image = np.zeros((1, 32, 32, 3), dtype=np.uint8)
    image[0, :4, :4] = 255
    small = shrink(image)
    assert small[0, 0] == 1.0
    assert small[0, 1:].max() == 0.0


def test_words_cover_every_prompt() -> None:
    assert len(PHRASINGS) == 12
    for phrasing in PHRASINGS:
        for name in NAMES:
            assert set(phrasing.format(name).split()) <= set(WORDS)
            assert len(phrasing.format(name).split()) <= 10


def test_written_data(tmp_path: Path) -> None:
    data = write_demo_data(tmp_path / "a", seed=3)
    again = write_demo_data(tmp_path / "b", seed=3)
    for folder, topics in ((data.train, FIRST_TOPICS), (data.pool, LATER_TOPICS)):
        lines = [json.loads(x) for x in (folder / "metadata.jsonl").read_text().splitlines()]
        assert {line["topic"] for line in lines} == set(topics)
        assert all(line["consent"] and line["origin"] for line in lines)
        assert all(line["topic"] in text.split() for line in lines for text in line["text"])
        files = {line["file_name"] for line in lines}
        assert {p.name for p in folder.glob("*.png")} == files
        assert len(files) == data.items[folder.name]
        with Image.open(folder / lines[0]["file_name"]) as image:
            assert (image.size, image.mode) == ((32, 32), "RGB")
    with np.load(data.judge) as judge:
        assert judge["images"].shape == (len(judge["labels"]), 32, 32, 3)
    prompts = [json.loads(x) for x in data.eval_prompts.read_text().splitlines()]
    assert len({p["prompt_id"] for p in prompts}) == len({p["prompt"] for p in prompts}) == 120
    for path in sorted(p for p in (tmp_path / "a").rglob("*") if p.is_file()):
        if path.suffix == ".npz":  # a zip keeps its time of writing
            with np.load(path) as one, np.load(again.judge.parent / path.name) as two:
                assert np.array_equal(one["images"], two["images"])
        else:
            other = tmp_path / "b" / path.relative_to(tmp_path / "a")
            assert path.read_bytes() == other.read_bytes()
