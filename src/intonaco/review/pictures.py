"""Pictures of a review on disk: ``reviews/REVIEW_ID/NAME.png``. All are written by the same encoder
with no text in them, and a name tells nothing without the review's key."""

from __future__ import annotations

import hmac
import io
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from intonaco.errors import ConfigError, NotFound, StorageError
from intonaco.evaluation.prompts import Prompt
from intonaco.types import Review, ReviewArm, ReviewItem
from intonaco.workspace import Workspace, write_atomic

Images = NDArray[np.uint8]
TILES = 6  # a side, of a scrambled picture


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """An arm with the file that an evaluation saved of it: npz of ``images`` [n, h, w, 3] uint8,
    ``prompt_ids``, ``slices`` and ``seeds`` [n], and optionally ``prompts`` [n], the words that
    were drawn, and ``hidden`` [n]: whether nobody may see the prompt."""

    arm: ReviewArm
    file: Path


def choose(
    arms: Sequence[Drawn], prompts: Sequence[Prompt], *, key: str, limit: int
) -> tuple[ReviewItem, ...]:
    """One picture of each prompt that every arm drew with the same seed and that is not hidden, at
    most ``limit`` prompts, slices in turn; which ones depends on ``key`` alone. The words of one
    that the first arm's file does not tell are those of ``prompts``. Raises ConfigError if there is
    none or a prompt's text is not known, StorageError for a file that cannot be read.
    """
    known = {p.prompt_id: p.prompt for p in prompts} | _words(arms[0].file)
    drawn = [_shots(d.file) for d in arms]
    common = set(drawn[0]).intersection(*drawn[1:])
    if not common:
        raise ConfigError("the releases drew no prompt with the same seed: there is no pair")
    slices: dict[str, dict[str, list[int]]] = {}
    for prompt_id, seed in common:
        slices.setdefault(drawn[0][prompt_id, seed][1], {}).setdefault(prompt_id, []).append(seed)
    missing = sorted({p for p, _ in common} - set(known))
    if missing:
        raise ConfigError(
            f"the text of the prompt {missing[0]!r} is not in evaluation.prompts any more",
            hint="evaluate again, or give the file of the prompts that were drawn",
        )
    queues = [
        sorted(of.items(), key=lambda entry: _mac(key, "prompt", entry[0]))
        for _, of in sorted(slices.items())
    ]
    names = sorted(slices)
    items: list[ReviewItem] = []
    while any(queues) and len(items) < limit:
        for name, queue in zip(names, queues, strict=True):
            if queue and len(items) < limit:
                prompt_id, seeds = queue.pop(0)
                seed = min(seeds, key=lambda s: _mac(key, "seed", prompt_id, str(s)))
                items.append(
                    ReviewItem(
                        item=_mac(key, "item", prompt_id, str(seed))[:16],
                        prompt_id=prompt_id,
                        prompt=known[prompt_id],
                        slice=name,
                        seed=seed,
                    )
                )
    return tuple(items)


def store(workspace: Workspace, review: Review, arms: Sequence[Drawn]) -> None:
    """Write the pictures of a review; those that lie there already stay. Raises StorageError."""
    for drawn in arms:
        rows = _shots(drawn.file)
        images = _read(drawn.file, "images")
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise StorageError(
                f"{drawn.file}: images are [n, height, width, 3] of uint8, "
                f"not {list(images.shape)} of {images.dtype}"
            )
        for item in review.items:
            file = place(workspace, review, drawn.arm.name, item.item)
            if not file.exists():
                write_atomic(file, png(images[rows[item.prompt_id, item.seed][0]]))


def place(workspace: Workspace, review: Review, arm: str, item: str) -> Path:
    name = _mac(review.key, "picture", arm, item)[:40]
    return workspace.reviews / review.review_id / f"{name}.png"


def picture(workspace: Workspace, review: Review, arm: str, item: str) -> bytes:
    """The PNG of an arm and item. Raises NotFound."""
    try:
        return place(workspace, review, arm, item).read_bytes()
    except OSError:
        raise NotFound("this picture is not there any more") from None


def png(image: Images) -> bytes:
    """Header, pixels, end: nothing else is in it."""
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(out, format="PNG", compress_level=6)
    return out.getvalue()


def scrambled(raw: bytes, key: str, item: str) -> bytes:
    """The picture cut into tiles that lie in another order, half of them as negatives: plainly
    broken whatever it shows."""
    with Image.open(io.BytesIO(raw)) as opened:
        image = np.asarray(opened.convert("RGB"))
    height, width = (max(1, side // TILES) for side in image.shape[:2])
    spots = [
        (top, left)
        for top in range(0, height * TILES, height)
        for left in range(0, width * TILES, width)
        if top + height <= image.shape[0] and left + width <= image.shape[1]
    ]
    order = sorted(range(len(spots)), key=lambda k: _mac(key, "tile", item, str(k)))
    out = image.copy()
    for number, (spot, source) in enumerate(zip(spots, order, strict=True)):
        top, left = spots[source]
        tile = image[top : top + height, left : left + width]
        out[spot[0] : spot[0] + height, spot[1] : spot[1] + width] = (
            255 - tile if number % 2 else tile
        )
    return png(out)


def _shots(file: Path) -> dict[tuple[str, int], tuple[int, str]]:
    """(prompt_id, seed) to (row, slice), of what may be shown."""
    ids, slices, seeds = (_read(file, name) for name in ("prompt_ids", "slices", "seeds"))
    hidden = _read(file, "hidden") if _has(file, "hidden") else np.zeros(len(ids), dtype=np.bool_)
    return {
        (str(p), int(seed)): (row, str(s))
        for row, (p, s, seed, secret) in enumerate(zip(ids, slices, seeds, hidden, strict=True))
        if not secret
    }


def _words(file: Path) -> dict[str, str]:
    """The words that were drawn, by prompt_id: ``evaluation.prompts`` may say others by now."""
    if not _has(file, "prompts"):
        return {}
    ids, words = (_read(file, name) for name in ("prompt_ids", "prompts"))
    return {str(i): str(text) for i, text in zip(ids, words, strict=True)}


def _has(file: Path, name: str) -> bool:
    try:
        with np.load(file, allow_pickle=False) as kept:
            return name in kept
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise StorageError(f"{file} is no file of drawn pictures: {error}") from error


def _read(file: Path, name: str) -> NDArray[np.generic]:
    try:
        with np.load(file, allow_pickle=False) as kept:
            values: NDArray[np.generic] = kept[name]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise StorageError(f"{file} is no file of drawn pictures: {error}") from error
    return values


def _mac(key: str, *parts: str) -> str:
    return hmac.digest(bytes.fromhex(key), "\x1f".join(parts).encode(), "sha256").hex()


def of_report(folder: Path, report: Mapping[str, object], names: Sequence[str]) -> Iterator[Drawn]:
    """The arms of an evaluation's report that were drawn, the champion first. ``folder``: of the
    job. Raises StorageError for an arm that the report does not have."""
    arms = report.get("arms")
    for name in names:
        entry = arms.get(name) if isinstance(arms, Mapping) else None
        if not isinstance(entry, Mapping) or not isinstance(entry.get("images"), str):
            raise StorageError(f"the evaluation kept no pictures of {name}")
        arm = ReviewArm(name=name, release_id=str(entry.get("release_id") or ""))
        yield Drawn(arm=arm, file=folder / str(entry["images"]))
