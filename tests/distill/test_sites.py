"""Which students stage 1 accepts."""

import jax
import jax.numpy as jnp
import pytest
from tiny_graft import mixed, teacher

import graftax
from graftax.distill.sites import check_pair, learnt_sites, scion_sites
from graftax.distill.steps import regression_units
from graftax.errors import BadInput
from graftax.models import Meta

NORMS = ("blocks[1].norm1", "blocks[0].adaln")


def test_modulations_and_norms_are_left_to_stage_2():
    of = teacher(depth=2)
    edit = graftax.compose(
        graftax.replace("blocks[1].norm1", "rms_norm"), graftax.replace("blocks[0].adaln", "adaln_lowrank", rank=8),
        graftax.replace("blocks[1].mixer", "hyena_x"),
    )  # fmt: skip
    student = graftax.graft(of, edit, rng=jax.random.key(0))
    assert set(student.meta.sites) == {*NORMS, "blocks[1].mixer"}
    assert list(map(str, learnt_sites(student))) == ["blocks[1].mixer"]
    assert list(map(str, regression_units(student, None))) == ["blocks[1].mixer"]
    for name in NORMS:
        with pytest.raises(BadInput, match=rf"{name.replace('[', '.').replace(']', '.')} has no input and output"):
            scion_sites(student, ["blocks[1].mixer", name])
    with pytest.raises(BadInput, match="scions at modulations and norms alone"):
        scion_sites(student.replace(meta=Meta(sites=NORMS)), None)


def test_fresh_adapters_are_harmless_and_trained_ones_refused():
    of = teacher()
    adapted = graftax.graft(mixed(of), graftax.lora("blocks[*].mlp", rank=2), rng=jax.random.key(0))
    check_pair(of, adapted)
    trained = adapted.replace(params={**adapted.params, "lora": jax.tree.map(jnp.ones_like, adapted.params["lora"])})
    with pytest.raises(BadInput, match=r"trained adapters at blocks/00/mlp/\w+/kernel and \d+ more, expected merge_lora"):
        check_pair(of, trained)
    check_pair(of, graftax.graft(trained, graftax.merge_lora(), rng=jax.random.key(0)))
