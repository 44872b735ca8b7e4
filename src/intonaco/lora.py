"""LoRA adapters, loaded and then compared with their file (torch, diffusers, peft).

diffusers loads what it recognises and drops the rest without a word: with layers other than
attention in a file whose keys were renamed on saving, most of them; and an alpha that the file does
not name is taken to be the rank. So nothing is trusted: every tensor of the file must be in the
model, bit for bit, no other may be, and every layer's rank and scale must be what the file says.
"""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import (
    convert_state_dict_to_diffusers,
    convert_state_dict_to_peft,
    convert_unet_state_dict_to_peft,
)
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict
from safetensors import SafetensorError, safe_open

from intonaco.errors import ConfigError
from intonaco.folders import ADAPTER_FILE, Adapter, check_file_name, parse_adapter
from intonaco.types import Json

METADATA = "lora_adapter_metadata"
CONFIG = "adapter_config.json"
SHOWN = 3  # names that an error lists
SAVE_RAW = (
    "save `get_peft_model_state_dict(model)` as it is, with `*_lora_adapter_metadata`:"
    " `pipeline.save_lora_weights(folder, unet_lora_layers=…, unet_lora_adapter_metadata=…)`"
)

Tensors = Mapping[str, torch.Tensor]


def load_all(
    pipeline: Any, folder: Path, adapters: Sequence[str], *, fused: bool
) -> Sequence[Adapter]:
    """A release's adapters, from sub-folders of ``folder``, on in every picture. Those that stay
    beside the weights, so none if ``fused``. Raises ConfigError."""
    named = [parse_adapter(a) for a in adapters]
    for adapter in named:
        load(pipeline, adapter.name, folder / adapter.name)
    if named:
        activate(pipeline, named)
    if named and fused:
        fuse(pipeline, [a.name for a in named])
        return []
    return named


def load(pipeline: Any, name: str, folder: Path) -> None:
    """Load ``folder``'s adapter under a name and verify it. Raises ConfigError, with the pipeline
    as it was."""
    if not hasattr(pipeline, "load_lora_weights"):
        raise ConfigError(f"adapter {name!r}: {type(pipeline).__name__} takes no LoRA")
    tensors, records = read(name, folder)
    before = set(_all_names(pipeline))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT's, of some losses: all of them are looked for
            pipeline.load_lora_weights(
                str(folder),
                weight_name=ADAPTER_FILE,
                adapter_name=name,
                use_safetensors=True,
                local_files_only=True,
            )
        verify(pipeline, name, tensors, records)
    except (ValueError, KeyError, RuntimeError, AttributeError, ConfigError) as error:
        if name in set(_all_names(pipeline)) - before:
            forget(pipeline, name)
        if isinstance(error, ConfigError):
            raise
        first = str(error).strip().partition("\n")[0]
        raise ConfigError(f"adapter {name!r} cannot be loaded: {first}", hint=SAVE_RAW) from error


def read(name: str, folder: Path) -> tuple[Tensors, Sequence[Mapping[str, Json]]]:
    """Tensors of an adapter's file, and what is written of its rank and alpha: the file's metadata
    and ``adapter_config.json``, where they are. Raises ConfigError: no such file, nothing written.
    """
    for file in folder.glob("*"):
        check_file_name(str(file))
    try:
        with safe_open(folder / ADAPTER_FILE, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no dict)
            metadata = (file.metadata() or {}).get(METADATA)
        records = [json.loads(metadata)] if metadata else []
        if (folder / CONFIG).is_file():
            records.append(json.loads((folder / CONFIG).read_text()))
    except (OSError, ValueError, SafetensorError) as error:
        raise ConfigError(f"adapter {name!r}: {folder / ADAPTER_FILE}: {error}") from error
    if not tensors:
        raise ConfigError(f"adapter {name!r}: {folder / ADAPTER_FILE} is empty")
    if not records:
        raise ConfigError(
            f"adapter {name!r}: its file names no rank and alpha, and it would be loaded with"
            " alpha = rank whatever it was trained with",
            hint=f"{SAVE_RAW}; or write {CONFIG} with r and lora_alpha beside the file",
        )
    return tensors, records


def verify(
    pipeline: Any, name: str, tensors: Tensors, records: Sequence[Mapping[str, Json]]
) -> None:
    """Raises ConfigError unless the loaded adapter is the file's."""
    loaded = _loaded(pipeline, name)
    wanted = {_plain(key, pipeline): value for key, value in tensors.items()}
    lost = sorted(set(wanted) - set(loaded))
    if lost:
        raise ConfigError(
            f"adapter {name!r}: {len(lost)} of {len(tensors)} tensors vanish on loading:"
            f" {_some(lost)}",
            hint=SAVE_RAW,
        )
    if made_up := sorted(set(loaded) - set(wanted)):
        raise ConfigError(
            f"adapter {name!r}: {len(made_up)} tensors are in the model and not in the file:"
            f" {_some(made_up)}",
            hint=SAVE_RAW,
        )
    other = [
        key
        for key, value in sorted(wanted.items())
        if not torch.equal(value.to(loaded[key].dtype), loaded[key].detach().cpu())
    ]
    if other:
        raise ConfigError(
            f"adapter {name!r}: {len(other)} of {len(tensors)} tensors are loaded with other"
            f" values: {_some(other)}"
        )
    for component, model in _models(pipeline):
        for path, layer in _layers(model, name):
            for record in records:
                _check_layer(name, component, path, layer, record)


def fuse(pipeline: Any, names: Sequence[str]) -> None:
    """Add the active adapters to the weights and take them away. Raises ConfigError if the weights
    are not then what the adapters make of them."""
    expected: list[tuple[str, Any, torch.Tensor]] = []
    components = []
    with torch.no_grad():
        for component, model in _models(pipeline):
            layers = [
                (path, layer)
                for path, layer in model.named_modules()
                if isinstance(layer, BaseTunerLayer) and set(names) & set(layer.active_adapters)
            ]
            if layers:
                components.append(component)
            for path, layer in layers:
                there = [n for n in names if n in _scaling(layer)]
                delta = sum(layer.get_delta_weight(n).float() for n in there)
                base = layer.get_base_layer()
                expected.append((f"{component}.{path}", base, base.weight.float() + delta))
        pipeline.fuse_lora(components=components, safe_fusing=True, adapter_names=list(names))
        pipeline.unload_lora_weights()
        for path, base, weight in expected:
            # One rounding to the weights' dtype apart.
            loose = 4 * torch.finfo(base.weight.dtype).eps
            if not torch.allclose(base.weight.float(), weight, rtol=loose, atol=loose):
                raise ConfigError(f"adapters: fusing left {path} with other weights than it should")


def _loaded(pipeline: Any, name: str) -> Tensors:
    found: dict[str, torch.Tensor] = {}
    for component, model in _models(pipeline):
        if name in (getattr(model, "peft_config", None) or {}):
            state = get_peft_model_state_dict(model, adapter_name=name)
            found |= {f"{component}.{_no_wrapper(key)}": value for key, value in state.items()}
    return found


def _plain(key: str, pipeline: Any) -> str:
    """The name that a tensor of the file has in the model, whichever of diffusers' ways its key is
    written in. Asked of one key at a time: over a whole file diffusers goes by the first."""
    component, _, rest = key.partition(".")
    if component not in pipeline._lora_loadable_modules or _is_peft(rest):
        return f"{component}.{_no_wrapper(rest)}"
    value: dict[str, Any] = {rest: None}
    try:
        if component.startswith("text_encoder"):
            value = convert_state_dict_to_peft(convert_state_dict_to_diffusers(value))
        else:
            value = convert_unet_state_dict_to_peft(value)
    except ValueError:  # in none of its ways
        return key
    return f"{component}.{_no_wrapper(next(iter(value)))}"


def _is_peft(key: str) -> bool:
    return ".lora_A." in key or ".lora_B." in key


def _no_wrapper(key: str) -> str:
    # transformers 5.6 took this level out of CLIP's text model; adapters of before still name it.
    return key.removeprefix("text_model.")


def _check_layer(
    name: str, component: str, path: str, layer: Any, record: Mapping[str, Json]
) -> None:
    # diffusers' metadata is one dict with the component before each key, PEFT's config has none.
    prefix = f"{component}."
    own = {k.removeprefix(prefix): v for k, v in record.items() if k.startswith(prefix)} or record
    if "r" not in own or "lora_alpha" not in own:
        raise ConfigError(f"adapter {name!r}: no r and lora_alpha of {component} are written down")
    rank = _of_layer(own.get("rank_pattern"), path, own["r"])
    alpha = _of_layer(own.get("alpha_pattern"), path, own["lora_alpha"])
    scale = alpha / (math.sqrt(rank) if own.get("use_rslora") else rank)
    got = _scaling(layer)[name]
    if layer.r[name] != rank or not math.isclose(got, scale, rel_tol=1e-6):
        raise ConfigError(
            f"adapter {name!r}: {component}.{path} is loaded with rank {layer.r[name]} and scale"
            f" {got:g}, its file says rank {rank} and alpha {alpha:g}, a scale of {scale:g}",
            hint=SAVE_RAW,
        )


def _of_layer(patterns: Mapping[str, Any] | None, path: str, default: Any) -> Any:
    """As PEFT does it (``get_pattern_key``): a pattern is the end of a module's name."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", path):
            return value
    return default


def _models(pipeline: Any) -> Iterable[tuple[str, Any]]:
    for component in pipeline._lora_loadable_modules:
        model = getattr(pipeline, component, None)
        if model is not None:
            yield component, model


def _layers(model: Any, name: str) -> Iterable[tuple[str, Any]]:
    for path, layer in model.named_modules():
        if isinstance(layer, BaseTunerLayer) and name in _scaling(layer):
            yield path, layer


def _scaling(layer: Any) -> Mapping[str, float]:
    scaling: Mapping[str, float] = getattr(layer, "scaling", {})
    return scaling


def _all_names(pipeline: Any) -> list[str]:
    return [n for _, m in _models(pipeline) for n in (getattr(m, "peft_config", None) or {})]


def activate(pipeline: Any, adapters: Sequence[Adapter]) -> None:
    """These, and no other."""
    pipeline.set_adapters([a.name for a in adapters], [a.scale for a in adapters])


def forget(pipeline: Any, name: str) -> None:
    if set(_all_names(pipeline)) == {name}:
        pipeline.unload_lora_weights()  # leaves the networks as they were before any adapter
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that another one is now on: it is turned off
            pipeline.delete_adapters(name)


def _some(names: Sequence[str]) -> str:
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")
