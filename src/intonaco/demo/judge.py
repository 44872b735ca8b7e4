"""An independent judge of the demo's images: it shares no data and no model with the scorer, the
gate or the generator, so that it can say afterwards whether the loop's decisions were right."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from sklearn.svm import SVC

from intonaco.demo.data import shrink


class Judge:
    """A support vector machine on 8x8 average-pooled grey pixels, fitted to the judge's own part of
    the real digits."""

    def __init__(self, svm: SVC) -> None:
        self._svm = svm

    @classmethod
    def fit(cls, npz: Path | str) -> Self:
        """Fit to ``images`` uint8 [n, 32, 32, 3] and ``labels`` int [n] of the file."""
        with np.load(Path(npz), allow_pickle=False) as file:
            images, labels = file["images"], file["labels"]
        svm = SVC(C=10.0, gamma="scale")
        svm.fit(shrink(images), labels)
        return cls(svm)

    def read(self, images: NDArray[np.uint8]) -> NDArray[np.int64]:
        """The digit [n] that the judge sees in each image uint8 [n, 32, 32, 3]."""
        if len(images) == 0:
            return np.zeros(0, dtype=np.int64)
        digits: NDArray[np.int64] = self._svm.predict(shrink(images)).astype(np.int64)
        return digits

    def accuracy(
        self, images: NDArray[np.uint8], labels: NDArray[np.integer] | list[int]
    ) -> Mapping[int, float]:
        """Share of the images of each digit asked for that the judge reads as that digit."""
        wanted = np.asarray(labels)
        if len(images) != len(wanted):
            raise ValueError(f"{len(images)} images for {len(wanted)} labels")
        right = self.read(images) == wanted
        return {int(d): float(right[wanted == d].mean()) for d in np.unique(wanted)}
