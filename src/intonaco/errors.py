"""Errors.

::

    IntonacoError
    ├── ConfigError        a person's input is wrong: the field, what was given, what is allowed
    ├── NotFound           a name or id that nothing answers to
    ├── Conflict           the state does not allow it now, or somebody else did it first
    ├── BackendError       an engine we drive failed: ``.backend``, ``.retriable``
    └── StorageError       the workspace or the ledger cannot be read or written

A verdict is a value, never an exception. The first line of an error's docstring is its default
message; ``hint`` says what to do next and the command line prints it on a line of its own.
"""

from __future__ import annotations

import inspect


class IntonacoError(Exception):
    """Intonaco failed."""

    exit_code = 4

    def __init__(self, message: str | None = None, *, hint: str | None = None) -> None:
        super().__init__(message or (inspect.getdoc(type(self)) or "").partition("\n")[0])
        self.hint = hint


class ConfigError(IntonacoError):
    """The configuration is not valid."""

    exit_code = 2


class NotFound(IntonacoError):
    """There is no such thing."""

    exit_code = 2


class Conflict(IntonacoError):
    """The present state does not allow this."""

    exit_code = 2


class BackendError(IntonacoError):
    """A backend failed."""

    def __init__(
        self, message: str | None = None, *, backend: str, retriable: bool, hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.backend = backend
        self.retriable = retriable


class StorageError(IntonacoError):
    """The workspace cannot be read or written."""
