from importlib import resources
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import unflatten_dict
from safetensors import safe_open

from graftax.data.source import load_source, prepare
from graftax.errors import BadInput
from graftax.evaluate.metrics import class_accuracy, frechet_distance, moments
from graftax.nets import classifier as cls
from graftax.nets.autoencoder import AutoencoderSpec, decode, encode, psnr
from graftax.nets.classifier import ClassifierSpec, accuracy, augment, classifier_loss, classify

SMALL = ClassifierSpec(image_size=16, num_classes=3, widths=(8, 8, 16), features=12)


@pytest.fixture(scope="module")
def fresh() -> dict:
    return jax.jit(lambda key: cls.init(SMALL, key))(jax.random.key(0))


def load_demo(name: str) -> tuple[str, dict]:
    path = Path(str(resources.files("graftax.data").joinpath(f"demo/{name}.safetensors")))
    with safe_open(path, framework="np") as file:
        params = unflatten_dict({k: file.get_tensor(k).astype(np.float32) for k in file.keys()}, sep="/")  # noqa: SIM118
        return file.metadata()["spec"], params


@pytest.fixture(scope="module")
def garments() -> tuple[np.ndarray, np.ndarray]:
    """A quarter of the test images, 50 of each class."""
    data = load_source("fashion_mnist", "test").take(np.arange(0, 2000, 4))
    return prepare(data.images, 32), data.labels


@pytest.fixture(scope="module")
def judge() -> tuple[ClassifierSpec, dict]:
    text, params = load_demo("classifier")
    return ClassifierSpec.from_json(text), params


@pytest.fixture(scope="module")
def autoencoder() -> tuple[AutoencoderSpec, dict]:
    text, params = load_demo("autoencoder")
    return AutoencoderSpec.from_json(text), params


@pytest.fixture(scope="module")
def latents(autoencoder: tuple[AutoencoderSpec, dict], garments: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    return np.asarray(jax.jit(lambda x: encode(*autoencoder, x))(garments[0]))


def test_shipped_classifier_knows_held_out_garments(
    judge: tuple[ClassifierSpec, dict], garments: tuple[np.ndarray, np.ndarray]
) -> None:
    assert accuracy(*judge, *garments) >= 0.90


def test_shipped_autoencoder_is_sharp_and_its_latents_standardised(
    autoencoder: tuple[AutoencoderSpec, dict], garments: tuple[np.ndarray, np.ndarray], latents: np.ndarray
) -> None:
    assert latents.shape == (500, 8, 8, 4)
    np.testing.assert_allclose(latents.mean((0, 1, 2)), 0, atol=0.05)
    np.testing.assert_allclose(latents.std((0, 1, 2)), 1, atol=0.05)
    noise = np.random.default_rng(0).normal(0, 0.1, latents.shape).astype(np.float32)
    run = jax.jit(lambda z: psnr(jnp.square(decode(*autoencoder, z) - garments[0]).mean()))
    assert run(latents) > 27
    assert run(latents + noise) > 26.5  # a diffusion model's errors do little harm


def test_garments_survive_the_autoencoder_and_noise_does_not_pass_for_one(
    judge: tuple[ClassifierSpec, dict],
    autoencoder: tuple[AutoencoderSpec, dict],
    garments: tuple[np.ndarray, np.ndarray],
    latents: np.ndarray,
) -> None:
    images, labels = garments
    run = jax.jit(lambda z: decode(*autoencoder, z))
    noise = np.random.default_rng(0).normal(size=latents.shape).astype(np.float32)
    judged = {
        "real": classify(*judge, images),
        "good": classify(*judge, run(latents)),
        "noise": classify(*judge, run(noise)),
    }
    hits = {name: class_accuracy(logits, labels) for name, (logits, _) in judged.items()}
    far = {name: frechet_distance(moments(features), moments(judged["real"][1])) for name, (_, features) in judged.items()}
    assert far["real"] < 1e-3
    assert hits["good"] > hits["real"] - 0.02
    assert hits["noise"] < 0.3
    assert far["noise"] > 10 * far["good"]


def test_demo_files_stay_below_their_budget() -> None:
    folder = resources.files("graftax.data").joinpath("demo")
    sizes = [len(folder.joinpath(f"{n}.safetensors").read_bytes()) for n in ("autoencoder", "classifier")]
    assert sum(sizes) <= 1_500_000


def test_spec_survives_json_and_refuses_nonsense() -> None:
    assert ClassifierSpec.from_json(SMALL.to_json()) == SMALL
    with pytest.raises(BadInput, match="widths"):
        ClassifierSpec(widths=(8, 8, 12))
    with pytest.raises(BadInput, match=r"dropout 1\.0"):
        ClassifierSpec(dropout=1.0)
    with pytest.raises(BadInput, match="expected ClassifierSpec fields"):
        ClassifierSpec.from_json("{}")


def test_augment_moves_whole_images_by_at_most_shift() -> None:
    images = np.full((200, 16, 16, 1), -1.0, np.float32)
    images[:, 8, 5] = 1.0  # one bright pixel, mirrored it lies at column 10
    out = np.asarray(jax.jit(augment, static_argnums=2)(images, jax.random.key(0), 2))[..., 0]
    rows, columns = out.max(2).argmax(1), out.max(1).argmax(1)
    assert (out.max((1, 2)) == 1).all()
    assert ((out == 1).sum((1, 2)) == 1).all()
    assert set(rows) == {6, 7, 8, 9, 10}
    assert set(columns) == {3, 4, 5, 6, 7, 8, 9, 10, 11, 12}


def test_loss_of_a_blind_classifier_is_that_of_chance(fresh: dict) -> None:
    params = jax.tree.map(np.zeros_like, fresh)
    batch = {"image": jnp.zeros((6, 16, 16, 1)), "label": jnp.array([0, 0, 0, 1, 2, 2])}
    loss, metrics = jax.jit(classifier_loss(SMALL))(params, batch, jax.random.key(0))
    assert loss == pytest.approx(np.log(3), rel=1e-5)
    assert metrics["accuracy"] == pytest.approx(0.5)  # all logits equal: class 0


@pytest.mark.slow
def test_training_tells_simple_shapes_apart(fresh: dict) -> None:
    labels = np.arange(24) % 3
    images = np.full((24, 16, 16, 1), -1.0, np.float32)
    images[labels == 1, 4:12, 4:12] = 1.0
    images[labels == 2, :, 6:10] = 1.0
    params, optimiser = fresh, optax.adam(3e-3)
    batch, loss = {"image": jnp.asarray(images), "label": jnp.asarray(labels)}, classifier_loss(SMALL)

    @jax.jit
    def step(params, state, i):
        grads = jax.grad(lambda p: loss(p, batch, jax.random.key(i))[0])(params)
        updates, state = optimiser.update(grads, state)
        return optax.apply_updates(params, updates), state

    state = optimiser.init(params)
    for i in range(60):
        params, state = step(params, state, i)
    assert accuracy(SMALL, params, images, labels) == 1.0


@pytest.mark.slow
def test_classify_gives_the_same_in_any_chunks(fresh: dict) -> None:
    images = np.random.default_rng(0).normal(size=(7, 16, 16, 1)).astype(np.float32)
    logits, features = classify(SMALL, fresh, images, batch_size=3)
    assert logits.shape == (7, 3)
    assert features.shape == (7, 12)
    whole = classify(SMALL, fresh, images)
    np.testing.assert_allclose(logits, whole[0], atol=1e-5)
    np.testing.assert_allclose(features, whole[1], atol=1e-5)
    assert (features >= 0).all()


def test_classify_refuses_other_shapes_and_nothing(fresh: dict) -> None:
    for shape in ((2, 8, 16, 1), (16, 16, 1), (0, 16, 16, 1)):
        with pytest.raises(BadInput, match="images to classify"):
            classify(SMALL, fresh, np.zeros(shape, np.float32))


def test_patches_are_the_map_that_features_are_made_of(fresh: dict) -> None:
    images = jax.random.uniform(jax.random.key(1), (2, 16, 16, 1), minval=-1)
    found = cls.patches(SMALL, fresh, images)
    assert found.shape == (2, 4, 16)
    dense = fresh["Dense_0"]
    features = np.maximum(np.asarray(found).mean(1) @ dense["kernel"] + dense["bias"], 0)
    np.testing.assert_allclose(features, classify(SMALL, fresh, images)[1], atol=1e-6)
