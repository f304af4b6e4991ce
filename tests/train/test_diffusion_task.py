from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from graftax.diffusion import Process
from graftax.errors import BadInput
from graftax.models import dit_spec, forward, init
from graftax.train import diffusion_loss, heldout_loss
from graftax.train.diffusion_task import DROP, NOISE, TIME

SPEC = dit_spec(input_size=4, patch_size=2, hidden_size=16, depth=2, num_heads=2, num_classes=5)
PROCESS = Process()


@pytest.fixture(scope="module")
def params() -> Any:
    # adaLN-zero would hide labels and times from the output: move every leaf off its initial value.
    leaves, tree = jax.tree.flatten(init(SPEC, jax.random.key(0)))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return tree.unflatten([x + 0.2 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)])


def batch(size: int = 64) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    image = rng.standard_normal((size, 4, 4, 4)).astype(np.float32)
    return {"image": image, "label": rng.integers(0, 5, size).astype(np.int32)}


def by_hand(params: Any, data: Any, t: Any, y: Any, noise: Any) -> dict[str, float]:
    out, _ = forward(SPEC, params, PROCESS.q_sample(data["image"], t, noise), t, y)
    return {k: float(jnp.mean(v)) for k, v in PROCESS.training_losses(out, data["image"], t, noise).items()}


@pytest.mark.parametrize(("dropout", "dropped"), [(0.0, False), (1.0, True)])
def test_the_loss_is_the_process_on_noised_data_with_labels_dropped(params: Any, dropout: float, dropped: bool) -> None:
    data, key = batch(), jax.random.key(7)
    loss, metrics = diffusion_loss(SPEC, PROCESS, class_dropout=dropout)(params, data, key)
    t = jax.random.randint(jax.random.fold_in(key, TIME), (64,), 0, 1000)
    noise = jax.random.normal(jax.random.fold_in(key, NOISE), data["image"].shape)
    wanted = by_hand(params, data, t, jnp.full(64, 5) if dropped else data["label"], noise)
    other = by_hand(params, data, t, data["label"] if dropped else jnp.full(64, 5), noise)
    assert {"loss": float(loss)} | {k: float(v) for k, v in metrics.items()} == pytest.approx(wanted, rel=1e-5)
    assert abs(wanted["loss"] - other["loss"]) > 1e-4 * wanted["loss"]  # so the label matters in this test


def test_a_tenth_of_the_labels_is_dropped_and_times_cover_the_process() -> None:
    key = jax.random.key(3)
    drop = jax.random.bernoulli(jax.random.fold_in(key, DROP), 0.1, (20_000,))
    assert float(jnp.mean(drop)) == pytest.approx(0.1, abs=0.01)
    assert len({TIME, NOISE, DROP}) == 3


def test_heldout_is_deterministic_and_does_not_depend_on_the_batch_size(params: Any) -> None:
    data = batch(60)
    results = [heldout_loss(SPEC, PROCESS, data["image"], data["label"], batch_size=size)(params) for size in (60, 20, 20)]
    assert results[1] == results[2]
    assert results[0] == pytest.approx(results[1], rel=1e-5)
    assert results[0]["loss"] == pytest.approx(results[0]["mse"] + results[0]["vb"], rel=1e-5)
    other = heldout_loss(SPEC, PROCESS, data["image"], data["label"], seed=1)(params)
    assert other["loss"] != results[0]["loss"]


def test_heldout_covers_the_times_evenly_and_drops_no_label(params: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    original = Process.training_losses

    def spy(self: Process, out: jax.Array, x0: jax.Array, t: jax.Array, noise: jax.Array) -> dict[str, jax.Array]:
        jax.debug.callback(lambda t: seen.extend(np.asarray(t).tolist()), t)
        return original(self, out, x0, t, noise)

    monkeypatch.setattr(Process, "training_losses", spy)
    data = batch(20)
    heldout_loss(SPEC, PROCESS, data["image"], data["label"], batch_size=10)(params)
    jax.effects_barrier()
    assert sorted(seen) == list(range(25, 1000, 50))


def test_a_respaced_process_shows_the_model_the_original_times(params: Any) -> None:
    short, data = PROCESS.respaced(10), batch(20)
    found = heldout_loss(SPEC, short, data["image"], data["label"])(params)
    rng = np.random.default_rng(0)
    t = rng.permutation(np.repeat(np.arange(10), 2)).astype(np.int32)
    noise = rng.standard_normal(data["image"].shape, np.float32)
    x_t = short.q_sample(jnp.asarray(data["image"]), jnp.asarray(t), jnp.asarray(noise))
    out, _ = forward(SPEC, params, x_t, jnp.asarray(short.timestep_map[t]), jnp.asarray(data["label"]))
    losses = short.training_losses(out, jnp.asarray(data["image"]), jnp.asarray(t), jnp.asarray(noise))
    assert found["loss"] == pytest.approx(float(jnp.mean(losses["loss"])), rel=1e-5)


def test_misuse_is_refused() -> None:
    with pytest.raises(BadInput, match="class_dropout"):
        diffusion_loss(SPEC, PROCESS, class_dropout=1.5)
    with pytest.raises(BadInput, match="learn_sigma"):
        diffusion_loss(SPEC.replace(learn_sigma=False), PROCESS)
    data = batch(4)
    with pytest.raises(BadInput, match="held-out set"):
        heldout_loss(SPEC, PROCESS, data["image"], data["label"][:3])
    with pytest.raises(BadInput, match="batch_size"):
        heldout_loss(SPEC, PROCESS, data["image"], data["label"], batch_size=0)
