"""Runs benchmarks and writes down what they measured.

``python benchmarks/run.py [NAME ...]``: each ``benchmarks/NAME/bench.py`` answers one question,
asked in its docstring, by a function ``run() -> dict[str, float]`` from names with their unit
(``p50_ms``) to values. The names get the folder's in front, unless the module says
``FULL_NAMES = True`` and gives them whole. Results go to ``results.json``, dotted name -> {value,
command, date, hardware}, and to ``RESULTS.md`` for people. Results of benchmarks that were not run
stay as they were, with their own date and hardware. One that fails leaves its old results and
makes the exit status 1; one that raises ``parts.Incomplete`` renews some of them.

A module may have ``page(values) -> str`` for its part of the page, instead of a list of its
figures, and ``pictures(values) -> {name: SVG}``, files that are written beside it.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import platform
import sys
import traceback
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil

HERE = Path(__file__).resolve().parent
if str(HERE) not in sys.path:  # for benchmarks, that import ``parts``, whoever runs them
    sys.path.append(str(HERE))

from parts import Incomplete  # noqa: E402

RESULTS = HERE / "results.json"
PAGE = HERE / "RESULTS.md"
COMMAND = "make bench ARGS="


def names() -> list[str]:
    """All benchmarks there are."""
    return sorted(path.parent.name for path in HERE.glob("*/bench.py"))


def load(name: str) -> ModuleType:
    """The module of a benchmark."""
    spec = importlib.util.spec_from_file_location(f"bench_{name}", HERE / name / "bench.py")
    if spec is None or spec.loader is None:
        raise ImportError(name)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look their annotations up there
    spec.loader.exec_module(module)
    return module


def question(name: str) -> str:
    """The docstring of a benchmark."""
    return (load(name).__doc__ or "").strip()


def hardware() -> str:
    """The machine in a line: processor, cores, memory, interpreter, and how busy it was already."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                processor = line.partition(":")[2].strip()
                break
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gib = psutil.virtual_memory().total / 2**30
    return (
        f"{processor}, {cores} cores, {gib:.0f} GiB, {platform.system()}, "
        f"Python {platform.python_version()}, load {os.getloadavg()[0]:.1f} at the start"
    )


def measure(name: str) -> dict[str, dict[str, Any]]:
    """Run one benchmark. Raises what it raises, and ValueError for a value that is no number;
    Incomplete with entries of the results for values."""
    machine = hardware()
    module = load(name)
    try:
        values: Mapping[str, float] = module.run()
    except Incomplete as error:
        entries = _described(name, module, error.values, machine)
        raise Incomplete(entries, error.failed) from error
    return _described(name, module, values, machine)


def _described(
    name: str, module: ModuleType, values: Mapping[str, float], machine: str
) -> dict[str, dict[str, Any]]:
    if not getattr(module, "FULL_NAMES", False):
        values = {f"{name}.{key}": value for key, value in values.items()}
    for key, value in values.items():
        if not math.isfinite(value):
            raise ValueError(f"{key} is {value}")
    about = {
        "command": f"{COMMAND}{name}",
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": machine,
    }
    return {key: {"value": value, **about} for key, value in values.items()}


def owner(entry: Mapping[str, Any]) -> str:
    """The benchmark that a result is of."""
    return str(entry["command"]).removeprefix(COMMAND)


def page(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The results as a page."""
    lines = [
        "# Results",
        "",
        "Written by `benchmarks/run.py`. One run each on a machine that may have had other work;",
        "figures are for orders of magnitude and for comparison within a table.",
    ]
    for name in sorted({owner(entry) for entry in results.values()}):
        rows = {k: v for k, v in results.items() if owner(v) == name}
        lines += ["", f"## {name}", ""]
        if name in names():
            lines += [question(name), ""]
        abouts = Counter((v["command"], v["date"], v["hardware"]) for v in rows.values())
        for (command, date, machine), count in abouts.items():
            some = "" if len(abouts) == 1 else f" ({count} figures)"
            lines += [f"`{command}`, {date}, {machine}{some}", ""]
        drawn = getattr(load(name), "page", None) if name in names() else None
        if drawn is not None:
            lines += [drawn({k: v["value"] for k, v in rows.items()})]
            continue
        lines += ["| figure | value |", "|---|---:|"]
        lines += [f"| {k.removeprefix(f'{name}.')} | {v['value']:.4g} |" for k, v in rows.items()]
    return "\n".join(lines) + "\n"


def pictures(results: Mapping[str, Mapping[str, Any]]) -> dict[Path, str]:
    """Files beside the benchmarks that draw them, and what is in each."""
    found: dict[Path, str] = {}
    for name in sorted({owner(entry) for entry in results.values()} & set(names())):
        draw = getattr(load(name), "pictures", None)
        if draw is not None:
            values = {k: v["value"] for k, v in results.items() if owner(v) == name}
            found |= {HERE / name / file: text for file, text in draw(values).items()}
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="Run benchmarks.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of: {', '.join(names())}")
    chosen = parser.parse_args().names or names()
    if unknown := set(chosen) - set(names()):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; known: {', '.join(names())}")
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    failed = []
    for name in chosen:
        try:
            found = measure(name)
            results = {k: v for k, v in results.items() if owner(v) != name}
        except Incomplete as error:
            found = error.values
            failed += [f"{name}: {part}" for part in error.failed]
        except Exception:
            traceback.print_exc()
            failed.append(name)
            continue
        results |= found
        for key, entry in found.items():
            print(f"{key} = {entry['value']:.4g}")
    results = dict(sorted(results.items()))  # so that both files say the same in the same order
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    PAGE.write_text(page(results))
    for path, text in pictures(results).items():
        path.write_text(text)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
