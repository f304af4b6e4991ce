"""Grafting whole models: provenance, checks, sharing."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import pytest

from graftax.errors import BadInput
from graftax.models import Meta, Model
from graftax.surgery import Edit, apply_edit, compose, graft, replace, resize, select, skip
from graftax.surgery.report import compare
from graftax.testing import assert_same_leaves, random_params, tiny_spec

SPEC = tiny_spec()
MODEL = Model(SPEC, random_params(SPEC, jax.random.key(0)), Meta(source="dit.pt", sha256="ab12"))
RNG = jax.random.key(7)


def test_graft_writes_down_what_it_did():
    student = graft(MODEL, replace("blocks[1::2].mixer", "hyena_x", kernel=4), rng=RNG)
    assert student.meta == Meta(
        source="dit.pt",
        sha256="ab12",
        edits=("replace(blocks[1::2].mixer, hyena_x(kernel=4), init=random)",),
        sites=("blocks[1].mixer", "blocks[3].mixer"),
    )
    assert Meta.from_dict(student.meta.to_dict()) == student.meta
    assert_same_leaves(MODEL.params, student.params, ["blocks/01/mixer", "blocks/03/mixer"])
    assert MODEL.meta.edits == ()


def test_edits_and_sites_add_up():
    student = graft(graft(MODEL, replace([3, 1], "hyena_x"), RNG), resize("blocks[1].mlp", 3), RNG)
    student = graft(student, replace("blocks[3].mixer", "mha"), RNG)
    assert len(student.meta.edits) == 3
    assert student.meta.sites == ("blocks[1].mixer", "blocks[1].mlp", "blocks[3].mixer")
    assert tuple(map(str, select(student.meta.sites, student.spec))) == student.meta.sites


def test_a_program_rewrite_adds_no_sites():
    student = graft(MODEL, skip(1, 2), RNG)
    assert student.meta.sites == ()
    assert student.meta.edits == ("skip(1, 2)",)
    assert student.params is MODEL.params


def test_the_report_comes_along():
    student, report = apply_edit(MODEL, compose(replace([0], "hyena_x"), skip(2, 3)), RNG)
    assert report == compare((MODEL.spec, MODEL.params), (student.spec, student.params))


@dataclass(frozen=True)
class Scale(Edit):
    """Multiply the output layer."""

    factor: float
    only: str = ""
    name = "scale"

    def on(self, spec):
        return spec

    def weights(self, spec, after, params, rng):
        final = jax.tree.map(lambda leaf: self.factor * leaf, params["final"])
        linear = {self.only: final["linear"][self.only]} if self.only else final["linear"]
        return {**params, "final": {**final, "linear": linear}}

    def arguments(self):
        return (self.factor,), {"only": self.only} if self.only else {}


def test_an_edit_that_breaks_the_tree_is_refused():
    with pytest.raises(BadInput, match="final/linear/bias is missing"):
        graft(MODEL, Scale(2.0, only="kernel"))


def test_an_edit_of_ones_own():
    student, report = apply_edit(MODEL, compose(replace([0], "mha"), Scale(2.0)), RNG)
    assert student.meta.edits == ("compose(replace(0, mha(), init=random), scale(2.0))",)
    assert student.meta.sites == ("blocks[0].mixer",)
    assert "final/linear/kernel" in report.new


def test_what_is_no_edit_is_refused():
    with pytest.raises(BadInput, match=r"edit: got 'skip\(1, 2\)', expected an edit like graftax.replace"):
        graft(MODEL, "skip(1, 2)")  # pyright: ignore


def test_the_student_runs():
    student = graft(MODEL, compose(replace("blocks[50%].mixer", "swa", init="transplant", window=16), skip(3, 4)), RNG)
    x, t, y = jnp.ones((1, 8, 8, 4)), jnp.array([5]), jnp.array([2])
    teacher = MODEL.replace(spec=skip(3, 4).on(SPEC))
    assert jnp.allclose(student(x, t, y), teacher(x, t, y), atol=2e-5)
