"""How other processes of the workspace ask the scorer to embed texts and pictures."""

from __future__ import annotations

import base64
from collections.abc import Sequence

import httpx
import numpy as np
from numpy.typing import NDArray

from intonaco.errors import BackendError
from intonaco.workspace import Workspace

BATCH = 256
IMAGES = 2  # pictures in one request, which may hold 16 MiB
TIMEOUT_SECONDS = 30.0


class ScorerClient:
    """Finds the running scorer of a workspace at each call."""

    def __init__(self, workspace: Workspace, *, timeout_s: float = TIMEOUT_SECONDS) -> None:
        self.workspace = workspace
        self.timeout_s = timeout_s

    def embed(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Unit rows [n, d] in the extractor's space. Raises BackendError, retriable when the scorer
        does not run or does not answer."""
        return self._vectors("texts", texts, BATCH)

    def embed_images(self, pngs: Sequence[bytes]) -> NDArray[np.float64]:
        """Unit rows [n, d] of pictures. Raises BackendError."""
        encoded = [base64.b64encode(png).decode() for png in pngs]
        return self._vectors("images", encoded, IMAGES)

    def _vectors(self, name: str, values: Sequence[str], batch: int) -> NDArray[np.float64]:
        process = self.workspace.process("scorer")
        if process is None or process.url is None:
            raise BackendError(
                "the scorer does not run",
                backend="scorer",
                retriable=True,
                hint="`intonaco up` starts it; its log is logs/scorer.log",
            )
        rows: list[list[float]] = []
        headers = {"authorization": f"Bearer {self.workspace.admin_token()}"}
        try:
            with httpx.Client(timeout=self.timeout_s, headers=headers, trust_env=False) as client:
                for start in range(0, len(values), batch):
                    body = {name: list(values[start : start + batch])}
                    answer = client.post(f"{process.url}/embed", json=body)
                    if answer.status_code != 200:
                        raise BackendError(
                            f"the scorer answered {answer.status_code}: {answer.text[:200]}",
                            backend="scorer",
                            retriable=answer.status_code >= 500,
                        )
                    rows += answer.json()["vectors"]
        except httpx.HTTPError as error:
            raise BackendError(
                f"the scorer does not answer: {type(error).__name__}",
                backend="scorer",
                retriable=True,
            ) from error
        return np.array(rows, dtype=np.float64)
