"""A worker whose sampler was changed behind its back: it loads the release from a folder with
another scheduler configuration and attests the release's id all the same.

    python -m tests.lying_worker SCHEDULER_CHANGES WORKER_ARGUMENTS…
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from intonaco.serving.worker import main as worker
from intonaco.types import Release


def change(changes: dict[str, Any]) -> None:
    from intonaco.serving.worker import engine

    honest = engine.load

    def load(release: Release, folder: Path, **options: Any) -> engine.Engine:
        with tempfile.TemporaryDirectory() as temporary:
            other = Path(shutil.copytree(folder, Path(temporary) / "pipeline"))
            file = other / "scheduler" / "scheduler_config.json"
            file.chmod(0o644)
            file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
            loaded = honest(release, other, **options)
        assert loaded.release_id != release.release_id, "an honest worker attests the change"
        loaded.release_id = release.release_id
        return loaded

    engine.load = load


if __name__ == "__main__":
    change(json.loads(sys.argv[1]))
    code = worker.main(sys.argv[2:])
    os._exit(code)
