import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_job import FAST, Stream, linear_job, loss_fn, params

from graftax.errors import BadInput
from graftax.train import make_step
from graftax.train.state import create_state

KEY = jax.random.key(0)


def test_one_step_is_the_optimisers_update_and_the_average_follows() -> None:
    state, batch, tx = create_state(params(), FAST.build()), next(Stream()), FAST.build()
    (loss, _), grads = jax.value_and_grad(loss_fn, has_aux=True)(params(), batch, KEY)
    updates, _ = tx.update(grads, tx.init(params()), params())
    wanted = jax.tree.map(jnp.add, params(), updates)
    new, metrics = make_step(loss_fn, FAST, ema_decay=0.9)(state, batch, KEY)
    for name in ("w", "b"):
        np.testing.assert_allclose(new.trainable[name], wanted[name], rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(new.ema[name], 0.9 * params()[name] + 0.1 * wanted[name], rtol=1e-6, atol=1e-7)
    norm = np.sqrt(sum(float(jnp.sum(g**2)) for g in jax.tree.leaves(grads)))
    found = {name: float(value) for name, value in metrics.items()}
    assert found == pytest.approx({"loss": float(loss), "grad_norm": norm, "lr": 0.01, "finite": 1.0, "bias": 0.0}, rel=1e-5)
    assert int(new.step) == 1


def test_a_non_finite_step_returns_the_state_bit_for_bit() -> None:
    step = make_step(loss_fn, FAST, ema_decay=0.9)
    state, _ = step(create_state(params(), FAST.build()), next(Stream()), KEY)
    before = jax.tree.map(np.array, state)
    after, metrics = step(state, next(Stream(bad=0)), KEY)
    assert float(metrics["finite"]) == 0
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.array, after), before)


def test_an_infinite_gradient_behind_a_finite_loss_counts() -> None:
    def cusp(p: dict, batch: dict, key: jax.Array) -> tuple[jax.Array, dict]:
        return jnp.sqrt(jnp.abs(jnp.sum(p["b"]))) + jnp.sum(p["w"]), {}  # slope at b = 0 is infinite

    _, metrics = make_step(cusp, FAST)(create_state(params(), FAST.build()), next(Stream()), KEY)
    assert np.isfinite(float(metrics["loss"]))
    assert float(metrics["finite"]) == 0


def test_frozen_leaves_stay_the_same_objects_and_the_callers_arrays_stay_valid() -> None:
    own = params()
    state = create_state(own, FAST.build(), ("b",))
    new, _ = make_step(loss_fn, FAST)(state, next(Stream()), KEY)
    assert new.frozen["b"] is own["b"]
    assert set(new.trainable) == set(new.ema) == {"w"}
    assert not own["w"].is_deleted()
    assert not own["b"].is_deleted()
    assert state.trainable["w"].is_deleted()  # donated: no second copy of the state while a step runs
    assert not np.array_equal(new.params["w"], own["w"])


def test_evaluation_sees_the_averages() -> None:
    job = linear_job(evaluate=lambda p: {"w0": p["w"][0], "b0": p["b"][0]}, frozen=("b",))
    state = job.init()
    state, _ = job.step(state, next(Stream()), KEY)
    assert job.evaluate is not None
    assert job.evaluate(state) == {"w0": state.ema["w"][0], "b0": 0.0}
    assert float(state.ema["w"][0]) != float(state.trainable["w"][0])


def test_a_decay_of_one_is_refused() -> None:
    with pytest.raises(BadInput, match="ema_decay"):
        make_step(loss_fn, FAST, ema_decay=1.0)
