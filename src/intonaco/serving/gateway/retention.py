"""Deleting what is older than the service keeps: pictures, records, scores, feedback and tallies.

Ages are told by names and by the last write, so nothing is opened. The newest segment of a writer
is never deleted (it may be open); ``SegmentWriter.roll`` once a day keeps it young. A segment of
records that the scorer has not read to its end stays, however old; where a service has a scorer
that has never run, all of them do. Who has read the scores is written in the ledger, which a
gateway cannot see: they, the feedback and the tallies go by age alone. Datasets, findings in the
ledger and what registries or trackers were given are not touched.
"""

from __future__ import annotations

import calendar
import contextlib
import json
import logging
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

from intonaco.segment_log import Offset, expired
from intonaco.workspace import Workspace

log = logging.getLogger(__name__)

DAY_S = 86_400.0
MINUTE_S = 60.0


def expired_minutes(names: Iterable[str], cutoff: float) -> list[str]:
    """Of folders named YYYYMMDD/HHMM (UTC), those whose minute ended before the cutoff. Others are
    not ours to judge."""
    found = []
    for name in names:
        try:
            minute = calendar.timegm(time.strptime(name, "%Y%m%d/%H%M"))
        except ValueError:
            continue
        if minute + MINUTE_S <= cutoff:
            found.append(name)
    return found


def prune(workspace: Workspace, now: float, days: float, *, scored: bool = False) -> int:
    """Delete what is older than ``days``; returns how many files and folders went. ``scored``: the
    service has a scorer, so that its records wait for it even if it has never run."""
    cutoff = now - days * DAY_S
    gone = 0
    for pictures in (workspace.images, workspace.conditions):
        minutes = [p.relative_to(pictures).as_posix() for p in pictures.glob("*/*")]
        for name in expired_minutes(minutes, cutoff):
            shutil.rmtree(pictures / name, ignore_errors=True)
            gone += 1
        for day in pictures.glob("[0-9]*"):
            _remove_empty(day)
    for root, readers in (
        (workspace.records, _read(workspace, scored)),
        (workspace.scores, []),
        (workspace.feedback, []),
        (workspace.tallies, []),
    ):
        with contextlib.suppress(FileNotFoundError):  # another gateway is at it
            for path in expired(root, cutoff, readers):
                path.unlink()
                gone += 1
    log.info(
        "deleted %d files and folders older than %g days",
        gone,
        days,
        extra={"action": "gateway.prune", "deleted": gone},
    )
    return gone


def _read(workspace: Workspace, scored: bool) -> list[Offset]:
    """How far the scorer has read the records, if there is a scorer."""
    try:
        offset = json.loads((workspace.run / "scorer-offset.json").read_text())
        return [{str(k): int(v) for k, v in offset["records"].items()}]
    except FileNotFoundError:
        return [{}] if scored else []
    except (ValueError, KeyError, TypeError, AttributeError):
        return [{}]  # there was one, and nobody knows how far it is: keep


def _remove_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:
        return
