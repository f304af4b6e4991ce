"""Texts as numbers of words, read by a small encoder inside of the model, which learns its language with its pictures.

Models of a closed vocabulary need no text encoder of their own making: theirs is one of T5's kind (`graftax.nets.t5`)
among the model's parameters. The frame's option `words` says how many words there are; 0, or no such option: texts come
embedded. Word 0 fills a text up, word 2 ends it, so that the empty caption has one word. The option `vocabulary` names whose
words they are, where that is known.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from graftax.errors import BadInput
from graftax.models.model import all_known
from graftax.nets import t5
from graftax.nets.t5 import T5Spec
from graftax.ops.base import Params
from graftax.spec import ModelSpec, Option

OPTIONS = {"words": 0, "text_blocks": 1, "text_heads": 1}
"""The frame's options of such models, and the least that each may be."""

VOCABULARY = "vocabulary"
"""The frame's option that says whose words they are."""

PAD, END = 0, 2
"""Numbers of words with a meaning of their own; 1 stands for words that are not known, which no training sees."""

NAME = "words"
"""Of the encoder among the model's parameters."""

_HIDDEN = 5, 2  # hidden width of the MLPs over the width, as in T5 v1.1 XL


def reads_words(spec: ModelSpec) -> bool:
    """Whether texts are numbers of words."""
    return bool(spec.option("words", 0))


def encoder(spec: ModelSpec) -> T5Spec:
    """The text encoder's sizes. Raises `BadInput` where the text's width does not divide into heads."""
    width, heads = spec.option("text_width"), spec.option("text_heads")
    if width % heads:
        raise BadInput(f"ModelSpec.frame text_heads: got {heads}, expected a divisor of text_width {width}")
    return T5Spec(
        vocab_size=spec.option("words"), d_model=width, d_kv=width // heads, d_ff=width * _HIDDEN[0] // _HIDDEN[1],
        num_layers=spec.option("text_blocks"), num_heads=heads, pad_token_id=PAD, eos_token_id=END,
    )  # fmt: skip


def check_vocabulary(spec: ModelSpec) -> None:
    """Raise `BadInput` where the frame's options of words do not fit together."""
    name = spec.option(VOCABULARY, "")
    if not isinstance(name, str) or (name and not reads_words(spec)):
        raise BadInput(f"ModelSpec.frame {VOCABULARY}: got {name!r}, expected a name, of a model that reads words")
    if reads_words(spec):
        encoder(spec)


def with_vocabulary(spec: ModelSpec, name: Option | None) -> ModelSpec:
    """`spec`, which now says whose words it reads (None: as before). Raises `BadInput` where it says otherwise already."""
    if name is None or name == (said := spec.option(VOCABULARY)):
        return spec
    if said is not None:
        raise BadInput(f"override {VOCABULARY}={name!r}: the file says {said!r}")
    named = spec.with_frame(**{VOCABULARY: name})
    check_vocabulary(named)
    return named


def declare(module: nn.Module, spec: ModelSpec) -> None:
    """Create the text encoder's parameters inside `module`."""
    module.param(NAME, lambda key: t5.init(encoder(spec), key))


def embedded(spec: ModelSpec, params: Params, text: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Words (b, m) int -> their embeddings (b, m, c) float32, and which are real (b, m) bool."""
    mask = text != PAD
    return t5.encode(encoder(spec), params[NAME], text, mask)["last"], mask


def empty(count: int, length: int) -> jax.Array:
    """The empty caption (count, length) int32, as often as asked for."""
    return jnp.full((count, length), PAD, jnp.int32).at[:, 0].set(END)


def check(spec: ModelSpec, count: int, text: jax.Array) -> None:
    """Raise `BadInput` unless `text` is words (b, m) for `count` images."""
    words = spec.option("words")
    if text.ndim != 2 or len(text) != count or not text.shape[1] or not jnp.issubdtype(text.dtype, jnp.integer):
        raise BadInput(f"text: {text.dtype}{text.shape}, expected numbers of words of integer type ({count}, m), m >= 1")
    if not all_known(text, lambda text: (text >= 0) & (text < words)):
        raise BadInput(f"text: words {int(text.min())}..{int(text.max())}, expected 0..{words - 1}")


def cost(spec: ModelSpec) -> tuple[int, int]:
    """Parameters, and FLOPs for one text of as many words as the model was made for."""
    sizes, m = encoder(spec), spec.sizes.context or spec.sizes.text
    d, inner, hidden, blocks = sizes.d_model, sizes.num_heads * sizes.d_kv, sizes.d_ff, sizes.num_layers
    matrices = 4 * d * inner + 3 * d * hidden
    tables = sizes.vocab_size * d + sizes.relative_attention_num_buckets * sizes.num_heads
    return blocks * (matrices + 2 * d) + tables + d, blocks * (2 * m * matrices + 4 * m * m * inner)
