"""Dataset versions to and from DVC remotes, by DVC's own command (extra ``dvc``).

DVC runs as a process of its own: it brings some hundred packages, and its Python interface is not
typed nor promised (https://github.com/treeverse/dvc/issues/5050). What is pushed are our objects
under DVC's names for them, hard links in a cache that DVC reads; nothing is copied or hashed again.
Whoever has the ``.dvc`` file that names a version can `dvc pull` it, without Intonaco.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from intonaco.datasets.formats import Columns, plain_name
from intonaco.datasets.identity import Hasher, Stored, dvc_id, dvc_tree, hash_file
from intonaco.datasets.objects import Progress, silent, staging
from intonaco.datasets.store import LocalDatasetStore
from intonaco.errors import BackendError, ConfigError
from intonaco.types import DatasetVersion
from intonaco.workspace import write_atomic

COMMAND = "INTONACO_DVC"  # environment variable: path of the dvc command
LAST_LINES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracked:
    """What a ``.dvc`` file names. ``md5``: of the data, without ``.dir``; ``directory``: whether it
    is a folder; ``path``: where it lies."""

    md5: str
    directory: bool
    path: Path


def read_dvc_file(file: Path) -> Tracked:
    """Its first output. Raises ConfigError for anything else than a ``.dvc`` file with an md5."""
    try:
        written = yaml.safe_load(file.read_text())
        first = written["outs"][0]
        md5, path = str(first["md5"]), Path(str(first["path"]))
        where = file.parent / str(written.get("wdir", "."))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{file} names no data by its md5 ({type(error).__name__}: {error})",
            hint="give a file that `dvc add` wrote",
        ) from error
    return Tracked(md5=_md5(md5, file), directory=md5.endswith(".dir"), path=where / path)


def dvc_file(files: Sequence[Stored], path: str) -> str:
    """The ``.dvc`` file of a folder with these files."""
    out = {
        "md5": f"{dvc_id(files)}.dir",
        "size": sum(file.size for file in files),
        "nfiles": len(files),
        "hash": "md5",
        "path": path,
    }
    return yaml.safe_dump({"outs": [out]}, sort_keys=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dvc:
    """DVC's command, and the store whose versions it moves."""

    command: str
    store: LocalDatasetStore

    def push(self, version: str, remote: str, *, file: Path | None = None) -> str:
        """Bring a version to a remote: a URL, a folder, or the name of a remote in DVC's own
        settings of this user. ``file``: where to write a ``.dvc`` file that names it. Returns the
        text of that file. What the remote has already is not sent. Raises NotFound, StorageError if
        a content was changed, BackendError."""
        files = self.store.files(version)
        self.store.open(version)  # puts back, or tells, what was changed
        text = dvc_file(files, file.stem if file else "items")
        with staging(self.store.root) as ours:
            cache = ours / ".dvc" / "cache" / "files" / "md5"
            for item in files:
                target = _in_cache(cache, item.md5)
                target.parent.mkdir(parents=True, exist_ok=True)
                if not target.exists():
                    self.store.objects.link(item, target)
            target = _in_cache(cache, f"{dvc_id(files)}.dir")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(dvc_tree(files))
            (ours / "items.dvc").write_text(text)
            self._run(ours, "push", remote, "items.dvc")
        if file is not None:
            write_atomic(file, text)
        return text

    def pull(
        self,
        wanted: Path | str,
        remote: str | None,
        *,
        name: str,
        columns: Columns | None = None,
        progress: Progress = silent,
    ) -> DatasetVersion:
        """Fetch data and add it as a version.

        ``wanted``: a ``.dvc`` file, or the md5 of a folder. Without a remote the file's own DVC
        repository pulls it to where it belongs, with its own settings and credentials. Raises
        ConfigError if it is no ``.dvc`` file or no data set, BackendError."""
        tracked = None
        if isinstance(wanted, Path):
            tracked = read_dvc_file(wanted)
            if remote is None:
                self._run(wanted.parent, "pull", None, wanted.name)
                return self._add(tracked.path, tracked.md5, name, columns, progress)
        elif remote is None:
            raise ConfigError(
                "an md5 alone says nothing of where the data is", hint="name it with --remote"
            )
        md5 = tracked.md5 if tracked else _md5(str(wanted), None)
        directory = tracked.directory if tracked else True
        kept = tracked.path.name if tracked else "items"
        with staging(self.store.root) as ours:
            out = {"md5": md5 + ".dir" * directory, "hash": "md5", "path": kept}
            (ours / "items.dvc").write_text(yaml.safe_dump({"outs": [out]}))
            self._run(ours, "fetch", remote, "items.dvc")
            cache = ours / ".dvc" / "cache" / "files" / "md5"
            target = ours / "pulled" / kept
            _lay_out(cache, md5, directory, target)
            return self._add(target, md5, name, columns, progress)

    def _add(
        self, path: Path, md5: str, name: str, columns: Columns | None, progress: Progress
    ) -> DatasetVersion:
        version = self.store.put(path, name=name, columns=columns, progress=progress)
        if md5 not in (version.dvc_md5, *version.source_ids):
            raise ConfigError(
                f"{path} is not what {md5[:10]} names: it has files changed since, or links",
                hint="`dvc status` says what changed",
            )
        return version

    def _run(self, folder: Path, verb: str, remote: str | None, target: str) -> None:
        """One command of DVC, to its end. ``remote``: none leaves it to the repository there."""
        settings = dict(os.environ, DVC_NO_ANALYTICS="1", PYTHONUNBUFFERED="1")
        arguments = [self.command, verb, "--quiet"]
        if remote is not None:
            # A repository of ours: what DVC notes of it elsewhere goes with it.
            settings["DVC_SITE_CACHE_DIR"] = str(folder / "site")
            arguments += ["--remote", _repository(folder, remote)]
        done = subprocess.run(
            [*arguments, target],
            cwd=folder,
            env=settings,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
        if done.returncode:
            said = [line for line in done.stdout.splitlines() if line.strip()][-LAST_LINES:]
            raise BackendError(
                f"dvc {verb} failed: {' '.join(said) or f'status {done.returncode}'}",
                backend="dvc",
                retriable=True,
            )


def find_dvc(environment: Mapping[str, str]) -> str:
    """The dvc command: the one named by INTONACO_DVC, beside this interpreter, or on PATH. Raises
    ConfigError."""
    named = environment.get(COMMAND)
    if named is not None:
        if shutil.which(named) is None:
            raise ConfigError(f"{COMMAND}: {named} cannot be run")
        return named
    beside = Path(sys.executable).parent / "dvc"
    found = str(beside) if beside.is_file() else shutil.which("dvc", path=environment.get("PATH"))
    if found is None:
        raise ConfigError(
            "there is no dvc command",
            hint=f"pip install 'intonaco[dvc]', or name one in {COMMAND}",
        )
    return found


def _repository(folder: Path, remote: str) -> str:
    """An empty DVC repository without version control; the name by which it knows the remote."""
    lines = ["[core]", "    no_scm = True", "    analytics = false", "    check_update = false"]
    lines += ["[cache]", "    type = hardlink,copy"]
    name = remote
    local = Path(remote).expanduser()
    if "://" in remote or "/" in remote or local.is_dir():
        name = "target"
        url = remote if "://" in remote else str(local.resolve())
        lines += [f"['remote \"{name}\"']", f"    url = {url}"]
    (folder / ".dvc").mkdir(exist_ok=True)
    (folder / ".dvc" / "config").write_text("\n".join(lines) + "\n")
    return name


def _lay_out(cache: Path, md5: str, directory: bool, target: Path) -> None:
    """What was fetched, under its own names; refused where a content is not what names it."""
    if not directory:
        _place(_in_cache(cache, md5), md5, target)
        return
    tree = _in_cache(cache, f"{md5}.dir")
    try:
        entries = json.loads(tree.read_bytes())
        files = {plain_name(str(e["relpath"]), tree): _md5(str(e["md5"]), tree) for e in entries}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BackendError(
            f"the remote has no list of files for {md5}.dir: {error}", backend="dvc", retriable=True
        ) from error
    for path, content in files.items():
        _place(_in_cache(cache, content), content, target / path)


def _place(source: Path, md5: str, target: Path) -> None:
    if not source.is_file() or hash_file(source, "").md5 != md5:
        raise BackendError(
            f"the remote has no content {md5}, or another one under its name",
            backend="dvc",
            retriable=True,
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    os.link(source, target)


def _in_cache(cache: Path, md5: str) -> Path:
    return cache / md5[:2] / md5[2:]


def _md5(text: str, source: Path | None) -> str:
    md5 = text.removesuffix(".dir").lower()
    if len(md5) != 2 * Hasher.MD5_BYTES or not set(md5) <= set("0123456789abcdef"):
        raise ConfigError(f"{f'{source}: ' if source else ''}{text!r} is no md5")
    return md5
