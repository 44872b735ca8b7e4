"""What may go into a dataset version: checked before anything is stored.

Each item's image is looked at alone (``looking``), then the items are compared with each other and
with what is held out. ``data.checks`` says for each kind of finding whether the item is left out
(drop), the whole folder refused (fail), or a person told (warn).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from intonaco.codec import digest, parse_once
from intonaco.config import Data, Kind, Policy
from intonaco.datasets.alike import earlier_alike
from intonaco.datasets.curation import METADATA
from intonaco.datasets.identity import NOT_DATA
from intonaco.datasets.looking import IMAGES, Look, look
from intonaco.errors import ConfigError

AT_ONCE = 256  # files handed to the threads together
THREADS = min(8, os.cpu_count() or 1)  # decoders let go of the interpreter's lock
# What a file that does not belong here is, by how it is named or begins.
SUSPECTS: Mapping[str, tuple[str, ...]] = {
    "a pickle": (".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt", ".joblib", ".npy"),
    "a script": (".py", ".sh", ".js", ".bat", ".exe", ".so", ".dll", ".ps1"),
    "an archive": (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar", ".zst"),
}
MAGIC: Mapping[bytes, str] = {
    b"\x80\x02": "a pickle",
    b"\x80\x03": "a pickle",
    b"\x80\x04": "a pickle",
    b"\x80\x05": "a pickle",
    b"PK\x03\x04": "an archive",
    b"\x1f\x8b": "an archive",
    b"7z\xbc\xaf": "an archive",
    b"#!": "a script",
    b"\x7fELF": "a program",
    b"MZ": "a program",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing found of one file. ``other``: the file that it is like, for those kinds that
    compare two; ``detail`` says the rest."""

    file: str
    kind: Kind
    detail: str
    policy: Policy = "fail"
    other: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """What a candidate will be judged by: sha256 and perceptual hashes of the reference's images
    (of ``files``, in their order) and the prompts of the evaluation, plain."""

    folder: Path | None = None
    files: tuple[str, ...] = ()
    digests: tuple[str, ...] = ()
    hashes: tuple[str, ...] = ()
    prompts: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What counts as found, and what is done then. ``min_side``: pixels. ``count``: how long a
    caption is, in ``unit``; more than ``most`` is too long."""

    data: Data = field(default_factory=Data)
    min_side: int = 16
    count: Callable[[str], int] = len
    unit: str = "characters"
    most: int = 2000
    held_out: HeldOut = HeldOut()

    @property
    def digest(self) -> str:
        """Names all that decides what is found, but for the way that captions are counted."""
        held = self.held_out
        return digest(
            [
                self.data.model_dump(mode="json"),
                [self.min_side, self.unit, self.most],
                [held.digests, held.hashes, sorted(held.prompts)],
            ]
        )

    def problem(self, file: str, kind: Kind, detail: str, other: str = "") -> Problem:
        policy = self.data.policy(kind)
        return Problem(file=file, kind=kind, detail=detail, policy=policy, other=other)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """``entries``: the metadata lines of the items that stay, parsed, in order of file name.
    ``problems``: why others are left out; ``warnings``: what was found of those that stay, or of
    files that are nobody's. ``items``: how many were named."""

    folder: Path
    entries: tuple[Mapping[str, Any], ...]
    problems: tuple[Problem, ...]
    warnings: tuple[Problem, ...] = ()
    items: int = 0
    held_out: Path | None = None

    @property
    def counts(self) -> Mapping[str, int]:
        """Problems by kind."""
        return dict(Counter(problem.kind for problem in self.problems))

    @property
    def failures(self) -> tuple[Problem, ...]:
        """Problems for which the whole folder is refused."""
        return tuple(p for p in self.problems if p.policy == "fail")

    def raise_if_invalid(self) -> None:
        """Raises ConfigError with the first file for which the folder is refused, and how many
        more there are."""
        if not self.failures:
            return
        first, rest = self.failures[0], len(self.failures) - 1
        counts = Counter(p.kind for p in self.failures)
        kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(counts.items()))
        raise ConfigError(
            f"{self.folder}/{first.file}: {first.detail}" + (f" (and {rest} more)" if rest else ""),
            hint=f"found: {kinds}; `data.checks: {{{first.kind}: drop}}` or `data.on_invalid: drop`"
            " leaves such items out",
        )


@dataclass(slots=True)
class _Item:
    entry: Mapping[str, Any]
    look: Look
    problems: list[Problem] = field(default_factory=list)

    @property
    def name(self) -> str:
        return str(self.entry["file_name"])

    @property
    def stays(self) -> bool:
        return all(p.policy == "warn" for p in self.problems)


def validate(folder: Path, rules: Rules | None = None) -> Report:
    """Check an image folder. Reads every image in full. Raises ConfigError if there is no
    ``metadata.jsonl``."""
    rules = rules or Rules()
    loose: list[Problem] = []  # of no item
    items: list[_Item] = []
    named: set[str] = set()
    for entry in _entries(_lines(folder), loose, rules):
        item = _Item(entry, Look())
        item.problems = list(_of_entry(folder, entry, named, rules))
        named.add(item.name)
        items.append(item)
    sound = [item for item in items if item.stays]
    files = [folder / item.name for item in sound]
    for item, seen in zip(sound, looks(files, rules.data.bounds.max_pixels), strict=True):
        item.look = seen
        item.problems += [rules.problem(item.name, kind, text) for kind, text in seen.found]
        if seen.hash:
            item.problems += _of_shape(item.name, seen, rules)
    _compare(items, rules)
    loose += _strangers(folder, named, rules)
    found = [p for item in items for p in item.problems] + loose
    stay = sorted((item for item in items if item.stays), key=lambda item: item.name)
    return Report(
        folder=folder,
        entries=tuple(item.entry for item in stay),
        problems=tuple(p for p in found if p.policy != "warn"),
        warnings=tuple(p for p in found if p.policy == "warn"),
        items=len(items),
        held_out=rules.held_out.folder,
    )


def looks(files: Sequence[Path], max_pixels: int) -> Iterator[Look]:
    """A look at each file, in order, by several threads."""
    with ThreadPoolExecutor(THREADS, thread_name_prefix="look") as pool:
        rest = iter(files)
        while some := list(islice(rest, AT_ONCE)):
            yield from pool.map(partial(look, max_pixels=max_pixels), some)


def held_out(
    folder: Path | None, prompts: Iterable[str] = (), *, max_pixels: int = 2**26
) -> HeldOut:
    """The images under a reference folder that can be read, and prompts. Raises ConfigError if
    there is no such folder."""
    plain = frozenset(_plain(p) for p in prompts)
    if folder is None:
        return HeldOut(prompts=plain)
    if not folder.is_dir():
        raise ConfigError(
            f"data.reference: folder {folder} does not exist",
            hint="without it nobody can tell whether held-out images are trained on",
        )
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGES and p.is_file())
    seen = list(looks(files, max_pixels))
    return HeldOut(
        folder=folder,
        files=tuple(p.relative_to(folder).as_posix() for p in files),
        digests=tuple(s.sha256 for s in seen),
        hashes=tuple(s.hash for s in seen),
        prompts=plain,
    )


# ----------------------------------------------------------------------------- of the metadata


def _lines(folder: Path) -> list[bytes]:
    path = folder / METADATA
    try:
        return path.read_bytes().split(b"\n")
    except FileNotFoundError:
        raise ConfigError(
            f"{folder} has no {METADATA}",
            hint='one line for each image: {"file_name": "a.png", "text": "a caption"}',
        ) from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


def _entries(
    lines: Iterable[bytes], problems: list[Problem], rules: Rules
) -> Iterator[Mapping[str, Any]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue

        def bad(kind: Kind, detail: str, number: int = number) -> None:
            problems.append(rules.problem(METADATA, kind, f"line {number}: {detail}"))

        try:
            entry = parse_once(line.decode())
        except UnicodeDecodeError as error:
            bad("encoding", f"not UTF-8: byte {error.start + 1} is {line[error.start]:#04x}")
            continue
        except (ValueError, RecursionError) as error:
            bad("metadata", f"cannot be used as JSON: {error}")
            continue
        if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str):
            bad("metadata", "no object with a file_name")
            continue
        yield entry


def _of_entry(
    folder: Path, entry: Mapping[str, Any], named: set[str], rules: Rules
) -> Iterator[Problem]:
    """What a line and its place say, before the image is opened. ``named``: earlier lines' files.
    Of a line that names no image of this folder, only that."""
    name: str = entry["file_name"]
    path = folder / name
    relative = PurePosixPath(name)
    find = partial(rules.problem, name)
    if name in named:
        yield find("repeated", f"named twice in {METADATA}")
    elif not _writable(name) or "\0" in name:
        yield find("encoding", "has a name that cannot be written as UTF-8")
    elif relative.is_absolute() or ".." in relative.parts or str(relative) != name:
        yield find("outside", "is not a plain path inside the folder")
    elif ours := NOT_DATA.intersection(relative.parts):
        yield find("forbidden", f"lies in {min(ours)}, where no data are looked for")
    elif relative.suffix.lower() not in IMAGES:
        what = _suspect(path) or f"not an image ({', '.join(sorted(IMAGES))})"
        yield find("forbidden", f"is {what}")
    else:
        try:
            link = path.is_symlink() or not path.resolve().is_relative_to(folder.resolve())
            there = path.is_file()
        except OSError as error:  # a name longer than any file's
            yield find("missing", f"cannot be a file: {error.strerror}")
            return
        if link:
            yield find("forbidden", "is a link")
        elif not there:
            yield find("missing", "does not exist")
        else:
            yield from _of_caption(entry, find, rules)


def _of_caption(
    entry: Mapping[str, Any], find: Callable[[Kind, str], Problem], rules: Rules
) -> Iterator[Problem]:
    texts = entry.get("text")
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list) or not texts:
        yield find("caption", "has no caption")
    elif not all(isinstance(text, str) and text.strip() for text in texts):
        yield find("caption", "has an empty caption")
    elif not all(_writable(text) for text in texts):
        yield find("encoding", "has a caption that cannot be written as UTF-8")
    else:
        longest = max(rules.count(text) for text in texts)
        if longest > rules.most:
            yield find(
                "caption_long",
                f"has a caption of {longest} {rules.unit}, more than {rules.most}",
            )
        if any(_plain(text) in rules.held_out.prompts for text in texts):
            yield find("prompt_leak", "has an evaluation prompt as its caption")
    if not isinstance(entry.get("consent", True), bool):
        yield find("metadata", "consent is neither true nor false")


def _writable(text: str) -> bool:
    """JSON can hold halves of surrogate pairs, UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


# ------------------------------------------------------------------------------ of the images


def _of_shape(name: str, seen: Look, rules: Rules) -> Iterator[Problem]:
    short, long = sorted((seen.width, seen.height))
    size = f"{seen.width} x {seen.height}"
    if short < rules.min_side:
        yield rules.problem(name, "small", f"is {size}, its side shorter than {rules.min_side}")
    if long > short * rules.data.bounds.max_aspect:
        yield rules.problem(
            name, "aspect", f"is {size}, longer than {rules.data.bounds.max_aspect:g} to 1"
        )


def _compare(items: Sequence[_Item], rules: Rules) -> None:
    """Adds what is the same as another item or a held-out image, or looks it. Of several that are
    alike the first stays; one that does not stay is no reason to leave another out."""
    held = rules.held_out
    of_held = dict(zip(reversed(held.digests), reversed(held.files), strict=True))
    of_held.pop("", None)
    first: dict[str, str] = {}
    for item in items:
        if not item.stays:
            continue
        find = partial(rules.problem, item.name)
        if (its := of_held.get(item.look.sha256)) is not None:
            item.problems.append(find("leak", f"is the held-out image {its}", its))
        elif (twin := first.get(item.look.sha256)) is not None:
            item.problems.append(find("duplicate", f"is the same image as {twin}", twin))
        if item.stays:
            first.setdefault(item.look.sha256, item.name)
    # Whoever is told already that it is the same need not be told that it is alike.
    told = ("leak", "duplicate")
    left = [i for i in items if i.stays and not any(p.kind in told for p in i.problems)]
    bits = rules.data.bounds.near_bits
    near = earlier_alike([*held.hashes, *(i.look.hash for i in left)], bits, held=len(held.hashes))
    for place, other in near.items():
        item = left[place - len(held.hashes)]
        if other < len(held.hashes):
            its = held.files[other]
            found = rules.problem(
                item.name, "near_leak", f"looks like the held-out image {its}", its
            )
        else:
            twin = left[other - len(held.hashes)].name
            found = rules.problem(item.name, "near_duplicate", f"looks like {twin}", twin)
        item.problems.append(found)


# -------------------------------------------------------------------------- of the other files


def _strangers(folder: Path, named: set[str], rules: Rules) -> Iterator[Problem]:
    """Files that no metadata line names. Hidden ones are left alone, and out."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        hidden = any(part.startswith(".") for part in PurePosixPath(name).parts)
        if name == METADATA or name in named or hidden or (path.is_dir() and not path.is_symlink()):
            continue
        if path.suffix.lower() in IMAGES and not path.is_symlink() and path.is_file():
            yield rules.problem(name, "unlisted", f"is not named in {METADATA}")
        elif path.is_symlink():
            yield rules.problem(name, "forbidden", "is a link")
        else:
            what = _suspect(path) or "neither an image nor the metadata"
            yield rules.problem(name, "forbidden", f"is {what}: it does not belong into a dataset")


def _suspect(path: Path) -> str | None:
    """What a file is, if it is one of those that do harm; never opened as what it is."""
    for what, endings in SUSPECTS.items():
        if path.suffix.lower() in endings:
            return what
    if path.is_symlink() or not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            head = file.read(4)
    except OSError:
        return None
    return next((what for magic, what in MAGIC.items() if head.startswith(magic)), None)
