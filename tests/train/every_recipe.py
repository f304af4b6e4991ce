"""Every recipe, each on a small model that it goes with: what meshes and kill -9 are tried on. Run as a script one of them
trains until it is done or kills itself: every_recipe.py NAME WORKDIR [KILL_AT_BATCH]."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from graftax.backbones.dit import dit_spec
from graftax.backbones.maskdit import maskdit_spec
from graftax.backbones.pixart import pixart_spec
from graftax.nets import autoencoder
from graftax.nets.autoencoder import AutoencoderSpec
from graftax.ops.base import Params
from graftax.spec import ModelSpec, Prediction
from graftax.testing import random_params
from graftax.train import LoopConfig, OptimiserConfig, diffusion_loss, fit, train_job, training_tree
from graftax.train.recipes import Recipe
from graftax.train.recipes.base import TOKENIZER
from graftax.train.recipes.end_to_end import EndToEnd, small_tokenizer
from graftax.train.recipes.foundation import Foundation

SIZES = {"input_size": 8, "patch_size": 2, "hidden_size": 64, "num_heads": 4, "num_classes": 10}
DECODER = {"decoder_width": 32, "decoder_depth": 1, "decoder_heads": 4}
SMALL = AutoencoderSpec(width=8)
# A large eps: with the usual one Adam's first updates are signs, which turn rounding into whole steps.
OPTIMISER = OptimiserConfig(learning_rate=0.02, warmup_steps=1, eps=0.1)
ALIGNED = "tread(1, 1) + repa(2, width=6, hidden=8)"


class Fixed:
    """Batch i is a function of i; `before(i)` runs first."""

    def __init__(
        self, size: int = 16, shape: tuple[int, ...] = (8, 8, 4), before: Callable[[int], object] = bool,
        words: bool = False, tokens: int = 16,
    ) -> None:  # fmt: skip
        self.size, self.shape, self.position, self.before, self.words, self.tokens = size, shape, 0, before, words, tokens

    def __next__(self) -> dict[str, np.ndarray]:
        self.before(self.position)
        rng = np.random.default_rng(self.position)
        self.position += 1
        image = rng.standard_normal((self.size, *self.shape)).astype(np.float32)
        label = rng.integers(0, 10, self.size).astype(np.int32)
        shapes = {"features": (self.tokens, 6), "text": (5, 6), "pooled": (4,)}
        beside = {name: rng.standard_normal((self.size, *shape)).astype(np.float32) for name, shape in shapes.items()}
        if self.words:
            beside = {name: rng.integers(3, 20, (self.size, 6)).astype(np.int32) for name in ("text", "against")}
        return {"image": image, "label": label, **beside}

    def state(self) -> int:
        return self.position

    def restore(self, state: int) -> None:
        self.position = state


@dataclass(frozen=True)
class Case:
    """A recipe and its model; `pixels`: trained with the autoencoder that makes the latents."""

    spec: ModelSpec
    text: str
    pixels: bool = False

    @property
    def recipe(self) -> Recipe:
        return Recipe.parse(self.text)

    def loss(self) -> Any:
        loss = diffusion_loss(self.spec, recipe=self.recipe)
        return EndToEnd(loss, small_tokenizer(SMALL)) if self.pixels else loss

    def tree(self) -> Params:
        key = jax.random.key(0)
        tree = training_tree(self.spec, random_params(self.spec, key), (), self.recipe)
        return {**tree, TOKENIZER: autoencoder.init(SMALL, key)} if self.pixels else tree

    def data(self, before: Callable[[int], object] = bool) -> Fixed:
        words = bool(self.spec.option("words", 0))
        return Fixed(shape=(32, 32, 1) if self.pixels else (8, 8, 4), before=before, words=words)


class Aligned:
    """VA-VAE's loss, of an autoencoder alone."""

    term = Foundation(6)

    def loss(self) -> Any:
        return self.term.loss(SMALL)

    def tree(self) -> Params:
        return {**autoencoder.init(SMALL, jax.random.key(0)), **self.term.head(SMALL, jax.random.key(1))}

    def data(self, before: Callable[[int], object] = bool) -> Fixed:
        return Fixed(shape=(32, 32, 1), before=before, tokens=64)


def cases() -> dict[str, Case | Aligned]:
    """By name; every term of recipes is in one or more."""
    noise, flow = dit_spec(depth=3, **SIZES), Prediction("velocity", "data", variance=False)
    masked = maskdit_spec(depth=2, **SIZES, **DECODER)
    words = {"text_width": 32, "text_tokens": 6, "words": 20, "text_blocks": 1, "text_heads": 4}
    reading = pixart_spec(depth=3, **{name: size for name, size in SIZES.items() if name != "num_classes"}, **words)
    joint = dit_spec(depth=3, learn_sigma=False, **SIZES).replace(prediction=flow)
    return {
        "whole": Case(noise, f"{ALIGNED} + stochastic_depth(0.3) + sra(1, 3) + dispersive(3, group=4)"),
        "batch": Case(noise, f"{ALIGNED} + stochastic_depth(0.3, mode=batch)"),
        "masked": Case(masked, "mask(0.5) + repa(1, width=6, hidden=8) + sra(1, 2)"),
        "joint": Case(joint.with_frame(features=1), "features(0.5) + tread(1, 1) + dispersive(3, group=4)"),
        "reading": Case(reading, "hard_negatives(0.3) + tread(1, 1)"),
        "end_to_end": Case(joint, "repa(2, width=6, hidden=8)", pixels=True),
        "foundation": Aligned(),
    }


if __name__ == "__main__":
    name, folder, *shot = sys.argv[1:]
    case, at = cases()[name], int(shot[0]) if shot else -1

    def before(position: int) -> None:
        if position == at:
            os.kill(os.getpid(), signal.SIGKILL)

    job = train_job(case.tree, case.loss(), OPTIMISER, ema_decay=0.5)
    state = fit(job, case.data(before), LoopConfig(steps=6, seed=3, log_every=2, save_every=2), Path(folder), show=False)
    np.savez(Path(folder) / "final.npz", *[np.asarray(leaf) for leaf in jax.tree.leaves(state)])
