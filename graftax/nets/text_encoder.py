"""Text encoders: prompts in, the conditions of text-to-image models out.

A folder is a text encoder's own, as transformers writes it, or that of a whole pipeline of diffusers, whose class says how
prompts are treated. Kinds of encoders are listed in `FAMILIES`, pipelines in `PIPELINES`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from graftax.checkpoint.hub import fetched
from graftax.checkpoint.hugging_face import CONFIG, PIPELINE, read_any_config
from graftax.checkpoint.members import shown
from graftax.checkpoint.tensors import Source
from graftax.errors import BadInput, naming
from graftax.nets import t5, t5_files, tokenizer
from graftax.nets.tokenizer import Tokenizer

PART, TOKENIZER_PART = "text_encoder", "tokenizer"
"""Folders of a pipeline."""


@dataclass(frozen=True)
class Family:
    """One kind of text encoder.

    Attributes:
        spec: what `config.json` describes; it has `vocab_size`, `pad_token_id` and `eos_token_id`.
        read: (folder, spec) -> (params, source).
        encode: (spec, params, ids, mask or None, hidden) -> what `TextEncoder.ids` returns.
        length: tokens of a prompt, unless a pipeline or the caller says otherwise.
    """

    spec: Callable[[Mapping[str, Any]], Any]
    read: Callable[[Path, Any], tuple[dict[str, Any], Source]]
    encode: Callable[[Any, dict[str, Any], jax.Array, jax.Array | None, bool], dict[str, Any]]
    length: int


FAMILIES = {"t5": Family(t5_files.spec_from_config, t5_files.read_params, t5.encode, 300)}
"""By `model_type` of `config.json`. A T5 by itself takes as many tokens as PixArt-Σ's."""


@dataclass(frozen=True)
class Prompting:
    """How a pipeline treats its prompts.

    Attributes:
        length: tokens to which they are padded and cut.
        lower: whether they are put in lower case and stripped of the space around them.
    """

    length: int
    lower: bool


PIPELINES = {"PixArtSigmaPipeline": Prompting(300, lower=True), "PixArtAlphaPipeline": Prompting(120, lower=True)}
"""By class. diffusers' PixArt also takes addresses, HTML and the like out of prompts where bs4 and ftfy are installed; where
they are not, it does what is done here."""


@dataclass(frozen=True, eq=False)
class TextEncoder:
    """A text encoder with its tokenizer: `encoder(["a red heart"])`.

    Attributes:
        family: what kind it is.
        spec: its sizes.
        params: its weights.
        source: where these came from.
        prompting: how prompts are treated.
        tokenizer: None where the folder has none; then only `ids` can be had.
        place: brings an array (b, m) to the devices.
    """

    family: Family
    spec: Any
    params: dict[str, Any]
    source: Source
    prompting: Prompting
    tokenizer: Tokenizer | None
    place: Callable[[np.ndarray], jax.Array] = jnp.asarray

    def __call__(self, prompts: Sequence[str]) -> dict[str, jax.Array]:
        """{"text": (b, m, d) float32, "text_mask": (b, m) int32}, 1 at tokens, which come first: `cond` of `graftax.sample`.

        m is `prompting.length`; what stands at padding means nothing. All prompts are encoded at once; an empty one has one
        token, the end. One that is too long is cut, which is said the first time. Raises `BadInput` on anything but a
        list of texts, and where there is no tokenizer.
        """
        ids, mask = self.tokenize(prompts)
        return {"text": self.ids(ids, mask)["last"], "text_mask": self.place(mask)}

    def tokenize(self, prompts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """ids and mask (b, m) int32 of the prompts; no device is used. Raises as a call does."""
        if self.tokenizer is None:
            raise BadInput(f"text encoder: no {tokenizer.FILE} beside its weights; {tokenizer.HOW_TO_MAKE}")
        texts = tokenizer.check_prompts(prompts)
        return self.tokenizer([text.lower().strip() for text in texts] if self.prompting.lower else texts)

    def ids(self, input_ids: ArrayLike, attention_mask: ArrayLike | None = None, hidden: bool = False) -> dict[str, Any]:
        """{"last": (b, m, d) float32} of token ids (b, m): the last block's output, normalised.

        attention_mask (b, m): 0 at tokens that are not to be seen, None: all are. With `hidden` also "hidden", a list of the
        embeddings, of what each block but the last returns, and "last". Raises `BadInput` on other shapes and types and on
        ids that are no tokens.
        """
        ids = np.asarray(input_ids)
        if ids.ndim != 2 or not ids.size or not np.issubdtype(ids.dtype, np.integer):
            raise BadInput(f"input_ids: {ids.dtype}{ids.shape}, expected integers (b, m)")
        if ids.min() < 0 or ids.max() >= self.spec.vocab_size:
            raise BadInput(f"input_ids: {ids.min()}..{ids.max()}, expected tokens in 0..{self.spec.vocab_size - 1}")
        mask = None if attention_mask is None else np.asarray(attention_mask)
        if mask is not None and mask.shape != ids.shape:
            raise BadInput(f"attention_mask: shape {mask.shape}, expected that of input_ids {ids.shape}")
        seen = None if mask is None else self.place((mask != 0).astype(np.int32))
        return self.family.encode(self.spec, self.params, self.place(ids.astype(np.int32)), seen, hidden)

    @property
    def sha256(self) -> str:
        """SHA-256 of all that its results depend on: sizes, weights and their types, tokenizer, prompting."""
        types = sorted({str(leaf.dtype) for leaf in jax.tree.leaves(self.params)})
        words = self.tokenizer.sha256 if self.tokenizer else ""
        parts = [repr(self.spec), self.source.sha256, types, words, repr(self.prompting)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def read_text_encoder(path: str | Path, max_length: int | None = None) -> TextEncoder:
    """The text encoder of a folder, its parameters numpy as stored; see `graftax.text_encoder`. No device is used."""
    if max_length is not None and (not isinstance(max_length, int) or isinstance(max_length, bool) or max_length < 1):
        raise BadInput(f"max_length: got {max_length!r}, expected a positive integer")
    folder, words, prompting = _located(fetched(path, PART, TOKENIZER_PART))
    family, spec = _described(folder)
    prompting = prompting or Prompting(family.length, lower=False)
    prompting = Prompting(max_length or prompting.length, prompting.lower)
    file, tokens = words / tokenizer.FILE, (spec.pad_token_id, spec.eos_token_id, spec.vocab_size)
    found = Tokenizer(file, prompting.length, *tokens) if file.is_file() else None
    params, source = family.read(folder, spec)
    return TextEncoder(family, spec, params, source, prompting, found)


def pipeline_texts(path: Path) -> tuple[Any, Prompting]:
    """The sizes of the text encoder in a pipeline's folder, and how prompts are treated; weights are not looked at."""
    return _described(path / PART)[1], _prompting(path / PIPELINE)


def is_pipeline(path: str | Path) -> bool:
    """Whether a folder is a pipeline's or its text encoder's, so that the pipeline says how prompts are treated."""
    return _located(fetched(path, PART, TOKENIZER_PART))[2] is not None


def _located(path: Path) -> tuple[Path, Path, Prompting | None]:
    """Where config and tokenizer are, and of a pipeline how it treats prompts."""
    root = path.parent if path.name == PART and (path.parent / PIPELINE).is_file() else path
    if (root / PIPELINE).is_file():
        prompting = _prompting(root / PIPELINE)
        if not (root / PART / CONFIG).is_file():
            raise BadInput(f"{root}: a pipeline without {PART}/{CONFIG}, expected it, or a text encoder's own folder")
        return root / PART, root / TOKENIZER_PART, prompting
    if not (root / CONFIG).is_file():
        what = "no such folder" if not root.exists() else "a file" if root.is_file() else "no text encoder"
        raise BadInput(f"{root}: {what}, expected a folder with {CONFIG}, or a pipeline's with {PIPELINE}")
    return root, root, None


def _prompting(index: Path) -> Prompting:
    try:
        name = json.loads(index.read_text())["_class_name"]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise BadInput(f"{index}: not that of a pipeline ({shown(repr(error))})") from None
    if not isinstance(name, str) or name not in PIPELINES:
        raise BadInput(f"{index}: a {shown(name)}, expected one of {', '.join(PIPELINES)}")
    return PIPELINES[name]


def _described(folder: Path) -> tuple[Family, Any]:
    """What a text encoder's folder has, by its config."""
    config = read_any_config(folder)
    family = _family(folder, config)
    with naming(folder / CONFIG):
        return family, family.spec(config)


def _family(folder: Path, config: Mapping[str, Any]) -> Family:
    name = config.get("model_type", config.get("_class_name", ""))
    if not isinstance(name, str) or name not in FAMILIES:
        raise BadInput(f"{folder / CONFIG}: a {shown(name)}, expected a text encoder of model_type {', '.join(FAMILIES)}")
    return FAMILIES[name]
