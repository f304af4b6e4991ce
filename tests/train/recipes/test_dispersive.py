"""The dispersive losses against reference values, for every form and size of group."""

import jax
import numpy as np
import pytest
from relatives import golden

from graftax.train.recipes.base import Seen
from graftax.train.recipes.dispersive import FORMS, Dispersive

KNOWN = golden("dispersive")
CASES = {
    "infonce_l2.torch_release": ("infonce_l2", 1.0), "infonce_l2.tau0.5": ("infonce_l2", 0.5),
    "infonce_l2.tau1.0": ("infonce_l2", 1.0), "infonce_cos.tau0.5": ("infonce_cosine", 0.5),
    "hinge_sq.eps1.5.incl_diag": ("hinge", 1.5), "cov_offdiag_sumsq.ddof1": ("covariance", 1.0),
}  # fmt: skip


@pytest.mark.parametrize("group", [16, 8, 4])
def test_forms_are_the_references(group):
    groups = KNOWN["feat"].reshape(-1, group, 30)
    found = jax.jit(lambda z: {name: FORMS[form](z, tau) for name, (form, tau) in CASES.items()})(groups)
    for name, value in found.items():
        np.testing.assert_allclose(value, KNOWN[f"{name}.group{group}"], rtol=1e-5, err_msg=name)


def test_gradients_are_finite_where_images_are_alike():
    """As at the start of a training, all tokens of one value."""
    slope = jax.jit(jax.grad(lambda z: sum(form(z, 0.5).sum() for form in FORMS.values())))
    assert np.isfinite(slope(np.ones((1, 4, 6), np.float32))).all()


def test_groups_are_neighbours():
    seen = Seen({2: {"img": KNOWN["feat"]}}, lambda at: None, {}, lambda at, u: u, np.int32(0))
    value = Dispersive(3, tau=1.0, group=8).value({}, seen)
    np.testing.assert_allclose(value, KNOWN["infonce_l2.tau1.0.group8"].mean(), rtol=1e-5)
