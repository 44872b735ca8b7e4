"""A check as the configuration asks for it, and what is kept of it beside the version::

datasets/checks/VERSION/report.json      counts, verdict, the first names of each kind
datasets/checks/VERSION/problems.jsonl   every finding, a line each
datasets/checks/VERSION/report.html      the same for people, with the pairs that look alike
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from intonaco.config import JUDGED, KINDS, Config, Data
from intonaco.datasets import curation
from intonaco.datasets.objects import staging
from intonaco.datasets.picturing import page
from intonaco.datasets.tokens import tokens_of
from intonaco.datasets.validation import Problem, Report, Rules, held_out, validate
from intonaco.errors import ConfigError, StorageError
from intonaco.evaluation.prompts import Prompt, read_prompts
from intonaco.ledger import Ledger
from intonaco.releases import ReleaseStore
from intonaco.sources import is_remote
from intonaco.types import DatasetVersion, Json
from intonaco.workspace import Workspace, write_atomic

log = logging.getLogger(__name__)

NAMES = 20  # of each kind, in the report; all are in problems.jsonl
SIDE_SHARE = 4  # an image of a quarter of what is served has nothing to teach it


def rules_of(config: Config, workspace: Workspace, pipeline: Path | None = None) -> Rules:
    """The rules of a service, with what it holds out. ``pipeline``: the folder whose tokenizers
    will read the captions. Raises ConfigError if the evaluation's prompts cannot be read."""
    bounds = config.data.bounds
    size = config.model.generation
    tokens = tokens_of(pipeline) if pipeline is not None else None
    reference, prompts = config.data.reference, config.evaluation.prompts
    asked: tuple[Prompt, ...] = ()
    if prompts is not None:
        try:
            asked = read_prompts(workspace.resolve(prompts))
        except ConfigError:  # of no concern here, unless it decides; the evaluation tells of it
            if config.data.policy("prompt_leak") != "warn":
                raise
    rules = Rules(
        data=config.data,
        min_side=bounds.min_side or max(1, min(size.width, size.height) // SIDE_SHARE),
        most=bounds.caption_chars,
        held_out=held_out(
            workspace.resolve(reference) if reference is not None else None,
            (p.prompt for p in asked),
            max_pixels=bounds.max_pixels,
        ),
    )
    if tokens is None:
        return rules
    return Rules(
        data=rules.data,
        min_side=rules.min_side,
        count=tokens.count,
        unit="tokens",
        most=bounds.caption_tokens or tokens.most,
        held_out=rules.held_out,
    )


def storing(data: Data) -> Rules:
    """What a store checks once more of a folder that was checked: nothing that is a matter of
    judgement, which was decided with more knowledge."""
    checks = {kind: policy for kind, policy in data.checks.items() if kind not in JUDGED}
    return Rules(data=data.model_copy(update={"checks": checks}))


def pipeline_of(config: Config, workspace: Workspace, ledger: Ledger) -> Path | None:
    """The folder of the model that is trained on next: the champion's, else the one that the
    configuration names; None if neither lies on this disk."""
    champion = ledger.champion()
    if champion is not None:
        path = ReleaseStore(workspace, config.service).get(champion).path
    else:
        path = config.model.path or ""
    folder = workspace.resolve(path)
    return folder if path and not is_remote(path) and folder.is_dir() else None


class Check:
    """A store's ``check``: refuses a folder by the rules, and writes down what it found while the
    files are there. ``keep`` the report once the version is known. Give the store
    ``on_invalid="drop"``: it leaves out what the report has as problems. ``source``: what a person
    knows the folder by, where it is one that was made of something else."""

    def __init__(
        self, rules: Rules, workspace: Workspace, at: float, source: Path | None = None
    ) -> None:
        self.rules = rules
        self.workspace = workspace
        self.at = at
        self.source = source
        self._report: Mapping[str, str] = {}

    def __call__(self, folder: Path) -> Report:
        """Raises ConfigError that names the first offending file."""
        report = validate(folder, self.rules)
        replace(report, folder=self.source or folder).raise_if_invalid()
        self._report = written(report, self.rules, self.at)
        return report

    def keep(self, version: str) -> None:
        """The last report is of this version; none was made if the store knew it already. Raises
        StorageError."""
        try:
            _write(self._report, kept(self.workspace, version))
        except OSError as error:
            raise StorageError(
                f"{kept(self.workspace, version)} cannot be written: {error.strerror}",
                hint="the version is there; `intonaco dataset check` writes its report again",
            ) from error


def put(
    store: Callable[[Path], DatasetVersion],
    folder: Path,
    rules: Rules,
    workspace: Workspace,
    at: float,
) -> tuple[DatasetVersion, Report]:
    """Check a folder, leave out what is to be dropped, have the rest stored, and keep the report
    beside the version: whatever the store checks itself. Raises ConfigError that names the first
    offending file."""
    report = validate(folder, rules)
    report.raise_if_invalid()
    with staging(workspace.datasets) as scratch:
        if report.problems:
            counts = dict(report.counts)
            log.warning("left out: %s", counts, extra={"action": "dataset.drop"})
            version = store(clean_copy(report, scratch / "items"))
        else:
            version = store(folder)
    keep(report, rules, kept(workspace, version.version), at)
    return version, report


def clean_copy(report: Report, target: Path) -> Path:
    """The items that stay, as a folder of their own: hard links where the disk allows, and the
    metadata's lines as they were. Raises ConfigError if none does."""
    if not report.entries:
        raise ConfigError(
            f"{report.folder} has no usable items",
            hint=", ".join(f"{n} {kind}" for kind, n in sorted(report.counts.items())),
        )
    target.mkdir(parents=True)
    for entry in report.entries:
        name = str(entry["file_name"])
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        curation.link(report.folder / name, target / name)
    lines = "".join(f"{json.dumps(entry)}\n" for entry in report.entries)
    (target / curation.METADATA).write_text(lines)
    return target


def facts(report: Report, rules: Rules, at: float) -> Mapping[str, Json]:
    """The report as JSON. "verdict": "fail" if the folder is refused, as one is of which no item
    stays, else "pass"; "kinds": of those that were found, {"policy", "count", "names": the first};
    "policies": of all kinds."""
    found: dict[str, list[Problem]] = {}
    for problem in (*report.problems, *report.warnings):
        found.setdefault(problem.kind, []).append(problem)
    return {
        "at": at,
        "verdict": "fail" if report.failures or not report.entries else "pass",
        "items": report.items,
        "kept": len(report.entries),
        "left_out": sorted({p.file for p in report.problems})[:NAMES],
        "left_out_count": len({p.file for p in report.problems}),
        "kinds": {
            kind: {
                "policy": found[kind][0].policy,
                "count": len(found[kind]),
                "names": [p.file for p in found[kind][:NAMES]],
            }
            for kind in KINDS
            if kind in found
        },
        "policies": {kind: rules.data.policy(kind) for kind in KINDS},
        "bounds": {
            "min_side": rules.min_side,
            "max_aspect": rules.data.bounds.max_aspect,
            "max_pixels": rules.data.bounds.max_pixels,
            "caption": rules.most,
            "caption_unit": rules.unit,
            "near_bits": rules.data.bounds.near_bits,
        },
        "held_out": {
            "images": len(rules.held_out.files),
            "prompts": len(rules.held_out.prompts),
        },
    }


def keep(report: Report, rules: Rules, folder: Path, at: float) -> None:
    """Write a report; the checked folder must still be there, for its pictures. An earlier
    one is replaced."""
    _write(written(report, rules, at), folder)


def written(report: Report, rules: Rules, at: float) -> Mapping[str, str]:
    """The files of a report. The checked folder must still be there, for its pictures."""
    told = facts(report, rules, at)
    lines = (
        json.dumps(
            {"file": p.file, "kind": p.kind, "policy": p.policy, "detail": p.detail}
            | ({"other": p.other} if p.other else {})
        )
        for p in (*report.problems, *report.warnings)
    )
    return {
        "problems.jsonl": "".join(f"{line}\n" for line in lines),
        "report.html": page(report, told),
        "report.json": json.dumps(told),  # last: a report is there when this is
    }


def _write(files: Mapping[str, str], folder: Path) -> None:
    for name, text in files.items():
        write_atomic(folder / name, text)


def kept(workspace: Workspace, version: str) -> Path:
    """Where the report of a version lies, if it was checked."""
    return workspace.datasets / "checks" / version
