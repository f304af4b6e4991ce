"""Moments that merge, against numpy; statistics of a model's taps against the taps themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_graft import teacher

from graftax.analyze.activations import Moments, activation_statistics
from graftax.errors import BadInput
from graftax.models.forward import embed
from graftax.models.stack import apply_stack
from graftax.surgery import graft, looped_parallel


def reference(values):
    """mean, std, kurtosis, peak over the last axis, in float64."""
    values = np.asarray(values, np.float64)
    e = values - values.mean(-1, keepdims=True)
    return values.mean(-1), values.std(-1), (e**4).mean(-1) / (e**2).mean(-1) ** 2, abs(values).max(-1)


def check(found, values, rtol):
    for ours, theirs in zip((found.mean, found.std, found.kurtosis, found.peak), reference(values), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=1e-7)


@pytest.mark.parametrize("offset", [0, 1e6])
def test_merged_moments_are_those_of_everything(offset):
    """Pieces of unequal size and scale, far from zero, where sums of squares would have lost all digits."""
    rng = np.random.default_rng(0)
    parts = [rng.standard_t(3, (3, m)) * scale + offset for m, scale in ((1, 1), (50, 0.1), (7, 30), (200, 2))]
    merged = Moments.empty((3,))
    for part in parts:
        merged = merged.merge(Moments.of(part))
    check(merged, np.concatenate(parts, -1), rtol=1e-8)
    np.testing.assert_allclose(merged.m3, Moments.of(np.concatenate(parts, -1)).m3, rtol=1e-6)
    both = Moments.of(np.stack([parts[1][:, :7], parts[2]]))  # (2, 3, 7)
    check(both.sum(0), np.concatenate([parts[1][:, :7], parts[2]], -1), rtol=1e-8)


def test_nothing_has_no_spread():
    empty = Moments.empty((2,))
    assert np.isnan(empty.std).all()
    assert np.isnan(empty.kurtosis).all()
    assert empty.merge(empty).count.tolist() == [0, 0]


def test_statistics_are_those_of_the_taps():
    model = graft(teacher(depth=4), looped_parallel(1, 3, loops=2), jax.random.key(0))
    rng = np.random.default_rng(0)
    batches = [
        (jnp.asarray(rng.standard_normal((3, 8, 8, 4), np.float32)), jnp.array(t), {"y": jnp.array([1, 2, 10])})
        for t in ((5, 100, 700), (800, 200, 990))
    ]
    found = activation_statistics(model, batches, bins=4)
    assert tuple(found) == ("mixer/out", "mlp/out")
    taps = [model.apply(x, t, **cond, capture=("mixer/out", "mlp/out"))[1] for x, t, cond in batches]
    for name, stats in found.items():
        assert stats.blocks == (0, 1, 2, 1, 2, 3)
        values = np.concatenate([np.asarray(tap[name]) for tap in taps], 1)  # (l, samples, n, d)
        check(stats.whole, values.reshape(len(values), -1), rtol=1e-4)
        last = values[:, [3, 5]]  # t 800 and 990
        check(Moments(*(leaf[3] for leaf in stats.by_time._leaves)), last.reshape(len(values), -1), rtol=1e-4)
        assert np.isnan(stats.by_time.std[1]).all()


def test_streams_by_themselves(two_streams, streams_batch):
    """Taps of several streams, and times that are shares of data."""
    found = activation_statistics(two_streams, [streams_batch], bins=2)
    assert tuple(found) == ("attn/out:img", "attn/out:txt", "img/mlp/out", "txt/mlp/out")
    x, t, cond = streams_batch
    spec = two_streams.spec
    state, context = embed(spec, two_streams.params, x, t, cond)
    _, taps = apply_stack(spec, two_streams.params["blocks"], state, context, capture=("attn/out", "txt/mlp/out"))
    values = {f"attn/out:{name}": np.asarray(tap) for name, tap in taps["attn/out"].items()}
    values["txt/mlp/out"] = np.asarray(taps["txt/mlp/out"])
    for name, one in values.items():
        assert found[name].blocks == (0, 1)
        check(found[name].whole, one.reshape(2, -1), rtol=1e-4)
        check(Moments(*(leaf[0] for leaf in found[name].by_time._leaves)), one[:, [0, 2]].reshape(2, -1), rtol=1e-4)


def test_refuses():
    with pytest.raises(BadInput, match="unknown taps"):
        activation_statistics(teacher(depth=4), [], ("norm1/middle",))
    with pytest.raises(BadInput, match="activations: no inputs"):
        activation_statistics(teacher(depth=4), [])
    with pytest.raises(BadInput, match="bins: got 0"):
        activation_statistics(teacher(depth=4), [], bins=0)
