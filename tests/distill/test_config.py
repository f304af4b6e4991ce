from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from graftax.distill import DistillConfig
from graftax.errors import BadInput


def test_defaults_are_the_papers() -> None:
    config = DistillConfig()
    assert config.steps == 25_000
    assert (config.learning_rate, config.weight_decay, config.grad_clip) == (1e-4, 0.0, 10.0)


def test_paper_schedule_halves_at_epochs_50_100_150_of_200() -> None:
    config = DistillConfig()
    per_epoch = config.steps // 200
    for epoch, factor in [(0, 1), (49, 1), (50, 0.5), (99, 0.5), (100, 0.25), (149, 0.25), (150, 0.125), (199, 0.125)]:
        for count in (epoch * per_epoch, (epoch + 1) * per_epoch - 1):
            assert float(config.rate(count)) == pytest.approx(1e-4 * factor)
    assert float(config.rate(jnp.int32(30_000))) == pytest.approx(1e-4 / 8)


def test_other_schedules() -> None:
    constant = DistillConfig(steps=10, schedule="constant", learning_rate=0.5)
    assert [float(constant.rate(jnp.int32(k))) for k in (0, 9, 20)] == [0.5] * 3
    cosine = DistillConfig(steps=10, schedule="cosine", learning_rate=0.5)
    np.testing.assert_allclose([float(cosine.rate(k)) for k in (0, 5, 10, 20)], [0.5, 0.25, 0, 0], atol=1e-7)


def test_the_chain_clips_then_steps_at_the_rate() -> None:
    config = DistillConfig(steps=4, learning_rate=0.1, grad_clip=1.0, eps=1.0)
    tx, params = config.build(), jnp.zeros(2)
    state, found = tx.init(params), []
    for _ in range(4):
        update, state = tx.update(jnp.array([30.0, 40.0]), state, params)
        found.append(np.asarray(update))
    # The clipped gradient is (0.6, 0.8); with a constant one Adam's moments are exact: g / (|g| + eps).
    expected = -np.array([0.6 / 1.6, 0.8 / 1.8])
    np.testing.assert_allclose(found, [0.1 * expected, 0.05 * expected, 0.025 * expected, 0.0125 * expected], rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0), ("learning_rate", 0.0), ("schedule", "linear"), ("b1", 1.0), ("b2", -0.1), ("eps", 0.0),
        ("weight_decay", -1.0), ("grad_clip", 0.0), ("mixer_loss", "l3"), ("mlp_loss", "mae"), ("huber_delta", 0.0),
        ("dtype", "int8"), ("plan", "loop"),
    ],
)  # fmt: skip
def test_bad_values_are_named(name: str, value: Any) -> None:
    with pytest.raises(BadInput, match=f"DistillConfig.{name}: got {value!r}"):
        DistillConfig(**{name: value})


def test_rate_is_traceable_and_float32() -> None:
    for schedule in ("paper", "constant", "cosine"):
        rate = jax.jit(DistillConfig(schedule=schedule).rate)(jnp.int32(7))
        assert rate.dtype == jnp.float32
        assert rate.shape == ()
