"""What the demo tells of the ledger: each event once, each job's progress as it goes."""

from __future__ import annotations

import time
from typing import Any

from intonaco import readmodel
from intonaco.console.present import words
from intonaco.demo.view import DemoView
from intonaco.jobs import JobFolder, job_folder
from intonaco.ledger import Ledger
from intonaco.types import Event, Finding, Phase, Update
from intonaco.workspace import Workspace

_JOBS = ("train", "evaluate")


class Narrator:
    """``ask``: a person approves, and is told how."""

    def __init__(self, workspace: Workspace, view: DemoView, *, ask: bool) -> None:
        self.workspace, self.view, self._approves = workspace, view, ask
        self._told = 0  # the last event
        self._asked_for: set[str] = set()  # updates

    def tell(self, ledger: Ledger, *, changed_after: int) -> None:
        """Whatever is new. ``changed_after``: requests that the monitors had seen when users
        changed."""
        for event in ledger.events(after=self._told):
            self._told = event.event_id
            self._tell_event(ledger, event, changed_after)
        for update in ledger.active_updates():
            self._tell_jobs(ledger, update)
            if update.phase is Phase.APPROVE and self._approves:
                self._ask(update)

    def progress(self, key: str, label: str, progress: Any) -> None:
        """A bar for what a job has written of itself, if anything."""
        if progress:
            self.view.progress(
                key,
                f"{label}: {progress['phase']}",
                int(progress["step"]),
                int(progress["total"]),
                str(progress.get("text", "")),
            )

    def _tell_event(self, ledger: Ledger, event: Event, changed_after: int) -> None:
        if event.kind == "finding":
            text, *more = _finding_lines(ledger, event, changed_after)
            self.view.event(event.at, event.kind, text, more)
        elif event.kind != "routing":
            self.view.event(event.at, event.kind, event.text)

    def _ask(self, update: Update) -> None:
        if update.update_id not in self._asked_for:
            self._asked_for.add(update.update_id)
            self.view.event(
                time.time(),
                "approval",
                f"waiting for you: intonaco update approve {update.update_id} "
                f"-w {self.workspace.root}",
            )

    def _tell_jobs(self, ledger: Ledger, update: Update) -> None:
        for key, status in ledger.effects(update.update_id).items():
            if status.effect.kind not in _JOBS:
                continue
            name = str(status.effect.payload["name"])
            label = f"{status.effect.kind} {'' if name == 'all' else name}".strip()
            if status.status == "wanted":
                folder = JobFolder(job_folder(self.workspace, key))
                self.progress(key, label, folder.read("progress"))
            else:
                self.view.done(key)


def _finding_lines(ledger: Ledger, event: Event, changed_after: int) -> list[str]:
    """What moved; on what evidence; what is asked for. To be judged in ten seconds."""
    found = ledger.find(Finding, event.subject)
    if found is None:
        return [event.text]
    if found.of == "probe":
        return [readmodel.headline(found), found.text]
    lines = [
        readmodel.headline(found),
        f"{words(found.signal)}: evidence {found.evidence:.1f} of {found.threshold:.1f}, "
        f"{event.data['request'] - changed_after} requests after users changed",
    ]
    asked = [c.sample_prompts[0] for c in found.clusters if c.moved and c.sample_prompts]
    if asked:
        lines.append("asked for now: " + "; ".join(f"“{p}”" for p in asked[:4]))
    return lines
