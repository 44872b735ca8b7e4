"""What is served and what it learns from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from intonaco.types.vocabulary import Json


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingSpec:
    """Everything that decides an image in service. Its canonical JSON's sha256 is the release id.

    ``weights`` maps each file of the pipeline folder (weights and configuration, POSIX relative
    path) to the sha256 of its bytes.
    """

    pipeline_class: str
    weights: Mapping[str, str]
    scheduler: str
    generation: Mapping[str, Json]  # steps, guidance_scale, width, height
    adapters: tuple[str, ...] = ()
    fused: bool = False
    dtype: str = "float32"
    attention: str = "default"  # diffusers' attention backend
    compile: bool = False
    options: tuple[str, ...] = ()  # of "channels_last", "vae_slicing", "vae_tiling", sorted
    safety_filter: str = "none"
    environment: str = ""  # lock digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Where a release comes from. Not part of its id."""

    created_at: float
    parent: str | None = None
    recipe: str | None = None
    dataset_version: str | None = None
    training_job: str | None = None
    update_id: str | None = None
    code_revision: str | None = None
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    release_id: str
    service_id: str
    serving: ServingSpec
    provenance: Provenance
    path: str  # folder of the pipeline, relative to the workspace

    @property
    def short(self) -> str:
        return self.release_id[:10]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayMix:
    """How old data was mixed in against forgetting, so that it can be drawn again: ``share`` asked
    for (where a model made too many of the new items, the share that it then came to),
    ``sampling``, ``seed``; ``new`` and ``replayed`` items drawn, the latter by ``topics``."""

    share: float
    sampling: Literal["uniform", "topic"]
    seed: int
    new: int
    replayed: int
    topics: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetVersion:
    """A content-addressed set of (image, caption) items.

    ``version`` is the sha256 of the sorted list of (path, sha256) pairs, metadata included;
    ``dvc_md5`` the id that DVC gives the same tree (without the ``.dir`` ending), ``source_ids``
    those that it gives to what the version was made from, where that is something else: shards,
    parquet files, a table of metadata, a folder of which items were left out.
    """

    version: str
    dvc_md5: str
    name: str
    items: int
    bytes: int
    topics: Mapping[str, int] = field(default_factory=dict)  # items per topic
    parents: tuple[str, ...] = ()
    replay: float = 0.0  # share of items replayed from the parents
    created_at: float = 0.0
    source_ids: tuple[str, ...] = ()
    mix: ReplayMix | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetDiff:
    """Paths from one version to another. ``new``: of the second, those whose content the first has
    under no path: what only moved is added, and not new."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]
    new: tuple[str, ...]
