"""What every registry writes beside a release, so that all of them say the same."""

from __future__ import annotations

from collections.abc import Mapping

from intonaco.types import Release

RELEASE_ID = "intonaco.release_id"


def release_tags(release: Release, tags: Mapping[str, str]) -> dict[str, str]:
    """Tags of a published release: its id, its provenance as far as it is known, and ``tags``
    (the verdict, say). Ours are named ``intonaco.*`` and win over the caller's."""
    provenance = release.provenance
    ours = {
        RELEASE_ID: release.release_id,
        "intonaco.service": release.service_id,
        "intonaco.pipeline": release.serving.pipeline_class,
        "intonaco.dataset_version": provenance.dataset_version,
        "intonaco.training_job": provenance.training_job,
        "intonaco.recipe": provenance.recipe,
        "intonaco.update": provenance.update_id,
        "intonaco.parent": provenance.parent,
        "intonaco.code_revision": provenance.code_revision,
    }
    return {**tags, **{name: value for name, value in ours.items() if value}}
