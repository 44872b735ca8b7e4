"""Records the upgrade fixtures of this version, in place of those that it has::

    PYTHONPATH=src:. python tests/upgrade/record.py

One file for each moment of an update and a rollout goes to ``tests/fixtures/upgrade/VERSION``. The
same code gives the same bytes. Record again whenever the stored form of anything changes before the
version is released; never touch those of a version that was released: they are what its users have
on disk, and ``tests/integration/test_upgrade.py`` shows that the present code finishes them.
"""

from __future__ import annotations

import logging
import shutil
import sys
import tempfile
from pathlib import Path

from tests.upgrade import story

from intonaco import __version__


def main() -> None:
    logging.disable(logging.CRITICAL)
    folder = story.FOLDER / __version__
    shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory() as made:
        found = story.record(Path(made))
    for name, recording in found.items():
        story.write(recording, folder / f"{name}.json.gz")
    sizes = {name: (folder / f"{name}.json.gz").stat().st_size for name in found}
    sys.stdout.write("".join(f"{size:>7} {name}\n" for name, size in sizes.items()))


if __name__ == "__main__":
    main()
