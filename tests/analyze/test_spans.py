"""Spans of blocks and what they do: CKA by its definition, small blocks found, kinds apart, what has no spans refused."""

import functools

import jax
import numpy as np
import pytest
from two_streams import arrays, teacher

from graftax.analyze.cka import hsic, state_cka
from graftax.analyze.inputs import noised_batches
from graftax.analyze.prune import SkipHarm
from graftax.analyze.spans import candidates, least_spans, measure_spans
from graftax.backbones.flux import flux_spec
from graftax.errors import BadInput
from graftax.models import Model
from graftax.surgery import graft, parse, reverse
from graftax.testing import random_params, tiny_spec

HELDOUT = {"image": np.random.default_rng(1).standard_normal((8, 8, 8, 4), np.float32), "label": np.arange(8)}


@functools.cache
def model(sizes=(1.0, 0.6, 0.02, 0.02, 0.6, 1.0)):
    """Blocks that change their input in proportion to `sizes`."""
    spec = tiny_spec(depth=len(sizes))
    params = random_params(spec, jax.random.key(0))
    for size, block in zip(sizes, params["blocks"].values(), strict=True):
        gates = np.repeat([1, 1, size, 1, 1, size], spec.width).astype(np.float32)
        block["adaln"] = jax.tree.map(lambda leaf, gates=gates: leaf * gates, block["adaln"])
    return Model(spec, params)


def test_hsic_is_the_sum_over_four_different_samples():
    """Song et al. 2012: the mean over all (i, j, q, r), all different, of K_ij L_ij + K_ij L_qr - 2 K_ij L_iq."""
    states = np.random.default_rng(0).standard_normal((2, 6, 3)).astype(np.float32)
    kernels = states @ states.swapaxes(1, 2)
    first, second = kernels.astype(np.float64)
    rows = range(6)
    terms = [
        first[i, j] * (second[i, j] + second[q, r] - 2 * second[i, q])
        for i in rows for j in rows for q in rows for r in rows if len({i, j, q, r}) == 4
    ]  # fmt: skip
    assert hsic(jax.numpy.asarray(states))[0, 1] == pytest.approx(np.mean(terms), rel=1e-4)


def test_cka_is_1_for_what_is_turned_and_scaled_and_0_on_average_for_what_is_not_related():
    rng = np.random.default_rng(0)
    first = rng.standard_normal((64, 8))
    turned = 3 * first @ np.linalg.qr(rng.standard_normal((8, 8)))[0] + 5
    sums = np.asarray(hsic(jax.numpy.float32(np.stack([first, turned, rng.standard_normal((64, 8))]))))
    alike = sums / np.sqrt(np.outer(np.diag(sums), np.diag(sums)))
    assert alike[0, 1] == pytest.approx(1, abs=1e-4)
    assert abs(alike[0, 2]) < 0.2


def test_the_span_that_does_least_is_found_by_every_measure():
    spans = measure_spans(model(), HELDOUT, 2)
    assert [span.lo for span in spans] == [0, 1, 2, 3, 4]
    for measure in ("cosine", "cka", "jump", "harm"):
        assert least_spans(spans, measure)["dit"].lo == 2, measure
    found = least_spans(spans)["dit"]
    assert found.edit == "drop(2, 3, heal=before)"
    assert found.harm == pytest.approx(SkipHarm(model(), HELDOUT)([2, 3]), rel=1e-4)
    assert spans[0].edit == "drop(0, 1, heal=behind)"
    assert graft(model(), parse(found.edit), jax.random.key(0)).spec.depth == 4
    inputs = noised_batches(model().spec, HELDOUT)
    cka = state_cka(model(), inputs)
    assert found.cka == pytest.approx(1 - cka[2, 4], abs=1e-6)
    assert found.jump == pytest.approx(max(cka[2, 2] - cka[2, 3], cka[2, 3] - cka[2, 4]), abs=1e-6)


def test_spans_are_of_one_kind_and_each_kind_has_its_own():
    spans = measure_spans(teacher("flux"), arrays(4), 1)
    assert [(span.kind, span.lo) for span in spans] == [("double", 0), ("double", 1), ("single", 2)]
    assert set(least_spans(spans)) == {"double", "single"}
    spec = flux_spec(
        input_size=8, in_channels=4, hidden_size=24, num_heads=2, text_width=6, text_tokens=5, double=3, single=4
    )
    assert candidates(spec, 3) == [0, 3, 4]


@pytest.mark.parametrize(
    ("length", "message"), [(0, "spans: 0 blocks, expected 1 to 5"), (6, "spans: 6 blocks, expected 1 to 5")]
)
def test_lengths_that_no_span_has_are_refused(length, message):
    with pytest.raises(BadInput, match=message):
        measure_spans(model(), HELDOUT, length)


def test_other_programs_and_measures_are_refused():
    with pytest.raises(BadInput, match="spans: a program of its own"):
        measure_spans(graft(model(), reverse(1, 3), jax.random.key(0)), HELDOUT, 2)
    with pytest.raises(BadInput, match="spans: measure 'cos', expected one of"):
        least_spans([], "cos")
