"""The named deviations of Hugging Face diffusers: timestep frequencies, and eps before the channel mixer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from graftax.backbones.dit import with_compat
from graftax.backbones.embedders import timestep_features
from graftax.blocks import Context, bind, block_kind, build
from graftax.errors import BadInput
from graftax.models import forward
from graftax.models.backbone import find
from graftax.models.stack import apply_stack
from graftax.spec import op
from graftax.testing import random_params, tiny_spec

DIT = tiny_spec(depth=1)
DIFFUSERS = with_compat(DIT, "diffusers")


def test_frequencies_end_at_one_ten_thousandth():
    t = np.array([1.0, 999.0])
    angles = t[:, None] * 10000 ** (-np.arange(128) / 127)
    expected = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    np.testing.assert_allclose(timestep_features(jnp.asarray(t), "diffusers"), expected, atol=1e-4)
    assert np.abs(timestep_features(jnp.asarray(t)) - expected).max() > 0.5


@pytest.mark.parametrize(("compat", "mlp_eps"), [("dit", 1e-6), ("diffusers", 1e-5)])
def test_the_norms_of_a_block(compat, mlp_eps):
    """On tokens so small that eps matters: the norm before the mixer always has 1e-6."""
    import torch

    x = 1e-3 * np.random.default_rng(0).standard_normal((2, 5, 16), np.float32)
    gates_only = jnp.zeros((2, 96)).at[:, 32:48].set(1).at[:, 80:].set(1)  # (b, 6 d): no shift, no scale, gates 1
    spec = tiny_spec(depth=1, hidden_size=16, compat=compat)
    norms = {slot: bind(build(spec, "dit", slot, spec.blocks[0][slot]), {}, Context(x)) for slot in ("norm1", "norm2")}
    run = {**norms, "adaln": lambda: gates_only, "mixer": jnp.zeros_like, "mlp": jnp.zeros_like}
    _, taps = block_kind("dit")(run, {"img": jnp.asarray(x)}, Context(x), ("mixer/in", "mlp/in"))
    for slot, eps in (("mixer", 1e-6), ("mlp", mlp_eps)):
        expected = torch.nn.functional.layer_norm(torch.tensor(x), (16,), eps=eps)
        np.testing.assert_allclose(taps[f"{slot}/in"], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("plan", ["unroll", "kind_scan"])
def test_the_stack_computes_as_the_spec_says(plan):
    blocks = random_params(DIT, jax.random.key(0))["blocks"]
    blocks = jax.tree.map(lambda leaf: 1e-3 * leaf, blocks)  # so that little is added before the second norm
    x = 1e-3 * jax.random.normal(jax.random.key(1), (2, 16, 48))
    inputs = {"img": x}, Context(jax.random.normal(jax.random.key(2), (2, 48)))
    run = lambda spec: apply_stack(spec, blocks, *inputs, plan=plan, capture=("mixer/in", "mlp/in"))[1]  # noqa: E731
    taps = jax.jit(lambda: [run(spec) for spec in (DIT, DIFFUSERS)])()
    np.testing.assert_allclose(taps[0]["mixer/in"], taps[1]["mixer/in"], atol=1e-6)
    ratio = jnp.linalg.norm(taps[1]["mlp/in"]) / jnp.linalg.norm(taps[0]["mlp/in"])
    np.testing.assert_allclose(ratio, (2e-6 / 1.1e-5) ** 0.5, rtol=0.05)  # variance 1e-6 plus either eps


def test_the_whole_model_deviates_where_times_are_large():
    params = random_params(DIT, jax.random.key(0))
    x, y = jax.random.normal(jax.random.key(1), (2, 8, 8, 4)), jnp.array([1, 2])
    run = lambda params: [forward(spec, params, x, jnp.array([0, 900]), {"y": y})[0] for spec in (DIT, DIFFUSERS)]  # noqa: E731
    outs = jax.jit(run)(params)
    early, late = (float(jnp.linalg.norm(outs[1][i] - outs[0][i]) / jnp.linalg.norm(outs[0][i])) for i in range(2))
    assert early < 1e-4
    assert late > 1e-2


def test_other_norms_stay_and_eps_goes_both_ways():
    assert with_compat(DIFFUSERS, "dit") == DIT
    assert [DIFFUSERS.blocks[0][slot].option("eps") for slot in ("norm1", "norm2")] == [1e-6, 1e-5]
    grafted = DIT.replace(blocks=(DIT.blocks[0].with_op("norm2", op("rms_norm", affine=False, eps=1e-6)),))
    assert with_compat(grafted, "diffusers").blocks == grafted.blocks


def test_unknown_compat_is_refused():
    with pytest.raises(BadInput, match="compat: got 'timm', expected one of"):
        with_compat(DIT, "timm")
    with pytest.raises(BadInput, match="compat: got 'timm', expected one of"):
        find(DIT).check(DIT.with_frame(compat="timm"))
