"""The Hyena measurement at toy size: columns as documented; attention by heads is attention."""

import jax
import numpy as np
import pytest

from graftax.evaluate.bench.hyena import AttentionByHead, bench_hyena
from graftax.ops.attention import MHA
from graftax.spec import Sizes

pytestmark = pytest.mark.full_compiler

SIZES = Sizes(width=24, heads=3, head_dim=8, grid=(4, 5))


def test_rows():
    rows = bench_hyena(tokens=(16, 64), width=24, heads=3, whole_up_to=16, rounds=1)
    assert [(row["tokens"], row["attention"]) for row in rows] == [(16, "whole"), (64, "by head")]
    assert rows[0].keys() == rows[1].keys()
    for row in rows:
        for prefix in ("", "train_"):
            ratio = row[f"{prefix}attention_ms"] / row[f"{prefix}hyena_ms"]
            np.testing.assert_allclose(row[f"{prefix}speedup"], ratio, rtol=1e-6)  # one round: no medians to differ


def test_attention_by_head_is_attention():
    x, g = np.random.default_rng(0).standard_normal((2, 2, 20, 24), np.float32)
    whole, by_head = MHA(SIZES), AttentionByHead(SIZES)
    variables = jax.jit(whole.init)(jax.random.key(0), x)

    def pulled(operator):
        out, back = jax.vjp(operator.apply, variables, x)
        return out, back(g)

    (out, back), (other, other_back) = (jax.jit(pulled, static_argnums=0)(operator) for operator in (whole, by_head))
    np.testing.assert_allclose(other, out, atol=1e-6)
    for ours, theirs in zip(jax.tree.leaves(other_back), jax.tree.leaves(back), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
