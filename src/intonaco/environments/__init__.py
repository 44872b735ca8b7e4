"""Environments: the exact packages that a release's worker runs with.

``lock.py`` says what an environment is, ``build.py`` makes one, ``store.py`` keeps those of a
workspace, ``launch.py`` is the process that builds one and then becomes the worker.
"""

from intonaco.environments.lock import Lock, capture, environment_lock, environment_versions
from intonaco.environments.store import Choice, EnvironmentStore, State, Way

__all__ = [
    "Choice",
    "EnvironmentStore",
    "Lock",
    "State",
    "Way",
    "capture",
    "environment_lock",
    "environment_versions",
]
