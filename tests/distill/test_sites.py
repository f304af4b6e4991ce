"""Which students stage 1 accepts."""

import jax
import jax.numpy as jnp
import pytest
from tiny_graft import mixed, teacher

import graftax
from graftax.distill.sites import check_pair
from graftax.errors import BadInput


def test_fresh_adapters_are_harmless_and_trained_ones_refused():
    of = teacher()
    adapted = graftax.graft(mixed(of), graftax.lora("blocks[*].mlp", rank=2), rng=jax.random.key(0))
    check_pair(of, adapted)
    trained = adapted.replace(params={**adapted.params, "lora": jax.tree.map(jnp.ones_like, adapted.params["lora"])})
    with pytest.raises(BadInput, match=r"trained adapters at blocks/00/mlp/\w+/kernel and \d+ more, expected merge_lora"):
        check_pair(of, trained)
    check_pair(of, graftax.graft(trained, graftax.merge_lora(), rng=jax.random.key(0)))
