"""Pipeline folders that lie elsewhere: URLs that fsspec knows, and the Hugging Face hub.

``s3://BUCKET/FOLDER`` (or any URL of fsspec) is copied file by file into the workspace's cache. Of
``hf://ORG/NAME@COMMIT`` those files are taken that the pipeline needs: a hub repository also holds
pickles, other precisions and single-file checkpoints of the same weights. The commit is required,
since a branch can be moved under a release; ``HF_HUB_OFFLINE=1`` takes what is in the hub's cache.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from intonaco.codec import digest
from intonaco.errors import ConfigError, StorageError
from intonaco.folders import check_file_name
from intonaco.workspace import Workspace

HUB = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+)@(?P<commit>[0-9a-f]{40})")
FETCHING = ".fetching-"
IN_USE_S = 3600.0  # from when somebody asked for a folder; reading it takes less
PARTS = frozenset({".json", ".txt", ".model", ".jinja", ".safetensors"})


def file_digest(path: Path) -> str:
    """sha256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_remote(path: str) -> bool:
    return "://" in path


def check_path(path: str) -> None:
    """Raises ConfigError for a URL that nothing here could fetch. Does not ask the network."""
    if path.startswith("hf://"):
        _hub(path)
    elif is_remote(path):
        _filesystem(path)


def local_folder(path: str, workspace: Workspace) -> Path:
    """A folder of the configuration as one on this machine, fetched where it has to be. Raises
    ConfigError, StorageError."""
    if is_remote(path):
        return fetch(path, workspace.models)
    return workspace.resolve(path)


def fetch(
    path: str,
    cache: Path,
    *,
    weights: Mapping[str, str] | None = None,
    hub_cache: Path | None = None,
) -> Path:
    """A folder of ``cache`` with the files of a URL.

    ``weights``: POSIX relative path to sha256. Exactly these files are taken, and refused if their
    bytes are others. Without it all files are taken, and fetched again when one of them changed.
    ``hub_cache``: the Hugging Face cache, the user's own by default. Raises ConfigError for a URL
    or file that must not be used, StorageError for one that cannot be had.
    """
    if path.startswith("hf://"):
        return _from_hub(path, cache, weights, hub_cache)
    fs, root = _filesystem(path)
    try:
        found = {_relative(name, root): info for name, info in _find(fs, root).items()}
    except (OSError, ValueError) as error:
        raise StorageError(f"{path} cannot be listed: {error}") from error
    if not found:
        raise ConfigError(f"model folder {path} does not exist or is empty")
    wanted = _wanted(path, found, weights)
    version = weights or {n: str(fs.ukey(f"{root}/{n}")) for n in wanted}
    return Cache(cache).once(
        path,
        version,
        wanted,
        weights,
        lambda name, target: fs.get_file(f"{root}/{name}", str(target)),
    )


def _from_hub(
    path: str, cache: Path, weights: Mapping[str, str] | None, hub_cache: Path | None
) -> Path:
    repo, commit = _hub(path)
    try:
        from huggingface_hub import hf_hub_download, snapshot_download
    except ImportError:
        raise ConfigError(
            f"{path} needs huggingface_hub", hint="`pip install intonaco[worker]`"
        ) from None
    try:
        index = json.loads(
            Path(
                hf_hub_download(repo, "model_index.json", revision=commit, cache_dir=hub_cache)
            ).read_text()
        )
        components = [n for n, v in index.items() if isinstance(v, list) and not n.startswith("_")]
        patterns = [f"{c}/*{ending}" for c in components for ending in sorted(PARTS)]
        snapshot = Path(
            snapshot_download(
                repo,
                revision=commit,
                cache_dir=hub_cache,
                allow_patterns=["model_index.json", *patterns],
                ignore_patterns=["*.fp16*.safetensors", "*.non_ema*.safetensors"],
            )
        )
    except (OSError, ValueError) as error:  # the hub's errors, offline mode's too, are OSErrors
        first = str(error).strip().partition("\n")[0]
        raise StorageError(
            f"{path} cannot be had from the hub: {first}",
            hint="is the name right, is HF_HUB_OFFLINE set, does it need a token (HF_TOKEN)?",
        ) from error
    found = {
        name: None
        for file in snapshot.rglob("*")
        if file.is_file()
        and _of_pipeline(name := file.relative_to(snapshot).as_posix(), components)
    }
    wanted = _wanted(path, found, weights)
    return Cache(cache).once(
        path,
        weights or {},
        wanted,
        weights,
        lambda name, target: _link(snapshot / name, target),
    )


def _of_pipeline(name: str, components: Iterable[str]) -> bool:
    """Whether a hub repository's file is one that ``from_pretrained`` would read."""
    if name == "model_index.json":
        return True
    folder, _, file = name.partition("/")
    if folder not in components or "/" in file or Path(file).suffix not in PARTS:
        return False
    if file.endswith(".safetensors"):
        return "." not in file.removesuffix(".safetensors")  # else of another precision
    if ".index." in file:
        return file.endswith(".safetensors.index.json")
    return True


def _wanted(path: str, found: Iterable[str], weights: Mapping[str, str] | None) -> list[str]:
    names = sorted(found if weights is None else weights)
    if missing := sorted(set(names) - set(found)):
        raise StorageError(f"{path} lacks {missing[0]}, which the release names")
    for name in names:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ConfigError(f"{path}: {name!r} leads out of the folder")
        check_file_name(name)
    return names


@dataclass(frozen=True, slots=True)
class Cache:
    """Fetched folders under ``root``, each whole or not there. A folder's time of change says when
    it was last asked for. ``.lock`` is held while one is looked up, and while one is taken away."""

    root: Path

    def folder(self, path: str, version: Mapping[str, str]) -> Path:
        """Where one version of a URL lies. ``version``: a text for each file."""
        return self.root / f"{_beginning(path)}{digest(dict(version))[:12]}"

    def once(
        self,
        path: str,
        version: Mapping[str, str],
        names: Iterable[str],
        weights: Mapping[str, str] | None,
        get: Callable[[str, Path], object],
    ) -> Path:
        """The folder; filled by ``get``, a file at a time, if it is not there. ``weights``: digests
        that the files must have. Raises StorageError."""
        target = self.folder(path, version)
        self.root.mkdir(parents=True, exist_ok=True)
        if self._touch(target):
            return target
        temporary = Path(tempfile.mkdtemp(dir=self.root, prefix=FETCHING))
        try:
            for name in names:
                file = temporary / name
                file.parent.mkdir(parents=True, exist_ok=True)
                try:
                    get(name, file)
                except OSError as error:
                    raise StorageError(f"{path}: {name} cannot be fetched: {error}") from error
                if weights is not None and (got := file_digest(file)) != weights[name]:
                    raise StorageError(
                        f"{path}: {name} has the sha256 {got[:12]}…, the release says"
                        f" {weights[name][:12]}…",
                        hint="the files there were changed after the release was made",
                    )
            os.utime(temporary)
            try:
                temporary.rename(target)
            except OSError:  # somebody else fetched the same just now
                if not self._touch(target):
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return target

    def spare(self, kept: Collection[Path], *, configured: str | None, now: float) -> list[Path]:
        """Folders that are not in ``kept`` and that nobody asked for within IN_USE_S before ``now``
        (seconds since the epoch), and what killed fetches left. Of the URL that the configuration
        names the version asked for last stays."""
        if not self.root.is_dir():
            return []
        found = [p for p in sorted(self.root.iterdir()) if p.is_dir()]
        mine = [p for p in found if configured and p.name.startswith(_beginning(configured))]
        last = max(mine, key=_used_at, default=None)
        return [p for p in found if p not in kept and p != last and _idle(p, now)]

    def remove(self, folder: Path, *, now: float) -> int | None:
        """Remove one; bytes freed. None: somebody asked for it meanwhile, it stays."""
        gone = Path(tempfile.mkdtemp(dir=self.root, prefix=FETCHING))
        try:
            with self._locked(fcntl.LOCK_EX):
                if not folder.is_dir() or not _idle(folder, now):
                    return None
                freed = self.size(folder)
                folder.rename(gone / folder.name)
        finally:
            shutil.rmtree(gone, ignore_errors=True)
        return freed

    def size(self, folder: Path) -> int:
        """Bytes of its files. One that another place links too is freed only there."""
        files = [p.lstat() for p in folder.rglob("*") if p.is_file()]
        return sum(s.st_size for s in files if s.st_nlink == 1)

    def _touch(self, folder: Path) -> bool:
        """Say that it is used; False if it is not there."""
        with self._locked(fcntl.LOCK_SH):
            try:
                os.utime(folder)
            except FileNotFoundError:
                return False
        return True

    @contextmanager
    def _locked(self, kind: int) -> Iterator[None]:
        with (self.root / ".lock").open("w") as opened:
            fcntl.flock(opened, kind)
            yield


def _beginning(path: str) -> str:
    """How the names of all versions of a URL begin."""
    return f"{digest(path)[:12]}-"


def _used_at(folder: Path) -> float:
    return folder.stat().st_mtime


def _idle(folder: Path, now: float) -> bool:
    """Whether nobody needs it now. A fetch that is under way keeps writing somewhere inside."""
    if not folder.name.startswith(FETCHING):
        return now - _used_at(folder) > IN_USE_S
    return now - max(_used_at(p) for p in (folder, *folder.rglob("*"))) > IN_USE_S


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copy2(source, target)


def _hub(path: str) -> tuple[str, str]:
    match = HUB.fullmatch(path)
    if match is None:
        raise ConfigError(
            f"{path} does not pin a model of the hub",
            hint="write hf://ORG/NAME@COMMIT with the 40 digits of the commit",
        )
    return match["repo"], match["commit"]


def _filesystem(path: str) -> tuple[Any, str]:
    import fsspec

    try:
        fs, root = fsspec.core.url_to_fs(path)
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"{path} cannot be reached: {error}",
            hint="install the package of fsspec for it, such as s3fs or gcsfs",
        ) from error
    return fs, str(root).rstrip("/")


def _find(fs: Any, root: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = fs.find(root, detail=True)
    return found


def _relative(name: str, root: str) -> str:
    return name.strip("/").removeprefix(root.strip("/")).strip("/")
