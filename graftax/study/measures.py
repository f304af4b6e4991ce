"""The parts of an analysis that watch a model draw, but the painters': each from a model to JSON types."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from graftax.analyze import (
    Input,
    activation_statistics,
    attention_locality,
    contrast,
    default_k,
    low_local,
    segment,
    state_similarities,
    top_local,
    trajectory,
    uniform_mass,
)
from graftax.analyze.search import selectors
from graftax.analyze.similarity import ALL, FORMS
from graftax.models import Model
from graftax.progress import Progress
from graftax.study.analysis import Settings
from graftax.surgery.select import Site

Part = dict[str, Any]


def watch(model: Model, settings: Settings) -> list[Input]:
    """All that the model is called with on the trajectories of `settings.samples` samples."""
    labels = settings.labels(model.spec, settings.samples)
    found = []
    with Progress(settings.batches(), "trajectories", unit="batch") as progress:
        for batch in trajectory(model, labels, **settings.trajectory()):
            found.append(batch)
            progress.advance()
    return found


def locality(model: Model, settings: Settings, inputs: list[Input]) -> Part:
    """L_k of every attention, the sweep over k, the rankings as selectors."""
    k = default_k(model.spec.tokens) if settings.k is None else settings.k
    found = attention_locality(model, inputs, total=len(inputs))
    ranks = {"top-local": top_local(found, k, settings.share), "low-local": low_local(found, k, settings.share)}
    sweep = found.sweep()
    ks = sorted({k, *(n for n in _widths(found.tokens))})
    return {
        "k": k, "tokens": found.tokens, "blocks": list(found.blocks), "mass": found.mass(k).tolist(),
        "uniform": uniform_mass(found.tokens, k), "by_time": _plain(found.mass_by_time(k)),
        "sweep": {"k": ks, "mass": sweep[:, ks].tolist(), "uniform": [uniform_mass(found.tokens, n) for n in ks]},
        "share": settings.share,
        "ranks": {name: {"blocks": list(ids), "selector": _selector(ids)} for name, ids in ranks.items()},
    }  # fmt: skip


def activations(model: Model, inputs: list[Input]) -> Part:
    """Mean, spread, kurtosis and largest value of every operator's output."""
    found = activation_statistics(model, inputs, total=len(inputs))
    return {
        name: {
            "blocks": list(stats.blocks),
            **{key: _plain(getattr(stats.whole, key)) for key in ("mean", "std", "kurtosis", "peak")},
            "std_by_time": _plain(stats.by_time.std),
        }
        for name, stats in found.items()
    }


def similarity(model: Model, inputs: list[Input]) -> Part:
    """Both forms of the heat-map, each with the groups of its states."""

    found = state_similarities(model, inputs, total=len(inputs))
    return {form: grouped(found[ALL, form]) for form in FORMS}


def grouped(similarity: np.ndarray) -> Part:
    """A heat-map (s, s) and how its states fall into groups: the paper's three, and as many as explain most of it."""
    groups = segment(similarity, min(3, len(similarity)))
    return {
        "cosine": similarity.tolist(), "groups": list(map(list, groups)), "contrast": contrast(similarity, groups),
        "finer": list(map(list, segment(similarity, None))),
    }  # fmt: skip


def _selector(blocks: Sequence[int]) -> str:
    (text,) = selectors([Site(i, "mixer") for i in blocks])
    return text


def _widths(tokens: int) -> list[int]:
    """Widths of band for the sweep: 0, and powers of 2 up to all tokens."""
    return [0, *(2**p for p in range(tokens.bit_length()) if 2**p < tokens)]


def _plain(values: np.ndarray) -> Any:
    """Nested lists; NaN, which JSON has not, as None."""
    plain = values.astype(object)
    plain[np.isnan(values)] = None
    return plain.tolist()
