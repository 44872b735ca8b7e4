"""What changed between two dataset versions, for a person: images, captions, topics. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicChange:
    """Items of one topic: how many came, went, stayed under it with another image or caption, and
    how many there are now."""

    added: int = 0
    removed: int = 0
    changed: int = 0
    items: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemDiff:
    """File names of items. ``moved``: the same image under another name, (old, new); ``images`` and
    ``captions``: another image or caption under the same name; ``facts``: only other metadata, such
    as the topic or the consent. ``topics``: there, an item that changed its topic went from one and
    came to the other."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    moved: tuple[tuple[str, str], ...] = ()
    images: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()
    facts: tuple[str, ...] = ()
    topics: Mapping[str, TopicChange] = field(default_factory=dict)


Items = Mapping[str, tuple[str, Mapping[str, Any]]]  # name -> (sha256 of the image, metadata)


def compare(old: Items, new: Items) -> ItemDiff:
    """From one version's items to another's."""
    both = sorted(old.keys() & new.keys())
    added, removed = sorted(new.keys() - old.keys()), sorted(old.keys() - new.keys())
    gone = {old[name][0]: name for name in reversed(removed)}  # the first of equal ones
    moved = []
    for name in added:
        if (before := gone.pop(new[name][0], None)) is not None:
            moved.append((before, name))
    pairs = [*((name, name) for name in both), *moved]
    captions = {n for o, n in pairs if _captions(old[o][1]) != _captions(new[n][1])}
    images = {name for name in both if old[name][0] != new[name][0]}
    facts = [
        n
        for o, n in pairs
        if _facts(old[o][1]) != _facts(new[n][1]) and n not in captions and n not in images
    ]
    departed, arrived = {o for o, _ in moved}, {n for _, n in moved}
    diff = ItemDiff(
        added=tuple(n for n in added if n not in arrived),
        removed=tuple(n for n in removed if n not in departed),
        moved=tuple(moved),
        images=tuple(sorted(images)),
        captions=tuple(sorted(captions)),
        facts=tuple(sorted(facts)),
    )
    return replace(diff, topics=_topics(old, new, diff, pairs))


def _topics(
    old: Items, new: Items, diff: ItemDiff, pairs: list[tuple[str, str]]
) -> dict[str, TopicChange]:
    def topic(items: Items, name: str) -> str:
        return str(items[name][1].get("topic", ""))

    came = Counter(topic(new, name) for name in diff.added)
    went = Counter(topic(old, name) for name in diff.removed)
    changed = Counter[str]()
    other = {*diff.images, *diff.captions}
    for before, after in pairs:
        if topic(old, before) != topic(new, after):
            went[topic(old, before)] += 1
            came[topic(new, after)] += 1
        elif after in other:
            changed[topic(new, after)] += 1
    now = Counter(topic(new, name) for name in new)
    return {
        name: TopicChange(
            added=came[name], removed=went[name], changed=changed[name], items=now[name]
        )
        for name in sorted({*came, *went, *changed, *now})
    }


def _captions(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    text = entry.get("text")
    return tuple(text) if isinstance(text, list) else (text,)


def _facts(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key not in ("text", "file_name")}
