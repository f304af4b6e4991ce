import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from graftax.distill.losses import LOSSES, huber, l1, l2, regression_loss

PREDICTION = 3 * jax.random.normal(jax.random.key(0), (4, 5, 6))
TARGET = jax.random.normal(jax.random.key(1), (4, 5, 6))


def test_closed_forms() -> None:
    prediction, target = jnp.array([[1.0, -2.0], [0.5, 4.0]]), jnp.array([[0.0, 0.0], [0.0, 1.0]])
    assert float(l1(prediction, target)) == pytest.approx((1 + 2 + 0.5 + 3) / 4)
    assert float(l2(prediction, target)) == pytest.approx((1 + 4 + 0.25 + 9) / 4)
    assert float(huber(prediction, target)) == pytest.approx((0.5 + 1.5 + 0.125 + 2.5) / 4)
    assert float(huber(prediction, target, 2.0)) == pytest.approx((0.5 + 2 + 0.125 + 4) / 4)


@pytest.mark.parametrize("delta", [0.3, 1.0, 100.0])
def test_huber_and_its_gradient_are_those_of_optax(delta: float) -> None:
    ours = jax.value_and_grad(lambda p: huber(p, TARGET, delta))(PREDICTION)
    theirs = jax.value_and_grad(lambda p: optax.losses.huber_loss(p, TARGET, delta=delta).mean())(PREDICTION)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), ours, theirs)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_float32_sums_of_low_precision_arrays(name: str) -> None:
    low = (PREDICTION.astype(jnp.bfloat16), TARGET.astype(jnp.bfloat16))
    loss = regression_loss(name, *low, 0.5)
    assert loss.dtype == jnp.float32
    assert loss.shape == ()
    exact = regression_loss(name, *(a.astype(jnp.float32) for a in low), 0.5)
    assert float(loss) == pytest.approx(float(exact), rel=1e-6)


def test_names_choose_the_loss() -> None:
    assert float(regression_loss("l1", PREDICTION, TARGET)) == float(l1(PREDICTION, TARGET))
    assert float(regression_loss("l2", PREDICTION, TARGET)) == float(l2(PREDICTION, TARGET))
    assert float(regression_loss("huber", PREDICTION, TARGET, 0.4)) == float(huber(PREDICTION, TARGET, 0.4))


def test_streams_count_alike_whatever_their_tokens() -> None:
    prediction = {"txt": jnp.zeros((1, 2)), "img": jnp.zeros((4, 2))}
    target = {"txt": jnp.ones((1, 2)), "img": jnp.full((4, 2), 3.0)}
    assert float(regression_loss("l1", prediction, target)) == pytest.approx((1 + 3) / 2)
