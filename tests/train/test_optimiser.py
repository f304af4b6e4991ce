import jax.numpy as jnp
import numpy as np
import pytest

from graftax.errors import BadInput
from graftax.train import OptimiserConfig


def test_the_defaults_are_the_papers_second_stage() -> None:
    config = OptimiserConfig()
    rates = [float(config.rate(k)) for k in (0, 499, 999, 1000, 50_000)]
    np.testing.assert_allclose(rates, [1e-7, 5e-5, 1e-4, 1e-4, 1e-4], rtol=1e-6)
    assert (config.grad_clip, config.weight_decay) == (10.0, 0.0)


def test_cosine_goes_from_the_peak_through_half_to_zero() -> None:
    config = OptimiserConfig(learning_rate=2.0, warmup_steps=10, schedule="cosine", decay_steps=110)
    rates = [float(config.rate(k)) for k in (0, 10, 60, 110, 500)]
    np.testing.assert_allclose(rates, [0.2, 2.0, 1.0, 0.0, 0.0], atol=1e-6)


def test_the_rate_halves_where_it_is_told_to() -> None:
    config = OptimiserConfig(learning_rate=4.0, warmup_steps=10, halve_at=(100, 300))
    rates = [float(config.rate(k)) for k in (9, 99, 100, 299, 300, 10_000)]
    np.testing.assert_allclose(rates, [4.0, 4.0, 2.0, 2.0, 1.0, 1.0], rtol=1e-6)


def test_the_first_update_by_hand() -> None:
    # After bias correction Adam's first update is the sign of the gradient; decay adds wd * p; warm-up scales by 1/4.
    tx = OptimiserConfig(learning_rate=0.1, warmup_steps=4, weight_decay=0.5, eps=1e-12).build()
    params = {"w": jnp.array([2.0, -2.0])}
    updates, _ = tx.update({"w": jnp.array([3.0, 0.01])}, tx.init(params), params)
    np.testing.assert_allclose(updates["w"], [-0.025 * (1 + 1.0), -0.025 * (1 - 1.0)], atol=1e-6)  # type: ignore[index]


def test_clipping_acts_before_the_moments() -> None:
    params = {"w": jnp.zeros(2)}
    clipped, free = (OptimiserConfig(grad_clip=c).build() for c in (1.0, None))
    _, state = clipped.update({"w": jnp.array([30.0, 40.0])}, clipped.init(params), params)
    _, wanted = free.update({"w": jnp.array([0.6, 0.8])}, free.init(params), params)
    np.testing.assert_allclose(state[1][0].mu["w"], wanted[0].mu["w"], rtol=1e-6)  # type: ignore[index]


def test_a_norm_that_is_told_is_the_one_that_clips() -> None:
    params, grads = {"w": jnp.zeros(2)}, {"w": jnp.array([30.0, 40.0])}
    clipped = OptimiserConfig(grad_clip=1.0).build()
    for norm in (50.0, 100.0):
        _, state = clipped.update(grads, clipped.init(params), params, norm=jnp.float32(norm))
        np.testing.assert_allclose(state[1][0].mu["w"], 0.1 * grads["w"] / norm, rtol=1e-6)  # type: ignore[index]


@pytest.mark.parametrize(
    ("field", "value"),
    [("learning_rate", 0), ("learning_rate", float("nan")), ("warmup_steps", -1), ("schedule", "linear"), ("b1", 1.0),
     ("weight_decay", -1), ("grad_clip", 0.0), ("decay_steps", 5), ("halve_at", (10, 0))],
)  # fmt: skip
def test_values_that_make_no_optimiser_are_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(BadInput, match=field):
        OptimiserConfig(**{field: value})  # type: ignore[arg-type]


def test_cosine_needs_an_end() -> None:
    with pytest.raises(BadInput, match="decay_steps"):
        OptimiserConfig(schedule="cosine")
