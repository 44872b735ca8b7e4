"""Looking at an arm's images: features, adherence, and what else a comparison takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from intonaco.evaluation.arms import ArmImages
from intonaco.evaluation.cache import EvaluationCache, extractor_digest, pixels_digest
from intonaco.evaluation.features import cosines
from intonaco.evaluation.order import Unsafe
from intonaco.evaluation.pixels import log_detail
from intonaco.evaluation.prompts import Shot
from intonaco.monitoring.heads import Heads
from intonaco.protocols import FeatureExtractor, Matrix

Images = NDArray[np.uint8]
Values = NDArray[np.float64]
CLIP = "clip"  # the extractor's own score


class Looking:
    """Looks at arms that drew the same shots with one extractor. ``skipped`` gathers what could
    not be measured, with the reason, by metric."""

    def __init__(
        self,
        extractor: FeatureExtractor,
        shots: Sequence[Shot],
        *,
        heads: Heads,
        unsafe: Unsafe | None,
        cache: EvaluationCache,
    ) -> None:
        self.extractor = extractor
        self.shots = shots
        self.heads = heads
        self.unsafe = unsafe
        self.cache = cache
        self.digest = extractor_digest(extractor)
        self.skipped: dict[str, str] = {}
        self.slices = tuple(dict.fromkeys(s.prompt.slice for s in shots))
        self.texts: Matrix = extractor.texts([s.prompt.prompt for s in shots])

    def arm(self, images: Images) -> ArmImages:
        """``images``: one a shot, uint8 [n, h, w, 3]. Raises ConfigError for a head that does not
        fit the extractor."""
        features = self.cache.features(
            self.extractor,
            pixels_digest(images),
            len(images),
            lambda: np.asarray(self.extractor.images(list(images))),
        )
        adherence = cosines(features, self.texts).astype(np.float64)
        scores = self._scores(images, features)
        return ArmImages(
            prompt_ids=tuple(s.prompt.prompt_id for s in self.shots),
            slices=tuple(s.prompt.slice for s in self.shots),
            adherence=adherence,
            features=features.astype(np.float64),
            scores=scores,
            hits=self._hits(features),
            detail=log_detail(images) if min(images.shape[1:3]) >= 3 else None,
            unsafe=self._unsafe({CLIP: adherence, **scores}),
            extractor=self.digest,
        )

    def _scores(self, images: Images, features: Matrix) -> dict[str, Values]:
        """Numbers of each head, of those that gave one for every image."""
        if not self.heads.scorers:
            return {}
        found = self.heads.score(
            [Image.fromarray(image) for image in images],
            [s.prompt.prompt for s in self.shots],
            features,
        )
        out = {}
        for name in self.heads.scorers:
            missing = sum(name not in one for one in found)
            if missing:
                self.skipped[f"score:{name}"] = f"the head gave no number for {missing} images"
            else:
                out[name] = np.array([one[name] for one in found], dtype=np.float64)
        return out

    def _unsafe(self, scores: Mapping[str, Values]) -> NDArray[np.bool_] | None:
        if self.unsafe is None:
            return None
        values = scores.get(self.unsafe.score)
        if values is None:
            self.skipped["unsafe"] = f"there is no score {self.unsafe.score!r}"
            return None
        found: NDArray[np.bool_] = values > self.unsafe.above
        return found

    def _hits(self, features: Matrix) -> NDArray[np.bool_]:
        """Whether each image is nearer to its slice's prompts than to others' [n]."""
        slices = np.array([s.prompt.slice for s in self.shots])
        centres = np.stack([self.texts[slices == s].mean(0, dtype=np.float64) for s in self.slices])
        centres /= np.linalg.norm(centres, axis=1, keepdims=True)
        nearest = np.array(self.slices)[(features @ centres.T).argmax(1)]
        hit: NDArray[np.bool_] = nearest == slices
        return hit
