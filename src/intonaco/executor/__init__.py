"""Does the effects that states ask for. Every one may be tried again and comes out the same.

``Executor.run`` looks at an effect once and returns ``Pending``, ``Done`` or ``Failed``; it never
waits for long work. Long work is a job that the training backend keeps under the effect's key, so
that a controller that was killed finds it again instead of starting a second.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from intonaco.errors import BackendError, IntonacoError
from intonaco.executor import data, models, probes, proof, review, service, training
from intonaco.executor.evaluating import check_evaluable
from intonaco.executor.parts import Done, Failed, Outcome, Parts, Pending
from intonaco.ledger import Effect

__all__ = ["Done", "Executor", "Failed", "Outcome", "Parts", "Pending"]


class Executor:
    """One look at one effect."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self._kinds: Mapping[str, Callable[[Parts, Effect], Outcome]] = {
            "dataset": _dataset,
            "train": training.train,
            "assemble": models.assemble,
            "evaluate": proof.evaluate,
            "review": review.review,
            "register": proof.register,
            "stage": service.Stage(),
            "retire": service.retire,
            "probe": probes.probe,
            "labelled": data.labelled,
            "check_data": data.check,
        }

    def run(self, effect: Effect) -> Outcome:
        """Raises BackendError with ``retriable`` for trouble that may pass; anything else that a
        person can mend comes back as ``Failed``."""
        try:
            return self._kinds[effect.kind](self.parts, effect)
        except BackendError as error:
            if error.retriable:
                raise
            return Failed(str(error))
        except IntonacoError as error:
            return Failed(str(error))


def _dataset(parts: Parts, effect: Effect) -> Outcome:
    """The first effect of whatever trains: what cannot be evaluated afterwards is not trained."""
    check_evaluable(parts)
    return data.dataset(parts, effect)
