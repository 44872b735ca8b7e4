"""Examples in docstrings run and give what they say."""

from __future__ import annotations

import doctest
import importlib
import warnings
from pathlib import Path

import pytest

import intonaco

SOURCE = Path(intonaco.__file__).parent


def _modules() -> list[str]:
    files = [f for f in SOURCE.rglob("*.py") if ">>> " in f.read_text()]
    names = [".".join(f.relative_to(SOURCE.parent).with_suffix("").parts) for f in files]
    return sorted(n.removesuffix(".__init__") for n in names)


MODULES = _modules()


def test_there_are_examples() -> None:
    assert MODULES


@pytest.mark.parametrize("module", MODULES)
def test_examples(module: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = doctest.testmod(importlib.import_module(module), optionflags=doctest.ELLIPSIS)
    assert result.attempted > 0
    assert result.failed == 0
