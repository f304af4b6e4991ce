"""What layers as painters are to paint: a model of any family with its prompts, its classes, or random numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from graftax.analyze import stretches
from graftax.data.pixels.decoding import Decode
from graftax.data.text.captions import read_prompts
from graftax.errors import BadInput
from graftax.models import Model
from graftax.models.backbone import find
from graftax.spec import ModelSpec, Option
from graftax.study.stages import open_to_draw, read_model
from graftax.study.text_to_image import open_pipeline

BLOG, RANDOM = "blog", "random"
"""Prompts that are no file: those of `blog_prompts.txt`; none, but random numbers in the place of texts."""

PROMPTS = Path(__file__).with_name("blog_prompts.txt")
FEW = 5
"""Conditions where there are no prompts, as many as the blog has."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A model with what it is to paint.

    Attributes:
        model: on the devices.
        prompts: or the names of what stands in their place.
        cond: the model's conditions (n, ...), one for each prompt.
        source: where these come from.
        null: (1, ...) what guidance leads away from; None: the model's own.
        decode: from its arrays to pixels; None where there is no way.
    """

    model: Model
    prompts: tuple[str, ...]
    cond: Mapping[str, Any]
    source: str
    null: Mapping[str, Any] | None = None
    decode: Decode | None = None


def open_subject(
    name: str, prompts: str | None = None, *, text_encoder: str | None = None, text_dtype: str | None = None,
    latents: str = "auto", vet: Callable[[ModelSpec], object] = bool, overrides: Mapping[str, Option] | None = None,
) -> Subject:  # fmt: skip
    """The model `name` with `prompts`: `BLOG`, a file with one a line, or `RANDOM`; None: the blog's, of a class model its
    classes.

    Other arguments as in `open_pipeline`. Raises `BadInput` as that does, where prompts are given to a class model, and
    where a program is too short to be reordered.
    """
    spec = read_model(name, bool, **{k: v for k, v in (overrides or {}).items() if k != "dtype"}).spec

    def vet_program(spec: ModelSpec) -> None:
        if not any(one.centred() for one in stretches(spec)):
            raise BadInput(f"model {name}: a program of {len(spec.program)} steps, expected three of one make")
        vet(spec)

    if prompts not in (None, RANDOM) and spec.classes:
        raise BadInput(f"prompts: got {prompts}, but {name} takes one of {spec.classes} classes, expected none")
    if prompts == RANDOM or spec.classes:
        model, (names, cond, source), decode = open_to_draw(
            name, _classes if spec.classes else _random, latents=latents, vet=vet_program, overrides=overrides
        )
        null = None if spec.classes else {key: np.asarray(value) for key, value in find(spec).example(spec, 1).items()}
        return Subject(model, names, cond, source, null, _shows(model.spec, latents, decode))
    texts = read_prompts(PROMPTS if prompts in (None, BLOG) else prompts)
    pipeline = open_pipeline(
        name, texts, text_encoder=text_encoder, text_dtype=text_dtype, latents=latents, vet=vet_program, overrides=overrides
    )
    source = f"texts as {pipeline.reader} reads them"
    decode = _shows(pipeline.model.spec, latents, pipeline.decode)
    return Subject(pipeline.model, tuple(texts), pipeline.conditions(texts), source, pipeline.null(), decode)


def _shows(spec: ModelSpec, latents: str, decode: Decode | None) -> Decode | None:
    """The decoder, but where nothing is to be decoded and the arrays are no pictures."""
    return None if latents == "none" and spec.option("channels") not in (1, 3) else decode


def _classes(spec: ModelSpec) -> tuple[tuple[str, ...], dict[str, Any], str]:
    """Classes that are evenly spread."""
    labels = np.unique(np.arange(FEW) * spec.classes // FEW).astype(np.int32)
    return tuple(f"class {label}" for label in labels), {"y": labels}, "classes"


def _random(spec: ModelSpec) -> tuple[tuple[str, ...], dict[str, Any], str]:
    """The backbone's example with independent numbers from N(0, 1) in the place of all embeddings."""
    rng = np.random.default_rng(0)
    cond = {name: np.asarray(value) for name, value in find(spec).example(spec, FEW).items()}
    for name, value in cond.items():
        if value.ndim > 1 and np.issubdtype(value.dtype, np.floating):
            cond[name] = rng.standard_normal(value.shape).astype(value.dtype)
    drawn = "random numbers in the place of texts: the pictures show no prompt"
    return tuple(f"random {i}" for i in range(FEW)), cond, drawn
