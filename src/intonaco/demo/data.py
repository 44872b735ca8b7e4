"""Real data for the demo: scikit-learn's 1,797 handwritten digits (UCI, 8x8 pixels).

They are split once, by seed, into four disjoint stratified parts, so that nothing is judged by
what it was trained on: ``generator`` trains the image model, ``extractor`` the model that scores
live traffic, ``judge`` an independent classifier, and ``reference`` is held out for the gate.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

SIZE = 32  # pixels a side
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
FIRST_TOPICS = NAMES[:5]  # what the first release learns
LATER_TOPICS = NAMES[5:]  # what users begin to ask for afterwards
PHRASINGS = (
    "a handwritten {}",
    "a photo of the digit {}",
    "the number {} written by hand",
    "{}",
    "please draw a {}",
    "a drawing of a {}",
    "the digit {}",
    "number {} in ink",
    "show me the number {}",
    "an image of a handwritten {}",
    "a {} on paper",
    "write the digit {} please",
)
WORDS = tuple(sorted({word for p in PHRASINGS for word in p.format("").split()} | set(NAMES)))
PARTS: Mapping[str, int] = {"generator": 750, "extractor": 330, "judge": 300, "reference": 417}
_TEXTS_PER_ITEM = 4

Images = NDArray[np.uint8]  # [n, 32, 32, 3]
Labels = NDArray[np.int64]  # [n]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One part of the split. ``indices`` are rows of ``sklearn.datasets.load_digits``."""

    indices: NDArray[np.int64]
    images: Images
    labels: Labels

    def only(self, topics: Iterable[str]) -> Part:
        """The items of these topics."""
        keep = np.isin(self.labels, [NAMES.index(topic) for topic in topics])
        return Part(indices=self.indices[keep], images=self.images[keep], labels=self.labels[keep])


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoData:
    """Where ``write_demo_data`` put things, with the number of items in each."""

    train: Path  # image folder: first topics, labelled
    pool: Path  # image folder: later topics, labelled
    reference: Path  # image folder: all topics, never trained on
    extractor: Path  # npz: images, labels
    judge: Path  # npz: images, labels
    eval_prompts: Path  # jsonl
    items: Mapping[str, int]


def enlarge(digits: NDArray[np.floating[Any]]) -> Images:
    """RGB images [n, 32, 32, 3] of digits [n, 8, 8] with values 0 to 16.

    Bilinear with pixel centres aligned (``F.interpolate(mode="bilinear", align_corners=False)``).
    """
    weights = _bilinear(digits.shape[-1], SIZE)
    grey = weights @ (digits / 16.0) @ weights.T
    levels = np.rint(np.clip(grey, 0, 1) * 255).astype(np.uint8)
    return np.repeat(levels[..., None], 3, axis=-1)


def shrink(images: Images) -> NDArray[np.float64]:
    """Grey average-pooled pixels [n, 64] in 0 to 1 of images [n, 32, 32, 3]: the judge's input."""
    block = SIZE // 8
    grey = images.astype(np.float64).mean(axis=-1) / 255.0
    pooled: NDArray[np.float64] = grey.reshape(-1, 8, block, 8, block).mean(axis=(2, 4))
    return pooled.reshape(-1, 64)


def split(seed: int, sizes: Mapping[str, int] = PARTS) -> Mapping[str, Part]:
    """Disjoint parts, each with the classes in the proportions of the whole.

    ``sizes`` are met up to rounding within each class. Raises ValueError if they exceed the data.
    """
    digits = load_digits()
    labels = np.asarray(digits.target, dtype=np.int64)
    if sum(sizes.values()) > len(labels):
        raise ValueError(f"{sum(sizes.values())} items asked of {len(labels)}")
    rng = np.random.default_rng(seed)
    edges = np.concatenate([[0.0], np.cumsum(list(sizes.values())) / len(labels)])
    chosen: dict[str, list[NDArray[np.int64]]] = {name: [] for name in sizes}
    for label in range(len(NAMES)):
        rows = rng.permutation(np.flatnonzero(labels == label))
        cuts = np.rint(edges * len(rows)).astype(int)
        for name, start, end in zip(sizes, cuts[:-1], cuts[1:], strict=True):
            chosen[name].append(rows[start:end])
    parts: dict[str, Part] = {}
    for name, groups in chosen.items():
        rows = np.sort(np.concatenate(groups))
        parts[name] = Part(indices=rows, images=enlarge(digits.images[rows]), labels=labels[rows])
    return parts


def eval_prompts() -> list[dict[str, str]]:
    """Every topic in every phrasing; the slice is the topic."""
    return [
        {"prompt_id": f"{name}-{n:02d}", "prompt": phrasing.format(name), "slice": name}
        for name in NAMES
        for n, phrasing in enumerate(PHRASINGS)
    ]


def write_demo_data(root: Path, seed: int, sizes: Mapping[str, int] = PARTS) -> DemoData:
    """Write all data of the demo under ``root``. The same seed writes the same bytes."""
    root.mkdir(parents=True, exist_ok=True)
    parts = split(seed, sizes)
    generator = parts["generator"]
    folders = {
        "train": generator.only(FIRST_TOPICS),
        "pool": generator.only(LATER_TOPICS),
        "reference": parts["reference"],
    }
    rng = np.random.default_rng([seed, 1])
    for name, part in folders.items():
        _write_folder(root / name, part, rng)
    for name in ("extractor", "judge"):
        part = parts[name]
        np.savez_compressed(root / f"{name}.npz", images=part.images, labels=part.labels)
    _write_lines(root / "eval_prompts.jsonl", eval_prompts())
    return DemoData(
        train=root / "train",
        pool=root / "pool",
        reference=root / "reference",
        extractor=root / "extractor.npz",
        judge=root / "judge.npz",
        eval_prompts=root / "eval_prompts.jsonl",
        items={name: len(part.labels) for name, part in (folders | dict(parts)).items()},
    )


def _write_folder(folder: Path, part: Part, rng: np.random.Generator) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines: list[dict[str, Any]] = []
    for row, image, label in zip(part.indices, part.images, part.labels, strict=True):
        name = NAMES[int(label)]
        file = f"{name}-{int(row):04d}.png"
        Image.fromarray(image).save(folder / file)
        phrasings = rng.choice(len(PHRASINGS), size=_TEXTS_PER_ITEM, replace=False)
        lines.append(
            {
                "file_name": file,
                "text": [PHRASINGS[int(p)].format(name) for p in phrasings],
                "topic": name,
                "origin": f"sklearn.load_digits/{int(row)}",
                "consent": True,
            }
        )
    _write_lines(folder / "metadata.jsonl", lines)


def _write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def _bilinear(small: int, large: int) -> NDArray[np.float64]:
    """Interpolation matrix [large, small]; each row sums to 1."""
    at = np.clip((np.arange(large) + 0.5) * small / large - 0.5, 0, small - 1)
    low = np.minimum(at.astype(int), small - 2)
    weights = np.zeros((large, small))
    rows = np.arange(large)
    weights[rows, low] = 1 - (at - low)
    weights[rows, low + 1] = at - low
    return weights
