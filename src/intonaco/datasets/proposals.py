"""What was proposed for an update, kept until it is over::

    datasets/proposals/UPDATE/proposal.json     written before the folder gets its name
    datasets/proposals/UPDATE/images/ITEM.png   so that retention cannot take them meanwhile
    datasets/proposals/UPDATE/thumbs/ITEM.png   for the console

What a person said of it is in the ledger: ``setting("curation:UPDATE")``.
"""

from __future__ import annotations

import io
import shutil
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from PIL import Image

from intonaco.codec import decode, encode
from intonaco.datasets import curation
from intonaco.datasets.looking import FORMATS, IMAGES, look
from intonaco.datasets.proposing import Choice, Proposed
from intonaco.datasets.served import Consents
from intonaco.ledger import Ledger
from intonaco.workspace import Workspace

DROPPED = "curation_dropped"  # setting: items that a person dropped, of whatever proposal
SIDE = 256  # pixels of a thumbnail


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """``left_out``: as in ``Choice``, and "gone" for images that are no longer there."""

    update_id: str
    at: float
    items: tuple[Proposed, ...]
    considered: int = 0
    min_score: float | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """What a person said of a proposal. ``dropped``: items that are not to be used."""

    approved: bool
    actor: str
    at: float
    dropped: tuple[str, ...] = ()
    reason: str = ""


def root(workspace: Workspace) -> Path:
    return workspace.datasets / "proposals"


def setting(update_id: str) -> str:
    """Under what name the ledger keeps the word on a proposal."""
    return f"curation:{update_id}"


def word_on(ledger: Ledger, update_id: str) -> Word | None:
    stored = ledger.setting(setting(update_id))
    if not stored:
        return None
    return Word(**{**stored, "dropped": tuple(stored["dropped"])})


def dropped_for_good(ledger: Ledger) -> frozenset[str]:
    """Items that a person took out of any proposal: no later one has them again."""
    return frozenset(ledger.setting(DROPPED) or ())


def find(workspace: Workspace, update_id: str) -> Proposal | None:
    """Raises StorageError if it is there and cannot be read."""
    if not update_id.isalnum():
        return None
    try:
        return decode(Proposal, (root(workspace) / update_id / "proposal.json").read_bytes())
    except FileNotFoundError:
        return None


def known(workspace: Workspace) -> list[Proposal]:
    """All there are, oldest first."""
    names = [p.parent.name for p in root(workspace).glob("*/proposal.json")]
    found = [find(workspace, name) for name in names]
    return sorted((p for p in found if p is not None), key=lambda p: (p.at, p.update_id))


def make(
    workspace: Workspace, update_id: str, choice: Choice, at: float, max_pixels: int
) -> Proposal:
    """Write a proposal with its images; if another was faster, that one is it. Images that are
    gone, damaged, or out of the workspace are left out."""
    home = root(workspace)
    home.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=home, prefix=f".{update_id}."))
    try:
        items = []
        for item in choice.items:
            if (image := _image(workspace, item.image)) is not None and not look(
                image, max_pixels
            ).found:
                items.append(replace(item, image=_keep(image, temporary, item.item_id)))
        gone = len(choice.items) - len(items)
        proposal = Proposal(
            update_id=update_id,
            at=at,
            items=tuple(items),
            considered=choice.considered,
            min_score=choice.min_score,
            left_out={**choice.left_out, **({"gone": gone} if gone else {})},
        )
        (temporary / "proposal.json").write_text(encode(proposal))
        temporary.chmod(0o755)
        temporary.rename(home / update_id)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        found = find(workspace, update_id)
        if found is None:
            raise
        return found
    return proposal


def items_of(
    workspace: Workspace, proposal: Proposal, consents: Consents, dropped: Collection[str] = ()
) -> list[curation.Item]:
    """The proposal's items as training data, without those that were dropped and those whose unit
    has withdrawn since."""
    return [
        curation.Item(
            file=root(workspace) / proposal.update_id / item.image,
            texts=(item.prompt,),
            origin=f"traffic/{item.source}",
            generated=item.generated,
            provenance={
                "request": item.request,
                "release": item.release,
                "finding": item.finding,
                "at": item.at,
                "unit": item.unit,
            },
        )
        for item in proposal.items
        if item.item_id not in dropped and (not item.unit or consents.of(item.unit))
    ]


def forget(workspace: Workspace, keep: Collection[str]) -> None:
    """Delete the proposals of all other updates, those half made too: they hold what people asked
    for."""
    for folder in root(workspace).glob("*"):
        if folder.name.lstrip(".").partition(".")[0] not in keep:
            shutil.rmtree(folder, ignore_errors=True)


def _image(workspace: Workspace, path: str) -> Path | None:
    """Nothing outside the workspace, by no way: labels are written by others."""
    try:
        home = workspace.root.resolve(strict=True)
        file = (home / path).resolve(strict=True)
    except (OSError, ValueError, RuntimeError):
        return None
    inside = file.is_relative_to(home) and file.is_file()
    return file if inside and file.suffix.lower() in IMAGES else None


def _keep(image: Path, folder: Path, name: str) -> str:
    """Copy an image and its thumbnail into a proposal; returns its path there."""
    for part in ("images", "thumbs"):
        (folder / part).mkdir(exist_ok=True)
    kept = f"images/{name}{image.suffix.lower()}"
    curation.link(image, folder / kept)
    with Image.open(image, formats=FORMATS) as opened:
        small = opened.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    out = io.BytesIO()
    small.save(out, "PNG")
    (folder / "thumbs" / f"{name}.png").write_bytes(out.getvalue())
    return kept
