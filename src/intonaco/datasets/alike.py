"""Images that look alike, among many: pairs of hashes that differ in a few bits.

Of two hashes that differ in at most r bits, cut into r + 1 pieces, at least one piece is the same
in both. So a hash is compared only with those that share a piece with it, found by sorting: for
hashes as they come, few. (Multi-index hashing: Norouzi, Punjani & Fleet, "Fast Search in Hamming
Space with Multi-Index Hashing", CVPR 2012.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

BITS = 64
AT_ONCE = 2**20  # comparisons held in memory
_ONES = np.array([bin(n).count("1") for n in range(2**16)], dtype=np.uint8)

Words = NDArray[np.uint64]
Places = NDArray[np.int64]


def earlier_alike(hashes: Sequence[str], bits: int, *, held: int = 0) -> dict[int, int]:
    """For each place whose hash (64 bits in hex) is within ``bits`` of an earlier one, the first
    such earlier place that is not itself alike to one before. So a chain of small changes does not
    make its ends alike. The first ``held`` places are never found, only compared with. Hashes of
    one tone (zero) and empty ones say nothing, and are like none.

    >>> earlier_alike(["00ff", "0000", "00fe", "f000"], 1)
    {2: 0}
    """
    words = np.array([int(h or "0", 16) for h in hashes], dtype=np.uint64)
    found: dict[int, int] = {}
    first: dict[int, int] = {}  # of each hash, the place that stands for all that have it
    distinct: list[int] = []
    for place, word in enumerate(words.tolist()):
        if not word:
            continue
        if word in first:
            if place >= held:
                found[place] = first[word]
        else:
            first[word] = place
            distinct.append(place)
    places = np.array(distinct, dtype=np.int64)
    alone = np.ones(len(places), dtype=bool)
    for later, earlier in _pairs(words[places], bits):
        if places[later] < held:
            continue
        standing = earlier[alone[earlier]]
        if len(standing):
            found[int(places[later])] = int(places[standing.min()])
            alone[later] = False
    # One that repeats a hash stands with whatever the first of that hash stands with.
    return {place: found.get(its, its) for place, its in sorted(found.items())}


def _pairs(words: Words, bits: int) -> Iterator[tuple[int, Places]]:
    """(place, earlier places within ``bits``), in order of places that have any."""
    pieces = _pieces(words, bits + 1)
    tables = [(np.argsort(piece, kind="stable"), piece) for piece in pieces]
    sorts = [(order, piece[order]) for order, piece in tables]
    for start, end in _blocks(sorts, pieces, len(words)):
        block = np.arange(start, end)
        later, earlier = [], []
        for (order, keys), piece in zip(sorts, pieces, strict=True):
            left = np.searchsorted(keys, piece[block], side="left")
            right = np.searchsorted(keys, piece[block], side="right")
            mine, its = _expand(block, left, right, order)
            near = (its < mine) & (_distance(words[mine], words[its]) <= bits)
            later.append(mine[near])
            earlier.append(its[near])
        one, other = np.concatenate(later), np.concatenate(earlier)
        order = np.argsort(one, kind="stable")
        one, other = one[order], other[order]
        edges = np.flatnonzero(np.diff(one)) + 1
        for group, its in zip(np.split(one, edges), np.split(other, edges), strict=True):
            if len(group):
                yield int(group[0]), np.unique(its)


def _blocks(
    sorts: Sequence[tuple[Places, Words]], pieces: Sequence[Words], n: int
) -> Iterator[tuple[int, int]]:
    """Runs of places whose comparisons fit into memory together."""
    work = np.zeros(n, dtype=np.int64)
    for (_, keys), piece in zip(sorts, pieces, strict=True):
        work += np.searchsorted(keys, piece, side="right") - np.searchsorted(keys, piece)
    start, held = 0, 0
    for place, more in enumerate(work.tolist()):
        if held and held + more > AT_ONCE:
            yield start, place
            start, held = place, 0
        held += more
    if start < n:
        yield start, n


def _expand(block: Places, left: Places, right: Places, order: Places) -> tuple[Places, Places]:
    """Every (place, place with the same piece) as two columns."""
    counts = right - left
    mine = np.repeat(block, counts)
    starts = np.repeat(left - np.concatenate([[0], np.cumsum(counts)[:-1]]), counts)
    return mine, order[starts + np.arange(int(counts.sum()))]


def _pieces(words: Words, n: int) -> list[Words]:
    """``n`` runs of bits that together are all of them."""
    edges = [BITS * k // n for k in range(n + 1)]
    return [(words >> np.uint64(a)) & np.uint64((1 << (b - a)) - 1) for a, b in pairwise(edges)]


def _distance(a: Words, b: Words) -> NDArray[np.uint8]:
    """Bits that differ."""
    parts = (a ^ b).view(np.uint16).reshape(-1, 4)
    total: NDArray[np.uint8] = _ONES[parts].sum(axis=1, dtype=np.uint8)
    return total
