"""Other latents: the embedder is found again where they are a linear map of the old ones; the last layer is optimal."""

import jax
import numpy as np
import pytest
from tiny_graft import teacher

from graftax.diffusion import Process
from graftax.distill import fit_latents
from graftax.errors import BadInput
from graftax.surgery import graft, patch
from graftax.testing import assert_same_leaves
from graftax.train import diffusion_loss

OF = teacher(depth=1, hidden_size=16, num_heads=2)
MIX = np.linalg.qr(np.random.default_rng(5).standard_normal((20, 16)))[0].astype(np.float32)
"""From a token's numbers in the old latents (2 x 2 x 4) to those in the new (20)."""


def batches(seed=0):
    while True:
        rng = np.random.default_rng(seed)
        old = rng.standard_normal((32, 8, 8, 4), np.float32)
        tokens = old.reshape(-1, 4, 2, 4, 2, 4).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 4, 4, 16)
        yield {"image": tokens @ MIX.T, "teacher": old, "label": rng.integers(0, 10, 32).astype(np.int32)}
        seed += 1


@pytest.mark.slow
def test_embedder_and_last_layer_are_fitted():
    start = graft(OF, patch(1, channels=20))
    found = fit_latents(OF, start, batches_again(), 12, rng=jax.random.key(3), show=False)
    assert_same_leaves(start.params, found.params, ["x_embedder", "final/linear"])
    batch = next(batches(99))
    kernels = [np.asarray(model.params["x_embedder"]["kernel"]).reshape(-1, 16) for model in (OF, found)]
    np.testing.assert_allclose(MIX.T @ kernels[1], kernels[0], atol=1e-3)
    np.testing.assert_array_equal(found.params["x_embedder"]["bias"], OF.params["x_embedder"]["bias"])
    loss = jax.jit(diffusion_loss(start.spec, Process(), class_dropout=0.0, plan="unroll"))
    before, after = (float(loss(model.params, batch, jax.random.key(1))[1]["mse"]) for model in (start, found))
    assert 0.97 < before < 1.03  # of noise, answered by zero
    assert after < 0.9 * before


class batches_again:
    """An iterable that begins anew, so that both passes see the same."""

    def __iter__(self):
        return batches()


def test_what_does_not_fit_is_refused():
    start = graft(OF, patch(1, channels=20))
    with pytest.raises(BadInput, match=r"a batch is \['image', 'label'\] at 0 of 2, expected image and teacher"):
        fit_latents(OF, start, [{k: v for k, v in next(batches()).items() if k != "teacher"}], 2, show=False)
    with pytest.raises(BadInput, match="student tokens: 4, expected the teacher's 16"):
        fit_latents(OF, graft(OF, patch(4)), batches_again(), 2, show=False)
