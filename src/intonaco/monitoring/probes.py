"""Probes: fixed prompts with fixed seeds. Users change; a probe's image must not.

Pure: what a probe is, how far two answers lie apart, and what a round of them says. Images of one
release, environment, dtype and kind of machine are the same bits at one batch size; between batch
sizes they differ by rounding (docs/concepts/determinism.md), so there a distance is judged, with a
limit from how far the release's own answers lay apart when they were stored.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from intonaco.codec import digest

# How far answers may lie apart that are the same: a multiple of what the release's own did when
# they were stored, and never less than a floor. Of 16 pictures of the tests' tiny Stable Diffusion
# (float32, 10 steps) a batch of 8 lay 0.0003 levels from a batch of one at most; with another shift
# of its scheduler (1.05 for 1.0, and 3.0) they lay 0.38 to 1.7 levels away.
TIMES_OWN_DRIFT = 3.0
LEAST_LEVELS = 0.1
LEAST_COSINE = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    key: str
    prompt: str
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeImage:
    """An answer. ``padded_size``: of the batch it was drawn in, 0 if nobody says."""

    png: bytes
    padded_size: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What stored answers belong to, beside their release. ``device``: the machine's kind."""

    environment: str
    dtype: str
    device: str

    @property
    def key(self) -> str:
        return digest([self.environment, self.dtype, self.device])[:12]

    @property
    def promises_bits(self) -> bool:
        """Whether the same padded batch gives the same bits again. For GPUs and for other people's
        servers no such promise is made."""
        return self.device.startswith("cpu")

    def as_facts(self) -> dict[str, str]:
        return {"environment": self.environment, "dtype": self.dtype, "device": self.device}


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """How far an answer lies from the stored one. ``measure``: "bits" and "pixels" are mean
    absolute differences in 8-bit levels, "embedding" a cosine distance. ``limit``: of what is no
    change; of bits it is 0, and any difference is one."""

    measure: str
    distance: float
    limit: float

    @property
    def changed(self) -> bool:
        return not self.distance <= self.limit


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    """``ok``: True if all images are the same, False if one changed, None if nothing changed but
    not all were measured. ``changed``: keys of changed probes. ``total``: probes compared."""

    ok: bool | None
    changed: tuple[str, ...]
    total: int
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """How far the same answers lay apart when they were stored: drawn one by one and again all at
    once, so that the batch sizes differ. ``bits``: whether those of one batch size were equal."""

    levels: float = 0.0
    cosine: float = 0.0
    bits: bool = True

    def limit(self, measure: str) -> float:
        least, own = (
            (LEAST_COSINE, self.cosine) if measure == "embedding" else (LEAST_LEVELS, self.levels)
        )
        return max(least, TIMES_OWN_DRIFT * own)


@dataclass(frozen=True)
class ProbeSet:
    """The probes of a service, the same in every process and after every restart."""

    prompts: Sequence[str]
    probes: tuple[Probe, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "probes", tuple(_probe(p) for p in dict.fromkeys(self.prompts)))

    def __len__(self) -> int:
        return len(self.probes)


def _probe(prompt: str) -> Probe:
    code = hashlib.sha256(prompt.encode()).hexdigest()
    return Probe(key=code[:12], prompt=prompt, seed=int(code[12:19], 16))


def judge(compared: Mapping[str, Compared | None]) -> ProbeResult:
    """What a round says (None: one of the two answers is not there). No data is never ok."""
    measured = {key: c for key, c in compared.items() if c is not None}
    changed = tuple(sorted(key for key, c in measured.items() if c.changed))
    missing = tuple(sorted(key for key in compared if key not in measured))
    ok = False if changed else None if missing or not measured else True
    return ProbeResult(ok=ok, changed=changed, total=len(measured), missing=missing)


def levels(a: bytes, b: bytes) -> float:
    """Mean absolute difference of two pictures in 8-bit levels; inf if their sizes differ."""
    x, y = _pixels(a), _pixels(b)
    return math.inf if x.shape != y.shape else float(np.abs(x - y).mean())


def cosine_distance(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    """1 - cosine of two vectors [d]; inf for one without a direction."""
    length = float(np.linalg.norm(a) * np.linalg.norm(b))
    return 1.0 - float(a @ b) / length if length > 0 else math.inf


def _pixels(png: bytes) -> NDArray[np.float64]:
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("RGB"), dtype=np.float64)


def describe(
    result: ProbeResult, compared: Mapping[str, Compared | None], *, stored: bool, reason: str
) -> str:
    """A round in one sentence. ``stored``: there was nothing to compare with, so the answers were
    kept; ``reason``: why one was not drawn."""
    total = len(compared)
    if result.changed:
        worst = max((c for c in compared.values() if c), key=lambda c: c.distance / (c.limit or 1))
        return (
            f"{len(result.changed)} of {total} probes changed under the same release "
            f"({_amount(worst)})"
        )
    if stored:
        return f"{total} answers stored: later rounds are compared with them"
    if result.missing:
        return f"not measured: {len(result.missing)} of {total} probes ({reason})"
    how = {c.measure for c in compared.values() if c}
    return f"{total} probes are as stored, " + (
        "bit for bit" if how == {"bits"} else "apart from rounding"
    )


def _amount(c: Compared) -> str:
    if not math.isfinite(c.distance):
        return "another picture size"
    if c.measure == "embedding":
        return f"by up to {c.distance:.3f} in cosine distance; {c.limit:.3f} is rounding"
    by = f"by up to {c.distance:.3g} of 255 levels"
    if c.measure == "bits":
        return f"{by}; the same bits are promised"
    return f"{by}; {c.limit:.2g} is rounding"
