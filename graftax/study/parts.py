"""Parts of an analysis by name: what `graftax analyze` asks for."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from graftax.models import Model
from graftax.study import measures, painters
from graftax.study.analysis import Settings


def measure(model: Model, parts: Collection[str], settings: Settings) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Results by part, of those that are known here ("locality", "activations", "similarity", "painters"), and the painters'
    images."""
    found: dict[str, Any] = {}
    painted = {}
    inputs = measures.watch(model, settings) if {"locality", "activations", "similarity"} & set(parts) else []
    if "locality" in parts:
        found["locality"] = measures.locality(model, settings, inputs)
    if "activations" in parts:
        found["activations"] = measures.activations(model, inputs)
    if "similarity" in parts:
        found["similarity"] = measures.similarity(model, inputs)
    if "painters" in parts:
        found["painters"] = painters.measure(model, settings)
        painted = painters.paint(model, settings, found["painters"])
    return found, painted
