"""How many tokens a caption has for the pipeline that will learn it.

Read from the pipeline folder with ``tokenizers``, which needs no torch. Where a pipeline has
several tokenizers (SDXL two, SD3 three), a caption is too long only if it is too long for all:
what one encoder cuts, another still sees.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LARGEST = 100_000  # a `model_max_length` beyond it means that there is none


@dataclass(frozen=True, slots=True)
class Tokens:
    """``count`` of a text, marks of beginning and end among them; ``most`` that the encoder
    sees."""

    count: Callable[[str], int]
    most: int


def tokens_of(pipeline: Path) -> Tokens | None:
    """The longest tokenizer of a pipeline folder; None if there is none that can be read, or
    ``tokenizers`` is not installed."""
    found = [t for t in (_read(f) for f in sorted(pipeline.glob("tokenizer*"))) if t is not None]
    return max(found, key=lambda t: t.most, default=None)


def _read(folder: Path) -> Tokens | None:
    try:
        from tokenizers import Tokenizer
    except ImportError:
        return None
    try:
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        most = int(settings["model_max_length"])
        file = folder / "tokenizer.json"
        tokenizer = Tokenizer.from_file(str(file)) if file.is_file() else _clip(folder)
    except Exception:  # the library raises Exception itself for a file that it cannot read
        return None
    if not 0 < most < LARGEST:
        return None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return Tokens(count=lambda text: len(tokenizer.encode(text).ids), most=most)


def _clip(folder: Path) -> Any:
    """CLIP's byte-pair tokenizer from ``vocab.json`` and ``merges.txt``, for folders written before
    there was a ``tokenizer.json``. (Radford et al. 2021, arXiv:2103.00020, section 2.4; the pattern
    is that of openai/CLIP ``simple_tokenizer.py``.)"""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    start, end = "<|startoftext|>", "<|endoftext|>"
    model = models.BPE.from_file(
        str(folder / "vocab.json"),
        str(folder / "merges.txt"),
        unk_token=end,
        end_of_word_suffix="</w>",
        continuing_subword_prefix="",
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    from tokenizers.processors import TemplateProcessing

    tokenizer.post_processor = TemplateProcessing(
        single=f"{start} $A {end}",
        special_tokens=[(t, tokenizer.token_to_id(t)) for t in (start, end)],
    )
    return tokenizer
