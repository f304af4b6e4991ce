import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_job import FAST, Stream, linear_job, loss_fn, params

from graftax.diffusion import Process
from graftax.errors import BadInput
from graftax.testing import assert_trees_close, random_params, tiny_spec
from graftax.train import diffusion_loss, make_step
from graftax.train.state import create_state
from graftax.train.step import RandomLoss

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


# --- Batches in pieces -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_pieces_of_a_batch_give_the_update_of_the_whole(accumulate: int) -> None:
    def exact(p: dict, batch: dict, key: jax.Array) -> tuple[jax.Array, dict]:
        error = batch["image"] @ p["w"] + p["b"] - batch["label"]
        return jnp.mean(error**2), {"error": error.mean()}

    whole, wanted = make_step(exact, FAST)(create_state(params(), FAST.build()), next(Stream()), KEY)
    step = make_step(exact, FAST, accumulate=accumulate)
    found, metrics = step(create_state(params(), FAST.build()), next(Stream()), KEY)
    assert_trees_close(found, whole, rtol=1e-6, atol=1e-6)
    assert_trees_close(metrics, wanted, rtol=1e-6, atol=1e-6)


class Noisy:
    """A loss on noise that depends on the place in the batch."""

    def draw(self, batch: dict, key: jax.Array) -> dict:
        return {**batch, "noise": jax.random.normal(key, batch["label"].shape)}

    def given(self, p: dict, batch: dict) -> tuple[jax.Array, dict]:
        error = batch["image"] @ p["w"] + p["b"] - batch["label"] + batch["noise"]
        return jnp.mean(error**2), {"error": error.mean()}

    def __call__(self, p: dict, batch: dict, key: jax.Array) -> tuple[jax.Array, dict]:
        return self.given(p, self.draw(batch, key))


def test_pieces_see_the_noise_that_the_whole_batch_sees() -> None:
    assert isinstance(diffusion_loss(tiny_spec(), Process()), RandomLoss)
    (whole, wanted), (found, metrics) = (
        make_step(Noisy(), FAST, accumulate=pieces)(create_state(params(), FAST.build()), next(Stream()), KEY)
        for pieces in (1, 4)
    )
    assert_trees_close(metrics, wanted, rtol=1e-6, atol=1e-6)
    assert_trees_close(found, whole, rtol=1e-6, atol=1e-6)


def test_one_bad_piece_spoils_the_step_and_nothing_else() -> None:
    step = make_step(loss_fn, FAST, accumulate=4)
    state = create_state(params(), FAST.build())
    before = jax.tree.map(np.array, state)
    after, metrics = step(state, next(Stream(bad=0)), KEY)
    assert float(metrics["finite"]) == 0
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.array, after), before)


def test_pieces_must_be_equal() -> None:
    with pytest.raises(BadInput, match="accumulate"):
        make_step(loss_fn, FAST, accumulate=0)
    with pytest.raises(BadInput, match="does not divide into 3 pieces"):
        make_step(loss_fn, FAST, accumulate=3)(create_state(params(), FAST.build()), next(Stream()), KEY)


@pytest.mark.slow
def test_what_is_recomputed_does_not_change_what_is_learnt() -> None:
    spec = tiny_spec(depth=1)
    rng = np.random.default_rng(0)
    batch = {"image": rng.standard_normal((4, 8, 8, 4), np.float32), "label": np.arange(4, dtype=np.int32)}
    own, drawn = random_params(spec, jax.random.key(1)), diffusion_loss(spec, Process()).draw(batch, KEY)

    def gradient(remat: str) -> tuple:
        loss = diffusion_loss(spec, Process(), remat=remat)
        return jax.jit(jax.value_and_grad(lambda p: loss.given(p, drawn)[0]))(own)

    assert_trees_close(gradient("full"), gradient("none"), rtol=1e-5, atol=1e-6)


def test_options_reach_the_compiler() -> None:
    step = make_step(loss_fn, FAST, compiler={"no_such_option": "1"})
    with pytest.raises(jax.errors.JaxRuntimeError, match="no_such_option"):
        step(create_state(params(), FAST.build()), next(Stream()), KEY)
