from __future__ import annotations

import inspect

import pytest

from intonaco import errors
from intonaco.errors import BackendError, ConfigError, IntonacoError, NotFound, StorageError

ALL = [
    e
    for _, e in inspect.getmembers(errors, inspect.isclass)
    if issubclass(e, IntonacoError) and e.__module__ == errors.__name__
]


def test_default_message_is_the_docstring() -> None:
    assert str(IntonacoError()) == "Intonaco failed."
    assert str(NotFound()) == "There is no such thing."
    assert str(BackendError(backend="ray", retriable=True)) == "A backend failed."


def test_message_and_hint() -> None:
    error = ConfigError("port: 99999 is too large", hint="65535 is the largest")
    assert str(error) == "port: 99999 is too large"
    assert error.hint == "65535 is the largest"
    assert StorageError().hint is None


@pytest.mark.parametrize("error", ALL)
def test_tree_in_the_docstring_is_whole(error: type[IntonacoError]) -> None:
    assert error.__name__ in str(errors.__doc__)


@pytest.mark.parametrize("error", ALL)
def test_exit_code_is_one_of_the_documented(error: type[IntonacoError]) -> None:
    persons_input = error.__name__ in ("ConfigError", "NotFound", "Conflict")
    assert error.exit_code == (2 if persons_input else 4)


def test_backend_error_says_whose_and_whether_to_try_again() -> None:
    error = BackendError("no route", backend="mlflow", retriable=True)
    assert (error.backend, error.retriable, error.exit_code) == ("mlflow", True, 4)
