"""A model of two streams and of times that run the other way, as small as one can be."""

import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from graftax.blocks import BLOCKS, BlockKind, Context, Slot, resolve
from graftax.models import Model, random_params
from graftax.spec import BACKBONES, ModelSpec, Prediction, Sizes, op


class PairBlock(BlockKind):
    """Joint attention, then an MLP for each stream."""

    kind = "pair"
    slots = (
        Slot("attn", "mixer", streams=("txt", "img")), Slot("img/mlp", "channel"),
        Slot("txt/mlp", "channel", streams=("txt",)),
    )  # fmt: skip

    def body(self, run, state, context, tap):
        tap("attn/in", state)
        y = run["attn"](jnp.concatenate([state["txt"], state["img"]], 1) + context.vec[:, None])
        m = state["txt"].shape[1]
        y = tap("attn/out", {"txt": y[:, :m], "img": y[:, m:]})
        state = {name: x + y[name] for name, x in state.items()}
        return {name: x + tap(f"{name}/mlp/out", run[f"{name}/mlp"](tap(f"{name}/mlp/in", x))) for name, x in state.items()}


class PairBackbone:
    """Pixels as they are and a text that is given; the time is all of the conditioning vector."""

    fixed = ()

    def declare(self, module, spec):
        module.param("time", lambda _: jnp.ones(spec.width))

    def embed(self, spec, params, x, t, cond, dtype):
        tokens = x.reshape(len(x), -1, spec.option("channels"))
        return {"img": tokens, "txt": cond["text"]}, Context(params["time"] * t[:, None])


@pytest.fixture
def two_streams(monkeypatch):
    """4 image tokens of width 8 and 3 text tokens, two blocks; t is the share of data."""
    monkeypatch.setitem(sys.modules, "pair_backbone", SimpleNamespace(BACKBONE=PairBackbone()))
    monkeypatch.setitem(BACKBONES, "pair", "pair_backbone")
    monkeypatch.setitem(BLOCKS, "pair", PairBlock())
    sizes = Sizes(8, 2, 4, (2, 2), text=3)
    block = resolve("pair", sizes, {"attn": op("mha"), "img/mlp": op("mlp"), "txt/mlp": op("mlp")})
    spec = ModelSpec("pair", sizes, (("patch", 1), ("channels", 8)), Prediction("velocity", "data", False), (block,) * 2)
    return Model(spec, random_params(spec, jax.random.key(0)))


@pytest.fixture
def streams_batch():
    """Inputs of `two_streams`: two of data, one of noise."""
    x, text = (jax.random.normal(jax.random.key(i), (3, *shape)) for i, shape in enumerate([(2, 2, 8), (3, 8)]))
    return x, jnp.array([0.9, 0.2, 1.0]), {"text": text}
