"""LoRA (Hu et al. 2021, arXiv:2106.09685), trained as an adapter and fused into the base, or kept
beside it.

A fused release serves about 1.5 times faster and loads without peft. An adapter beside the base
lets a worker serve several releases over one base (``serving.share_base``). It is saved with the
keys that PEFT gives, and with its rank and alpha: diffusers' adapter loader drops layers whose keys
are of another style than the file's first key, and an alpha without metadata reloads as the rank.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict
from torch import Tensor

from intonaco import lora
from intonaco.config import LoraRecipe
from intonaco.errors import BackendError, ConfigError
from intonaco.folders import ADAPTER_FILE, ADAPTERS, parse_adapter
from intonaco.training.families import Family

ADAPTER = "default"
_KINDS = (torch.nn.Linear, torch.nn.Conv2d)
RELEASED = "trained"  # its name beside the base, in a release


def add_lora(family: Family, recipe: LoraRecipe, *, seed: int) -> int:
    """Freeze the denoiser and add adapters to all layers the recipe names; returns how many.

    A target matches a layer of that name or one whose dotted name ends in it. Raises ConfigError
    if a target matches no layer or what is none, or diffusers has no adapters for the pipeline,
    BackendError if a matched layer got no adapter.
    """
    denoiser = family.denoiser
    if not family.lora:
        raise ConfigError(
            f"method: lora: diffusers has no adapters for {type(denoiser).__name__}",
            hint="use method: full",
        )
    wanted = _matching(denoiser, recipe)
    denoiser.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        denoiser.add_adapter(
            LoraConfig(
                r=recipe.rank,
                lora_alpha=recipe.alpha,
                init_lora_weights="gaussian",
                target_modules=list(recipe.targets),
            ),
            adapter_name=ADAPTER,
        )
    adapted = set(_layers(denoiser))
    if adapted != wanted:
        missing = ", ".join(sorted(wanted ^ adapted))
        raise BackendError(f"adapters differ at {missing}", backend="training", retriable=False)
    return len(adapted)


def continue_lora(
    family: Family, folder: Path, adapters: Sequence[str], *, fused: bool, recipe: LoraRecipe
) -> int:
    """Have the adapter of a release trained further, over the base that it stands on; returns how
    many layers it has. Raises ConfigError unless it is one alone, beside the weights, over the
    denoiser, at its full scale and as the recipe says."""
    named = [parse_adapter(a) for a in adapters]
    if fused or len(named) != 1 or named[0].scale != 1.0:
        raise ConfigError(
            f"lora.fused: false trains one adapter at scale 1 further, and the champion has "
            f"{', '.join(adapters)}{' fused on loading' if fused else ''}",
            hint="set lora.fused: true, which starts from the champion with its adapters added",
        )
    pipeline, denoiser = family.pipeline, family.denoiser
    lora.load(pipeline, ADAPTER, folder / ADAPTERS / named[0].name)
    if any(
        getattr(getattr(pipeline, name, None), "peft_config", None)
        for name in pipeline._lora_loadable_modules
        if name != family.component
    ):
        raise ConfigError(
            "lora.fused: false: the champion's adapter is over the text encoder too, which is not"
            " trained here",
            hint="set lora.fused: true",
        )
    config, layers = denoiser.peft_config[ADAPTER], _layers(denoiser)
    scale = recipe.alpha / recipe.rank
    if set(layers) != _matching(denoiser, recipe) or any(
        layer.r[ADAPTER] != recipe.rank or abs(layer.scaling[ADAPTER] - scale) > 1e-6 * scale
        for layer in layers.values()
    ):
        raise ConfigError(
            f"the champion's adapter has rank {config.r} and alpha {config.lora_alpha:g} on "
            f"{len(layers)} layers, and the recipe says otherwise",
            hint="give the recipe the lora settings of the one before, or lora.fused: true",
        )
    for name, parameter in denoiser.named_parameters():
        parameter.requires_grad_(".lora_" in name)
    return len(layers)


def adapter_state(denoiser: Any) -> Mapping[str, Tensor]:
    """The adapter's tensors, by PEFT's names."""
    state: Mapping[str, Tensor] = get_peft_model_state_dict(denoiser, adapter_name=ADAPTER)
    return {name: value.detach().cpu().clone() for name, value in state.items()}


def save_adapter(family: Family, folder: Path) -> None:
    """Write the adapter as it is, with its rank and alpha; the same adapter as the same bytes, as a
    release is named by them."""
    part, denoiser = family.component, family.denoiser
    told = denoiser.peft_config[ADAPTER].to_dict()
    # Sets, whose order changes from process to process.
    told = {k: sorted(v) if isinstance(v, set) else v for k, v in told.items()}
    if isinstance(told["target_modules"], list):
        told["target_modules"] = sorted(told["target_modules"])
    family.pipeline.save_lora_weights(
        folder,
        **{
            f"{part}_lora_layers": dict(adapter_state(denoiser)),
            f"{part}_lora_adapter_metadata": told,
        },
    )
    _order_header(folder / ADAPTER_FILE)


def _order_header(file: Path) -> None:
    """safetensors writes the names of a file's metadata in an order of chance: sort them."""
    raw = file.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    said = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    said += b" " * (-len(said) % 8)  # as the format asks
    file.write_bytes(len(said).to_bytes(8, "little") + said + raw[8 + size :])


def lighten(denoiser: Any) -> dict[str, Tensor]:
    """Keep the frozen weights in bfloat16 while an adapter is trained over them, which halves what
    they take; returns them as they were, on the CPU. Norms that autocast computes in float32 stay.
    """
    kept = {}
    for path, module in denoiser.named_modules():
        if isinstance(module, torch.nn.LayerNorm | torch.nn.GroupNorm):
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                kept[f"{path}.{name}".removeprefix(".")] = parameter.detach().cpu().clone()
                parameter.data = parameter.data.to(torch.bfloat16)
    return kept


def restore(denoiser: Any, kept: Mapping[str, Tensor]) -> None:
    """Undo ``lighten``."""
    for name, parameter in denoiser.named_parameters():
        if name in kept:
            parameter.data = kept[name].to(parameter.device)


def fuse_lora(denoiser: Any) -> dict[str, Tensor]:
    """Fuse the adapter into the base in place and remove it.

    Returns the state dict that must result, worked out apart from the fusing code: each adapted
    weight is the base's plus alpha/rank times B A.
    """
    expected: dict[str, Tensor] = {}
    for name, value in denoiser.state_dict().items():
        if ".lora_" not in name:
            expected[name.replace(".base_layer.", ".")] = value.detach().clone()
    for name, layer in _layers(denoiser).items():
        a, b = layer.lora_A[ADAPTER].weight.detach(), layer.lora_B[ADAPTER].weight.detach()
        base = expected[f"{name}.weight"]
        expected[f"{name}.weight"] = base + layer.scaling[ADAPTER] * _product(a, b, base.shape)
    denoiser.fuse_lora()
    denoiser.unload_lora()
    return expected


def _product(a: Tensor, b: Tensor, shape: torch.Size) -> Tensor:
    """B A as a weight: [out, in] for linear layers, [out, in, k, k] for convolutions, whose A is
    a k x k convolution to the rank and B a 1 x 1 one from it."""
    return (b.flatten(1) @ a.flatten(1)).view(shape)


def _matching(denoiser: Any, recipe: LoraRecipe) -> set[str]:
    modules = dict(denoiser.named_modules())
    found: set[str] = set()
    for target in recipe.targets:
        hits = {n for n in modules if target and (n == target or n.endswith(f".{target}"))}
        # A layer that has an adapter already is a LoraLayer around it.
        other = sorted(n for n in hits if not isinstance(modules[n], (*_KINDS, LoraLayer)))
        if other:
            raise ConfigError(
                f"lora.targets: {target!r} names {other[0]}, a {type(modules[other[0]]).__name__}; "
                "adapters go over linear layers and convolutions",
                hint="names of such layers end in: " + ", ".join(_endings(denoiser)),
            )
        if not hits:
            raise ConfigError(
                f"lora.targets: no layer of {type(denoiser).__name__} is named {target!r}",
                hint="names of its layers end in: " + ", ".join(_endings(denoiser)),
            )
        found |= hits
    return found


def _endings(denoiser: Any) -> list[str]:
    leaves = [name for name, module in denoiser.named_modules() if isinstance(module, _KINDS)]
    return sorted(
        {".".join(n.split(".")[-2:]) if n[-1].isdigit() else n.rsplit(".", 1)[-1] for n in leaves}
    )


def _layers(denoiser: Any) -> dict[str, Any]:
    return {name: m for name, m in denoiser.named_modules() if isinstance(m, LoraLayer)}
