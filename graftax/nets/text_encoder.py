"""Text encoders: prompts in, the conditions of text-to-image models out.

A folder is a text encoder's own, as transformers writes it, or that of a whole pipeline of diffusers, whose class says how
prompts are treated. Kinds of encoders are listed in `text_families.FAMILIES`, pipelines in `prompting.PIPELINES`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from graftax.checkpoint.hub import fetched
from graftax.checkpoint.hugging_face import CONFIG, PART, PIPELINE, pipeline_class
from graftax.checkpoint.members import shown
from graftax.checkpoint.tensors import Source
from graftax.errors import BadInput, naming
from graftax.nets import tokenizer
from graftax.nets.prompting import PIPELINES, SCHEDULER, Prompting
from graftax.nets.text_families import FAMILIES, Family, described
from graftax.nets.tokenizer import Tokenizer

PARTS = {f"text_encoder{number}": f"tokenizer{number}" for number in ("", "_2", "_3")}
"""Folders of a pipeline: those of its text encoders, and of the tokenizer of each."""

FOLDERS = (*PARTS, *PARTS.values(), SCHEDULER)
"""Folders of a pipeline that are read here."""


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
        """`cond` of `graftax.sample`: {"text": (b, m, d) float32, "text_mask": (b, m) int32}, 1 at tokens, which come first.

        What stands at padding means nothing; AuraFlow's is zero, and there is no mask. A CLIP also gives "pooled" (b, d).
        m is `prompting.length`. All prompts are encoded at once; an empty one has one token, the end, before which a CLIP
        has a start. One that is too long is cut, which is said the first time. Raises `BadInput` on anything but a list of
        texts, and where there is no tokenizer.
        """
        return self.prompting.cond(prompts, (self,))

    def tokenize(self, prompts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """ids and mask (b, m) int32 of the prompts; no device is used. Raises as a call does."""
        if self.tokenizer is None:
            raise BadInput(f"text encoder: no {self.family.lacking}")
        texts = tokenizer.check_prompts(prompts)
        return self.tokenizer([text.lower().strip() for text in texts] if self.prompting.lower else texts)

    def ids(self, input_ids: ArrayLike, attention_mask: ArrayLike | None = None, hidden: bool = False) -> dict[str, Any]:
        """{"last": (b, m, d) float32} of token ids (b, m): the last block's output, normalised.

        attention_mask (b, m): 0 at tokens that are not to be seen, None: all are. With `hidden` also "hidden", a list of the
        embeddings, of what each block but the last returns, and "last". A CLIP also gives "pooled" (b, d) and, where it has
        a projection, "projected" (b, c), and its "hidden" ends with the last block's output before the norm, see
        `graftax.nets.clip.encode`. Raises `BadInput` on other shapes and types and on ids that are no tokens.
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


@dataclass(frozen=True, eq=False)
class TextEncoders:
    """The text encoders of a pipeline that has several: `encoders(["a red heart"])`.

    Attributes:
        parts: in the order of the pipeline's folders, each with its tokenizer.
        prompting: how prompts are treated.
    """

    parts: tuple[TextEncoder, ...]
    prompting: Prompting

    def __call__(self, prompts: Sequence[str]) -> dict[str, jax.Array]:
        """`cond` of `graftax.sample`, float32: {"text": (b, m, d), "pooled": (b, c)}. Raises as a `TextEncoder` does."""
        return self.prompting.cond(prompts, self.parts)

    @property
    def sha256(self) -> str:
        """SHA-256 of all that its results depend on."""
        parts = [repr(self.prompting), *(part.sha256 for part in self.parts)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def read_text_encoder(path: str | Path, max_length: int | None = None) -> TextEncoder | TextEncoders:
    """The text encoder of a folder, its parameters numpy as stored; see `graftax.text_encoder`. No device is used.

    Of a pipeline with several it is all of them, and `max_length` the T5's.
    """
    if max_length is not None and (not isinstance(max_length, int) or isinstance(max_length, bool) or max_length < 1):
        raise BadInput(f"max_length: got {max_length!r}, expected a positive integer")
    folders, prompting = _found(path)
    if prompting is None:
        return _read(*folders[0], FAMILIES, max_length)
    root = folders[0][0].parent
    prompting = prompting.at(root, max_length)
    whole = prompting if len(prompting.encoders) == 1 else None
    pairs = zip(folders, prompting.encoders, strict=False)  # the last ones may be missing
    lengths = {kind: prompting.length if family.length else None for kind, family in FAMILIES.items()}
    parts = tuple(_read(*folder, kinds, lengths[kinds[0]], whole) for folder, kinds in pairs)
    if whole:
        return parts[0]
    if without := [(words, part) for (_, words), part in zip(folders, parts, strict=True) if part.tokenizer is None]:
        raise BadInput(f"{without[0][0]}: no {without[0][1].family.lacking}")
    with naming(root):
        prompting.check(parts)
    return TextEncoders(parts, prompting)


def pipeline_texts(path: Path) -> tuple[dict[str, Any], Prompting]:
    """Sizes of the text encoders in a pipeline's folder, by the names of theirs, and how prompts are treated; weights are
    not looked at."""
    folders, prompting = _located(path)
    assert prompting is not None, "what the folder of a pipeline has"
    pairs = zip(folders, prompting.encoders, strict=False)
    return {folder.name: described(folder, kinds)[1] for (folder, _), kinds in pairs}, prompting.at(path, None)


def is_pipeline(path: str | Path) -> bool:
    """Whether a folder is a pipeline's, or that of its only text encoder: the pipeline says how prompts are treated."""
    return _located(fetched(path, *FOLDERS))[1] is not None


def _read(
    folder: Path, words: Path, kinds: Collection[str], length: int | None, prompting: Prompting | None = None
) -> TextEncoder:
    """One text encoder, `length` tokens of a prompt where it takes any number; `prompting` None: as it is by itself."""
    family, spec = described(folder, kinds)
    if prompting is None:
        prompting = family.alone(family.tokens(spec, length))
    found = family.tokenizer(words, spec, prompting.length)
    params, source = family.read(folder, spec)
    return TextEncoder(family, spec, params, source, prompting, found)


def _found(path: str | Path) -> tuple[list[tuple[Path, Path]], Prompting | None]:
    """`_located`, of an address `fetched`: also, where a pipeline leaves its last text encoder out, what its model says of
    itself, which tells how wide texts are."""
    folders, prompting = _located(fetched(path, *FOLDERS))
    if prompting is not None and len(folders) < len(prompting.encoders):
        fetched(path, PART, weights=False)
    return folders, prompting


def _located(path: Path) -> tuple[list[tuple[Path, Path]], Prompting | None]:
    """Folders of each text encoder and of its tokenizer, and of a pipeline how it treats prompts."""
    if (path / PIPELINE).is_file():
        prompting = _prompting(path / PIPELINE)
        return _parts(path, prompting), prompting
    if path.name in PARTS and (path.parent / PIPELINE).is_file():
        if len(_prompting(path.parent / PIPELINE).encoders) == 1:
            return _located(path.parent)
        return [(path, path.parent / PARTS[path.name])], None
    if not (path / CONFIG).is_file():
        what = "no such folder" if not path.exists() else "a file" if path.is_file() else "no text encoder"
        raise BadInput(f"{path}: {what}, expected a folder with {CONFIG}, or a pipeline's with {PIPELINE}")
    return [(path, path)], None


def _parts(root: Path, prompting: Prompting) -> list[tuple[Path, Path]]:
    """Likewise of a pipeline. Raises `BadInput` where one is missing that must be there."""
    wanted = list(PARTS)[: len(prompting.encoders)]
    missing = [name for name in wanted if not (root / name / CONFIG).is_file()]
    if lacking := [name for name in missing if name not in wanted[len(wanted) - prompting.optional :]]:
        raise BadInput(f"{root}: a pipeline without {lacking[0]}/{CONFIG}, expected it, or a text encoder's own folder")
    return [(root / name, root / PARTS[name]) for name in wanted if name not in missing]


def _prompting(index: Path) -> Prompting:
    if (name := pipeline_class(index)) not in PIPELINES:
        raise BadInput(f"{index}: a {shown(name)}, expected one of {', '.join(PIPELINES)}")
    return PIPELINES[name]
