"""``python -I torchscript_child.py MODULE PIXELS.npy BATCH THREADS``: features on standard output.

Run by ``torchscript.py`` as a file, so that it needs nothing of this package.
"""

from __future__ import annotations

import io
import os
import resource
import sys
from typing import Any

import numpy as np
import torch


def main(module: str, pixels: str, batch: int, threads: int) -> None:
    out = os.dup(1)
    os.dup2(2, 1)  # what the module prints is no answer
    torch.set_num_threads(threads)
    given = np.load(pixels, allow_pickle=False)
    for limit in (resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
        resource.setrlimit(limit, (0, 0))
    model = torch.jit.load(module, map_location="cpu").eval()  # type: ignore[no-untyped-call]
    named = {"return_features": True} if "return_features" in _arguments(model) else {}
    rows = []
    with torch.inference_mode():
        for i in range(0, len(given), batch):
            features = model(torch.from_numpy(given[i : i + batch]), **named)
            rows.append(features.reshape(features.shape[0], -1).float().numpy())
    answer = io.BytesIO()
    np.lib.format.write_array(answer, np.concatenate(rows), allow_pickle=False)
    with os.fdopen(out, "wb") as file:
        file.write(answer.getvalue())


def _arguments(model: torch.jit.ScriptModule) -> list[str]:
    schema: Any = getattr(model.forward, "schema", None)
    return [] if schema is None else [a.name for a in schema.arguments]


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
