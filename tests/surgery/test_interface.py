"""The interface graft: a model answers what another kind would, exactly; the wrapper goes away by training."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import graftax
from graftax.errors import BadInput
from graftax.spec import Prediction
from graftax.testing import random_params, tiny_spec
from graftax.train.diffusion_task import diffusion_loss

GOLDENS = Path(__file__).parents[1] / "goldens"
VELOCITY = graftax.interface("velocity")


@pytest.fixture(scope="module")
def golden():
    """The reference wrapper in float64, images channels-last, as float32."""
    with np.load(GOLDENS / "modern" / "dit_velocity_wrapper.npz") as file:
        return {
            name: np.moveaxis(file[name], -3, -1).astype(np.float32) if file[name].ndim > 3 else file[name]
            for name in file.files
        }


@pytest.fixture(scope="module")
def flow():
    return graftax.graft(graftax.load(GOLDENS / "dit.pt", num_heads=4), VELOCITY)


@pytest.fixture(scope="module")
def small():
    spec = tiny_spec(depth=1, hidden_size=16, num_heads=2)
    return graftax.Model(spec, random_params(spec, jax.random.key(0)))


def test_a_dit_answers_as_a_model_of_velocities(flow, golden):
    """At whole and fractional steps of DDPM and beyond its ends, where the nearest counts. A velocity at the noisiest step
    is the noise's error times 158."""
    for name, times, given in (
        ("int", "int.tau", "int"), ("frac", "frac.tau", "int"), ("clamped", "clamped.tau_asked", "int"),
    ):  # fmt: skip
        found = flow(golden[f"{given}.x"], golden[times].astype(np.float32), golden[f"{given}.y"])
        expected = golden[f"{name}.v"]
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max(), err_msg=name)


def test_flows_samplers_draw_from_a_dit(flow, golden):
    """From DDPM's noisiest level: with the wrapper, and asked by its sampler's name without."""
    expected = golden["euler.trajectory"][-1]
    for edit in (VELOCITY, graftax.interface("eps", time="index")):
        model = graftax.graft(flow, edit)
        assert (model.spec.prediction.inner is None) == (edit is not VELOCITY)
        found = graftax.sample(
            model, golden["euler.y"], sampler="euler", steps=10, cfg_scale=1.0, initial_noise=golden["euler.z_unit"]
        )
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_a_wrapped_model_is_one_like_any_other(small, tmp_path):
    """No weight changes; it is written, read, and the edit is a text that reads back."""
    flow = graftax.graft(small, VELOCITY)
    assert all(one is other for one, other in zip(jax.tree.leaves(flow.params), jax.tree.leaves(small.params), strict=True))
    assert flow.spec.prediction == Prediction("velocity", "noise", False, inner=Prediction())
    assert graftax.ModelSpec.from_json(flow.spec.to_json()) == flow.spec
    graftax.save(flow, tmp_path / "flow")
    read = graftax.load(tmp_path / "flow")
    assert read.spec == flow.spec
    assert read.meta.edits[-1] == str(VELOCITY) == "interface(velocity, time=noise)"
    for edit in (VELOCITY, graftax.interface("score", path="gvp"), graftax.native()):
        assert graftax.parse(str(edit)) == edit
    assert graftax.graft(flow, graftax.interface("eps", time="index")).spec == small.spec


@pytest.mark.parametrize("target", ["x0", "score", "eps"])
def test_every_answer_tells_the_same(small, target):
    """Of another kind, and of that kind's model as a velocity: what the velocity says."""
    flow, other = (graftax.graft(small, graftax.interface(one, path="gvp")) for one in ("velocity", target))
    x = jax.random.normal(jax.random.key(1), (3, *small.spec.image_shape))
    t, y = jnp.array([0.2, 0.5, 0.9]), jnp.array([0, 1, 2])
    alpha, sigma = (f(np.pi / 2 * t)[:, None, None, None] for f in (jnp.cos, jnp.sin))
    v = np.pi / 2 * (-sigma * (x0 := alpha * x - sigma * flow(x, t, y) * 2 / np.pi) + alpha * (x - alpha * x0) / sigma)
    np.testing.assert_allclose(v, flow(x, t, y), atol=2e-5 * float(jnp.abs(v).max()))
    noise = (x - alpha * x0) / sigma
    expected = {"x0": x0, "eps": noise, "score": -noise / sigma}[target]
    np.testing.assert_allclose(other(x, t, y), expected, rtol=0, atol=1e-4 * float(jnp.abs(expected).max()))


@pytest.mark.slow
def test_training_a_wrapped_model_trains_the_network_within(small):
    """The flow's loss is that of its velocities; on the noise's own scale (min-SNR) it is the error of the noise."""
    flow = graftax.graft(small, VELOCITY)
    key = jax.random.key(2)
    batch = {"image": jax.random.normal(key, (4, *small.spec.image_shape)), "label": jnp.arange(4)}
    loss_fn = diffusion_loss(flow.spec, class_dropout=0.0)
    (loss, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(flow.params, batch, key)
    drawn = loss_fn.draw(batch, key)
    t = drawn["t"][:, None, None, None]
    out = flow((1 - t) * batch["image"] + t * drawn["noise"], drawn["t"], batch["label"])
    np.testing.assert_allclose(loss, ((out - (drawn["noise"] - batch["image"])) ** 2).mean(), rtol=1e-5)
    assert set(metrics) == {"mse"}
    assert float(jnp.abs(grads["blocks"]["00"]["mlp"]["fc1"]["kernel"]).max()) > 0


def test_without_the_wrapper_the_network_itself_is_a_flow(small):
    flow = graftax.graft(graftax.graft(small, VELOCITY), graftax.native())
    assert flow.spec.prediction == Prediction("velocity", "noise", True, scale=1000.0)
    x, y = jnp.ones((2, *small.spec.image_shape)), jnp.array([0, 1])
    np.testing.assert_allclose(flow(x, jnp.array([250.0, 500.0]), y), small(x, jnp.array([250.0, 500.0]), y)[..., :4])
    assert graftax.sample(flow, y, steps=2).shape == x.shape


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda model: graftax.interface("edm"), "interface: got 'edm', expected one of"),
        (lambda model: graftax.interface("velocity", time="index"), "interface: got 'velocity' at time 'index'"),
        (lambda model: graftax.interface(path="edm"), "Prediction.path: got 'edm' with time 'noise'"),
        (lambda model: graftax.graft(model, graftax.native()), r"native\(\): got a model whose network itself predicts"),
        (
            lambda model: VELOCITY(model.spec.replace(prediction=Prediction("velocity")), model.params),
            "whose path has no slope",
        ),
    ],
)
def test_impossible_interfaces_are_refused(small, make, message):
    with pytest.raises(BadInput, match=message):
        make(small)


def test_what_interfaces_do_to_the_function(small):
    assert VELOCITY.effect(small.spec) == "kept"
    assert graftax.native().effect(small.spec) == "changed"
