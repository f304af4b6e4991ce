"""Kinds of text encoders, by `model_type` of their `config.json`: a new one is one line of `FAMILIES`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from graftax.checkpoint.hugging_face import CONFIG, read_any_config
from graftax.checkpoint.members import shown
from graftax.checkpoint.tensors import Source
from graftax.errors import BadInput, naming
from graftax.nets import clip, clip_files, clip_tokenizer, t5, t5_files, tokenizer
from graftax.nets.prompting import OneCLIP, Prompting
from graftax.nets.tokenizer import Tokenizer


@dataclass(frozen=True)
class Family:
    """One kind of text encoder.

    Attributes:
        spec: what `config.json` describes; it has `vocab_size` and `summary`.
        read: (folder, spec) -> (params, source).
        encode: (spec, params, ids, mask or None, hidden) -> what `TextEncoder.ids` returns.
        tokenizer: (folder, spec, length) -> tokenizer, None where the folder has none.
        lacking: what a folder has not, then.
        alone: how prompts are treated where no pipeline says it.
        length: tokens of a prompt, unless a pipeline or the caller says otherwise; None: as many as its spec has positions.
    """

    spec: Callable[[Mapping[str, Any]], Any]
    read: Callable[[Path, Any], tuple[dict[str, Any], Source]]
    encode: Callable[[Any, dict[str, Any], jax.Array, jax.Array | None, bool], dict[str, Any]]
    tokenizer: Callable[[Path, Any, int], Tokenizer | None]
    lacking: str
    alone: type[Prompting]
    length: int | None

    def tokens(self, spec: Any, asked: int | None) -> int:
        """Tokens of a prompt where so many are `asked` for, None: as usual. Raises `BadInput` where it takes fewer."""
        if not self.length and asked and asked > (most := spec.max_position_embeddings):
            raise BadInput(f"max_length: got {asked}, expected at most {most}, for which there are positions")
        return asked or self.length or spec.max_position_embeddings


def _t5_tokenizer(folder: Path, spec: t5.T5Spec, length: int) -> Tokenizer | None:
    file = folder / tokenizer.FILE
    found = file.is_file()
    return Tokenizer(file, length, spec.pad_token_id, spec.eos_token_id, spec.vocab_size) if found else None


def _clip_tokenizer(folder: Path, spec: clip.CLIPSpec, length: int) -> Tokenizer | None:
    return clip_tokenizer.clip_tokenizer(folder, length, spec.vocab_size)


T5 = Family(
    t5_files.spec_from_config, t5_files.read_params, t5.encode, _t5_tokenizer,
    f"{tokenizer.FILE} beside its weights; {tokenizer.HOW_TO_MAKE}", Prompting, 300,
)  # fmt: skip
CLIP = Family(
    clip_files.spec_from_config, clip_files.read_params, clip.encode, _clip_tokenizer,
    f"{tokenizer.FILE} beside its weights, nor {clip_tokenizer.VOCABULARY} with {clip_tokenizer.MERGES}", OneCLIP, None,
)  # fmt: skip
FAMILIES = {"t5": T5, "umt5": T5, "clip_text_model": CLIP}
"""By `model_type` of `config.json`. A T5 by itself takes as many tokens as PixArt-Σ's."""


def described(folder: Path, kinds: Collection[str] = tuple(FAMILIES)) -> tuple[Family, Any]:
    """What a text encoder's folder has, and its sizes, by its config. Raises `BadInput` unless it is one of `kinds`."""
    config = read_any_config(folder)
    name = config.get("model_type", config.get("_class_name", ""))
    if not isinstance(name, str) or name not in kinds:
        raise BadInput(f"{folder / CONFIG}: a {shown(name)}, expected a text encoder of model_type {', '.join(kinds)}")
    with naming(folder / CONFIG):
        return FAMILIES[name], FAMILIES[name].spec(config)
