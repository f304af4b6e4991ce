import jax
import jax.numpy as jnp
import numpy as np
import pytest

from graftax.errors import BadInput
from graftax.train import OptimiserConfig
from graftax.train.state import create_state, merge, split, update_ema, warmed_decay


def tree() -> dict:
    block = {"mixer": {"kernel": jnp.ones((2, 2))}, "mlp": {"kernel": jnp.ones((2, 3))}}
    return {"pos_embed": jnp.ones((1, 4)), "blocks": {"00": block, "01": jax.tree.map(jnp.copy, block)}}


def test_split_and_merge_are_inverse_and_share_objects() -> None:
    params = tree()
    trained, frozen = split(params, ("pos_embed", r"blocks/\d\d/mlp"))
    assert jax.tree.map(jnp.shape, trained) == {b: None for b in ()} | {
        "blocks": {"00": {"mixer": {"kernel": (2, 2)}}, "01": {"mixer": {"kernel": (2, 2)}}}
    }
    assert set(frozen) == {"pos_embed", "blocks"}
    joined = merge(trained, frozen)
    assert jax.tree.structure(joined) == jax.tree.structure(params)
    assert all(a is b for a, b in zip(jax.tree.leaves(joined), jax.tree.leaves(params), strict=True))


def test_a_pattern_matches_whole_path_parts_from_the_start() -> None:
    for pattern in ("pos", "mixer", "blocks/0", "nothing", "("):
        with pytest.raises(BadInput, match="frozen"):
            split(tree(), (pattern,))


def test_freezing_everything_is_refused() -> None:
    with pytest.raises(BadInput, match="nothing to train"):
        split(tree(), (".*",))


def test_merging_overlapping_trees_is_refused() -> None:
    with pytest.raises(BadInput, match="w"):
        merge({"w": jnp.ones(1)}, {"w": {"x": jnp.ones(1)}})


def test_the_optimiser_holds_moments_of_trained_leaves_only() -> None:
    params = tree()
    state = create_state(params, OptimiserConfig().build(), ("blocks/00", "pos_embed"))
    trained = sum(x.size for x in jax.tree.leaves(params["blocks"]["01"]))
    assert sum(x.size for x in jax.tree.leaves(state.opt_state) if x.ndim) == 2 * trained
    assert state.frozen["pos_embed"] is params["pos_embed"]
    assert state.trainable["blocks"]["01"]["mlp"]["kernel"] is not params["blocks"]["01"]["mlp"]["kernel"]
    assert int(state.step) == 0


def test_the_average_by_hand_in_float32() -> None:
    ema, values = {"w": jnp.array([1.0], jnp.float32)}, [2.0, 4.0, -1.0]
    by_hand = 1.0
    for value in values:
        ema = update_ema(ema, {"w": jnp.array([value], jnp.bfloat16)}, 0.75)
        by_hand = 0.75 * by_hand + 0.25 * value
    assert ema["w"].dtype == jnp.float32
    np.testing.assert_allclose(ema["w"], [by_hand], rtol=1e-6)


def test_a_warmed_average_forgets_where_it_started() -> None:
    decays = [float(warmed_decay(0.99, jnp.int32(step))) for step in range(2000)]
    np.testing.assert_allclose(decays[:3], [0.1, 2 / 11, 3 / 12], rtol=1e-6)
    assert decays == sorted(decays)
    assert decays[-1] == np.float32(0.99)
    # Of 100 steps at 0.99 a third of the first weights would be left.
    assert 0.99**100 > 0.3
    assert np.prod(decays[:100]) < 1e-6
