"""The diffusion objective: what it draws, what it sums, and the same on held-out data."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from graftax.diffusion import Flow, Process, Times, heldout_set
from graftax.errors import BadInput
from graftax.models import forward
from graftax.spec import Prediction
from graftax.testing import random_params, tiny_spec
from graftax.train import diffusion_loss, heldout_loss
from graftax.train.diffusion_task import DROP, NOISE, TIME
from graftax.train.noising import noising_for

SPEC = tiny_spec(depth=1)
PROCESS = Process()
NULL = SPEC.classes
COUNT = 12


@pytest.fixture(scope="module")
def params() -> Any:
    return random_params(SPEC, jax.random.key(1))


def batch(size: int = COUNT) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    image = rng.standard_normal((size, 8, 8, 4)).astype(np.float32)
    return {"image": image, "label": rng.integers(0, SPEC.classes, size).astype(np.int32)}


@functools.partial(jax.jit, static_argnums=0)
def by_hand(process: Process, params: Any, image: Any, t: Any, y: Any, noise: Any) -> dict[str, jax.Array]:
    times = jnp.asarray(process.timestep_map)[t]
    out, _ = forward(SPEC, params, process.q_sample(image, t, noise), times, {"y": y})
    return {k: jnp.mean(v) for k, v in process.training_losses(out, image, t, noise).items()}


def test_the_loss_is_the_process_on_noised_data_with_labels_dropped(params: Any) -> None:
    data, key = batch(), jax.random.key(7)
    loss, metrics = jax.jit(diffusion_loss(SPEC, PROCESS, class_dropout=0.5))(params, data, key)
    t = jax.random.randint(jax.random.fold_in(key, TIME), (COUNT,), 0, 1000)
    noise = jax.random.normal(jax.random.fold_in(key, NOISE), data["image"].shape)
    drop = jax.random.bernoulli(jax.random.fold_in(key, DROP), 0.5, (COUNT,))
    labels = jnp.where(drop, NULL, data["label"])
    wanted, other = (by_hand(PROCESS, params, data["image"], t, y, noise) for y in (labels, data["label"]))
    assert {"loss": loss, **metrics} == pytest.approx({k: float(v) for k, v in wanted.items()}, rel=1e-5)
    assert abs(wanted["loss"] - other["loss"]) > 1e-4 * wanted["loss"]  # so the label matters in this test


def test_labels_are_dropped_with_their_probability() -> None:
    data = {"image": np.zeros((20_000, 1, 1, 1), np.float32), "label": np.zeros(20_000, np.int32)}
    for share, tolerance in ((0.0, 0), (0.1, 0.01), (1.0, 0)):
        drawn = diffusion_loss(SPEC, PROCESS, class_dropout=share).draw(data, jax.random.key(3))
        assert float(jnp.mean(drawn["drop"])) == pytest.approx(share, abs=tolerance)
        assert 0 <= int(drawn["t"].min()) < 5
        assert 995 < int(drawn["t"].max()) < 1000
    assert len({TIME, NOISE, DROP}) == 3


@pytest.mark.parametrize("process", [PROCESS, PROCESS.respaced(10)], ids=["whole", "respaced"])
def test_heldout_is_the_process_at_even_times_with_true_labels(params: Any, process: Process) -> None:
    """A respaced process shows the model the original times."""
    data = batch()
    found = heldout_loss(SPEC, process, data)(params)
    ((arrays, t, noise),) = heldout_set(data, process).batches()
    assert sorted(t) == [int((i + 0.5) / COUNT * len(process)) for i in range(COUNT)]
    wanted = by_hand(process, params, arrays["image"], t, data["label"], noise)
    assert found == pytest.approx({k: float(v) for k, v in wanted.items()}, rel=1e-5)


@pytest.mark.slow
def test_heldout_is_deterministic_and_all_but_independent_of_the_batch_size(params: Any) -> None:
    whole, parts, other = (heldout_loss(SPEC, PROCESS, batch(), **o) for o in ({}, {"batch_size": 4}, {"seed": 1}))
    found = whole(params)
    assert whole(params) == found
    assert parts(params) == pytest.approx(found, rel=1e-5)
    assert found["loss"] == pytest.approx(found["mse"] + found["vb"], rel=1e-5)
    assert other(params)["loss"] != found["loss"]


def test_misuse_is_refused() -> None:
    with pytest.raises(BadInput, match="class_dropout"):
        diffusion_loss(SPEC, PROCESS, class_dropout=1.5)
    for other in (Prediction(variance=False), Prediction(target="velocity")):
        with pytest.raises(BadInput, match=r"diffusion loss: .* expected noise and variance"):
            diffusion_loss(SPEC.replace(prediction=other), PROCESS)
    data = batch(4)
    with pytest.raises(BadInput, match="held-out set"):
        heldout_loss(SPEC, PROCESS, {**data, "label": data["label"][:3]})
    with pytest.raises(BadInput, match="batch_size"):
        heldout_loss(SPEC, PROCESS, data, batch_size=0)


# --- Flows -------------------------------------------------------------------------------------------------------------

FLOWS = {
    "noise": Prediction("velocity", "noise", False), "scaled": Prediction("velocity", "noise", False, scale=1000),
    "data": Prediction("velocity", "data", True),
}  # fmt: skip


@pytest.mark.parametrize("name", FLOWS)
def test_a_velocity_model_has_the_loss_of_its_path(name: str) -> None:
    """By hand, as the network's own times and sign are; in training and on held-out data, with nothing dropped."""
    spec = SPEC.replace(prediction=FLOWS[name])
    params, data, key = random_params(spec, jax.random.key(1)), batch(), jax.random.key(7)

    @jax.jit
    def mse(image: Any, t: Any, y: Any, noise: Any) -> jax.Array:
        s = t[:, None, None, None]
        given = {"noise": t, "scaled": 1000 * t, "data": 1 - t}[name]
        out, _ = forward(spec, params, (1 - s) * image + s * noise, given, {"y": y})
        velocity = image - noise if name == "data" else noise - image
        return jnp.mean((out[..., :4] - velocity) ** 2)

    loss_fn = diffusion_loss(spec, times=Times.parse("logit_normal(0, 1)"), class_dropout=0.0)
    drawn = loss_fn.draw(data, key)
    np.testing.assert_allclose(drawn["t"], jax.nn.sigmoid(jax.random.normal(jax.random.fold_in(key, TIME), (COUNT,))), 1e-6)
    loss, metrics = jax.jit(loss_fn)(params, data, key)
    wanted = float(mse(data["image"], drawn["t"], data["label"], drawn["noise"]))
    assert {"loss": float(loss), **metrics} == pytest.approx({"loss": wanted, "mse": wanted}, rel=1e-5)
    ((arrays, t, noise),) = heldout_set(data, Flow()).batches()
    wanted = float(mse(arrays["image"], t, arrays["label"], noise))
    assert heldout_loss(spec, None, data)(params) == pytest.approx({"loss": wanted, "mse": wanted}, rel=1e-5)


def test_steps_are_drawn_from_a_range() -> None:
    data = {"image": np.zeros((2000, 1, 1, 1), np.float32), "label": np.zeros(2000, np.int32)}
    drawn = diffusion_loss(SPEC, times=Times.parse("uniform(0.35, 0.8)")).draw(data, jax.random.key(3))["t"]
    assert 350 <= int(drawn.min()) < 355
    assert 795 < int(drawn.max()) < 800


def test_a_process_is_for_its_kind_of_model() -> None:
    flow = SPEC.replace(prediction=FLOWS["noise"])
    assert (noising_for(SPEC), noising_for(flow)) == (PROCESS, Flow())
    assert noising_for(SPEC, PROCESS.respaced(10)) == PROCESS.respaced(10)
    with pytest.raises(BadInput, match=r"process: got Process\(.*, expected Flow\(.*\) for Prediction\(target='velocity'"):
        diffusion_loss(flow, PROCESS)
    with pytest.raises(BadInput, match=r"process: got Flow\(.*, expected Process\(.*\) for Prediction\(target='eps'"):
        heldout_loss(SPEC, Flow(), batch(4))
