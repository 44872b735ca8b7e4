"""What the pages say is true: links lead somewhere, examples are valid, commands exist."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from intonaco import config
from intonaco.cli.main import app

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
INLINE = re.compile(r"`(intonaco [^`]+)`")


def _name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def _prose(page: Path) -> str:
    return FENCE.sub("", page.read_text())


def _anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ +(.+)$", _prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def test_there_are_pages() -> None:
    assert {"CONTRIBUTING.md", "docs/glossary.md", "docs/concepts/causes.md"} <= set(
        map(_name, PAGES)
    )


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for target in LINK.findall(_prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in _anchors(file)):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_paths_in_the_text_exist(page: Path) -> None:
    named = re.findall(r"`((?:src|docs|tests|benchmarks)/[\w./-]*\w)`", _prose(page))
    produced = {"benchmarks/results.json", "benchmarks/RESULTS.md"}
    gone = [n for n in named if n not in produced and not (ROOT / n).exists()]
    assert gone == []


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_whole_configurations_are_valid(page: Path) -> None:
    for language, text in FENCE.findall(page.read_text()):
        if language in ("yaml", "yml") and re.search(r"^service:", text, re.MULTILINE):
            config.parse(text, source=_name(page))


def _commands(page: Path) -> Iterator[str]:
    text = page.read_text()
    yield from INLINE.findall(_prose(page))
    for language, block in FENCE.findall(text):
        if language in ("", "sh", "bash", "console"):
            for line in block.splitlines():
                line = line.strip().removeprefix("$ ").removeprefix(".venv/bin/")
                if line.startswith("intonaco "):
                    yield line


def _problem(command: str) -> str | None:
    """What is wrong with a command line of a page, by the real command tree."""
    words = shlex.split(command.partition("  #")[0].replace("…", "").replace("...", ""))[1:]
    here: Any = typer.main.get_command(app)  # of typer's own copy of click, which has no types
    while words and hasattr(here, "commands") and not words[0].startswith("-"):
        word = words.pop(0)
        names = word.strip("{}[]").replace("|", ",").split(",")
        found = [here.commands.get(n) for n in names]
        if None in found:
            return f"{command}: no {word} in {here.name}"
        here = found[0]
    options = {o for p in here.params for o in (*p.opts, *p.secondary_opts)} | {"--help"}
    unknown = [w for w in words if re.match(r"--?[a-z]", w) and w.partition("=")[0] not in options]
    return f"{command}: no {unknown[0]}" if unknown else None


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_commands_exist(page: Path) -> None:
    assert [p for c in _commands(page) if (p := _problem(c))] == []


@pytest.mark.parametrize(
    "command", ["intonaco explode", "intonaco update frobnicate", "intonaco status --colour"]
)
def test_a_command_that_does_not_exist_is_found(command: str) -> None:
    assert _problem(command) is not None


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    code = INLINE_MAKE.findall(page.read_text())
    assert {t for t in code if t not in targets} == set()


INLINE_MAKE = re.compile(r"(?:^|`)make (?:[A-Z_]+='[^']*' )?([a-z]+)", re.MULTILINE)
