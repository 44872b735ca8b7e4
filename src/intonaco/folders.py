"""What a pipeline folder may hold. Checked by name and text, before anything in it is imported.

Weights are safetensors only. A pickle, a TorchScript archive, a piece of Python or a configuration
that asks for code of its own is refused, wherever in the folder it lies.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from intonaco.errors import ConfigError
from intonaco.types import Json

PICKLES = frozenset(
    {
        *(".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".msgpack", ".h5"),
        *(".pt2", ".ptl", ".th", ".joblib", ".dill", ".torchscript"),
    }
)
CODE = frozenset({".py", ".pyc", ".pyd", ".so", ".dll", ".dylib", ".ipynb"})
LIBRARIES = frozenset({"diffusers", "transformers"})
# Keys by which a configuration names code outside those libraries.
CODE_KEYS = ("auto_map", "custom_pipeline", "custom_pipelines", "trust_remote_code")

ADAPTERS = "adapters"  # sub-folder of a pipeline folder, one folder an adapter
ADAPTER_FILE = "pytorch_lora_weights.safetensors"
SAVE_AGAIN = "save it again with `pipeline.save_pretrained(folder, safe_serialization=True)`"


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """One of ``ServingSpec.adapters``, written ``NAME`` or ``NAME:SCALE``."""

    name: str
    scale: float


def parse_adapter(text: str) -> Adapter:
    """Raises ConfigError."""
    name, colon, scale = text.partition(":")
    try:
        parsed = Adapter(name=name, scale=float(scale) if colon else 1.0)
    except ValueError:
        raise ConfigError(
            f"adapters: {text!r} has no number after the colon", hint="write NAME or NAME:SCALE"
        ) from None
    # A dot would part PEFT's module names, a slash leave the folder.
    if not name.replace("-", "").replace("_", "").isalnum() or not abs(parsed.scale) <= 1e3:
        raise ConfigError(
            f"adapters: {text!r} is no NAME or NAME:SCALE",
            hint="a name has letters, digits, - and _; a scale lies between -1000 and 1000",
        )
    return parsed


def check_file_name(name: str) -> None:
    """Raises ConfigError for a file (POSIX path) that must not be in a pipeline folder."""
    ending = Path(name).suffix.lower()
    if ending in PICKLES:
        raise ConfigError(
            f"{name} is a pickle checkpoint, which can run code when it is loaded", hint=SAVE_AGAIN
        )
    if ending in CODE:
        raise ConfigError(
            f"{name} is code: a pipeline of code of its own is not loaded",
            hint="only classes of diffusers and transformers are run; take the file out",
        )


def check_folder(folder: Path) -> None:
    """Raises ConfigError unless the folder is a pipeline of diffusers' own classes in
    safetensors."""
    if not folder.is_dir():
        raise ConfigError(
            f"model folder {folder} does not exist",
            hint="give the folder that `pipeline.save_pretrained` wrote, or hf://ORG/NAME@COMMIT",
        )
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() or p.is_symlink()]
    for file in files:
        check_file_name(str(file))
    if not (folder / "model_index.json").is_file():
        raise ConfigError(
            f"{folder} has no model_index.json, so it is no diffusers pipeline",
            hint="give the folder that `pipeline.save_pretrained` wrote",
        )
    for file in files:
        if file.suffix.lower() == ".json":
            value = _read(file)
            if file.name.endswith(".index.json"):
                _check_shards(file, value)
            if isinstance(value, dict):
                _check_keys(file, value)
    _check_index(folder, read_index(folder))


def read_index(folder: Path) -> Mapping[str, Json]:
    """``model_index.json``. Raises ConfigError if it names no pipeline."""
    file = folder / "model_index.json"
    index = _read(file)
    if not isinstance(index, dict) or "_class_name" not in index:
        raise ConfigError(f"{file}: _class_name is missing, so it is no diffusers pipeline")
    return index


def check_adapters(folder: Path, adapters: Iterable[str]) -> None:
    """Raises ConfigError unless the adapters in the folder are those that the release names."""
    named = [parse_adapter(a).name for a in adapters]
    if len(set(named)) < len(named):
        raise ConfigError(f"adapters: a name is there twice in {', '.join(named)}")
    for name in named:
        if not (folder / ADAPTERS / name / ADAPTER_FILE).is_file():
            raise ConfigError(
                f"adapters: {name!r} has no file {ADAPTERS}/{name}/{ADAPTER_FILE} in {folder}",
                hint="write it with `pipeline.save_lora_weights`",
            )
    there = {p.name for p in (folder / ADAPTERS).glob("*") if p.is_dir()}
    if unnamed := sorted(there - set(named)):
        raise ConfigError(
            f"adapters: {folder / ADAPTERS / unnamed[0]} is there and not named by the release",
            hint="name it in model.adapters, or take the folder out",
        )


def _check_index(folder: Path, index: Mapping[str, Json]) -> None:
    file = folder / "model_index.json"
    if not isinstance(index["_class_name"], str):
        raise ConfigError(f"{file}: _class_name {index['_class_name']!r} names code of its own")
    for component, value in index.items():
        if component.startswith("_") or not isinstance(value, list):
            continue
        library = value[0] if value else None
        if library is None:  # left out on purpose
            continue
        known = isinstance(library, str) and (library in LIBRARIES or _part_of_diffusers(library))
        if not known:
            raise ConfigError(
                f"{file}: {component} is {value!r}, a class outside diffusers and transformers",
                hint="code that comes with a model is never run",
            )


def _part_of_diffusers(library: str) -> bool:
    """Whether it is a package of diffusers' own pipelines ("stable_diffusion": its safety checker).
    Looked up on disk: importing diffusers takes seconds."""
    spec = importlib.util.find_spec("diffusers")
    if spec is None or spec.origin is None or not library.isidentifier():
        return False
    return (Path(spec.origin).parent / "pipelines" / library / "__init__.py").is_file()


def _check_keys(file: Path, value: Mapping[str, Json]) -> None:
    for keys in _levels(value):
        for key in CODE_KEYS:
            asked = [v for v in (keys.get(key), keys.get(f"_{key}")) if v]
            # A number is a token's id: vocabularies are JSON objects too.
            if any(v is True or isinstance(v, str | dict | list) for v in asked):
                raise ConfigError(
                    f"{file}: {key} asks for code that comes with the model",
                    hint="code that comes with a model is never run; take the key out",
                )


def _levels(value: Json) -> Iterator[Mapping[str, Json]]:
    """A JSON object and all objects in it. Tokenizers' large tables hold no objects by these
    names, and walking them takes milliseconds."""
    todo = [value]
    while todo:
        item = todo.pop()
        if isinstance(item, dict):
            yield item
            todo.extend(v for v in item.values() if isinstance(v, dict | list))
        elif isinstance(item, list):
            todo.extend(v for v in item if isinstance(v, dict | list))


def _check_shards(file: Path, value: Json) -> None:
    """Shards lie beside their index, and are safetensors."""
    shards = value.get("weight_map") if isinstance(value, dict) else None
    if not isinstance(shards, dict):
        raise ConfigError(f"{file}: weight_map is missing, so it is no index of weights")
    for shard in sorted(set(map(str, shards.values()))):
        if not shard.endswith(".safetensors"):
            raise ConfigError(
                f"{file} points to {shard}, a pickle checkpoint, which can run code when it is"
                " loaded",
                hint=SAVE_AGAIN,
            )
        if Path(shard).name != shard or not (file.parent / shard).is_file():
            raise ConfigError(f"{file} points to {shard}, which is not beside it")


def _read(file: Path) -> Json:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read as JSON: {error}") from error
