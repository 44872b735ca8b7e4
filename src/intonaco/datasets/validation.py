"""What may go into a dataset version: checked before anything is stored."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from intonaco.datasets.curation import METADATA
from intonaco.errors import ConfigError

IMAGES = frozenset({".png", ".jpg", ".jpeg", ".webp"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing wrong with one file. ``kind`` is a key of ``Report.counts``:

    ``unreadable`` (truncated or no image), ``missing``, ``outside`` (a path out of the folder),
    ``caption`` (empty or none), ``repeated`` (named twice), ``duplicate`` (same bytes as another),
    ``unlisted`` (an image without metadata), ``forbidden`` (neither image nor metadata, such as a
    pickle; or a link), ``metadata`` (a line that is no JSON object with a file name).
    """

    file: str
    kind: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """``entries``: the metadata lines without a problem, parsed, in order of file name."""

    folder: Path
    entries: tuple[Mapping[str, Any], ...]
    problems: tuple[Problem, ...]

    @property
    def counts(self) -> Mapping[str, int]:
        return dict(Counter(problem.kind for problem in self.problems))

    def raise_if_invalid(self) -> None:
        """Raises ConfigError with the first offending file and how many more there are."""
        if not self.problems:
            return
        first, rest = self.problems[0], len(self.problems) - 1
        kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(self.counts.items()))
        raise ConfigError(
            f"{self.folder / first.file}: {first.detail}" + (f" (and {rest} more)" if rest else ""),
            hint=f"found: {kinds}; `data.on_invalid: drop` leaves such items out",
        )


def validate(folder: Path) -> Report:
    """Check an image folder. Reads every image in full. Raises ConfigError if there is no
    ``metadata.jsonl``."""
    try:
        lines = (folder / METADATA).read_text().splitlines()
    except FileNotFoundError:
        raise ConfigError(
            f"{folder} has no {METADATA}",
            hint='one line for each image: {"file_name": "a.png", "text": "a caption"}',
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{folder / METADATA} cannot be read: {error}") from error
    problems: list[Problem] = []
    good: list[Mapping[str, Any]] = []
    named: set[str] = set()
    seen: dict[str, str] = {}  # digest of the bytes -> first file
    for entry in _entries(lines, problems):
        name = entry["file_name"]
        problem = _repeated(name, named) or _check(folder, entry, seen)
        named.add(name)
        if problem:
            problems.append(problem)
        else:
            good.append(entry)
    problems += _strangers(folder, named)
    good.sort(key=lambda entry: str(entry["file_name"]))
    return Report(folder=folder, entries=tuple(good), problems=tuple(problems))


def _entries(lines: list[str], problems: list[Problem]) -> Iterator[Mapping[str, Any]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError as error:
            problems.append(_bad_line(number, f"not valid JSON: {error}"))
            continue
        if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str):
            problems.append(_bad_line(number, "no object with a file_name"))
            continue
        yield entry


def _bad_line(number: int, detail: str) -> Problem:
    return Problem(file=METADATA, kind="metadata", detail=f"line {number}: {detail}")


def _repeated(name: str, named: set[str]) -> Problem | None:
    if name in named:
        return Problem(file=name, kind="repeated", detail=f"named twice in {METADATA}")
    return None


def _check(folder: Path, entry: Mapping[str, Any], seen: dict[str, str]) -> Problem | None:
    """The first problem of an item. ``seen`` gains its digest if there is none."""
    name: str = entry["file_name"]
    path = folder / name

    def problem(kind: str, detail: str) -> Problem:
        return Problem(file=name, kind=kind, detail=detail)

    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts or str(relative) != name:
        return problem("outside", "is not a plain path inside the folder")
    if relative.suffix.lower() not in IMAGES:
        return problem("forbidden", f"is not an image ({', '.join(sorted(IMAGES))})")
    if path.is_symlink() or not path.resolve().is_relative_to(folder.resolve()):
        return problem("forbidden", "is a link")
    if not path.is_file():
        return problem("missing", "does not exist")
    texts = entry.get("text")
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list) or not texts:
        return problem("caption", "has no caption")
    if not all(isinstance(text, str) and text.strip() for text in texts):
        return problem("caption", "has an empty caption")
    if not isinstance(entry.get("consent", True), bool):
        return problem("metadata", "consent is neither true nor false")
    try:
        with Image.open(path) as image:
            image.load()  # `verify` does not notice a truncated file
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return problem("unreadable", f"cannot be read as an image: {error}")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    first = seen.setdefault(digest, name)
    return problem("duplicate", f"is the same image as {first}") if first != name else None


def _strangers(folder: Path, named: set[str]) -> Iterator[Problem]:
    """Files that no metadata line names. Hidden ones are left alone, and out."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        hidden = any(part.startswith(".") for part in PurePosixPath(name).parts)
        if name == METADATA or name in named or hidden or (path.is_dir() and not path.is_symlink()):
            continue
        if path.suffix.lower() in IMAGES and not path.is_symlink():
            yield Problem(file=name, kind="unlisted", detail=f"is not named in {METADATA}")
        else:
            yield Problem(
                file=name,
                kind="forbidden",
                detail="does not belong into a dataset (images and metadata.jsonl only)",
            )
