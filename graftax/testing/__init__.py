"""Help for tests of graftax and of what is built on it: tiny models, weights that exercise every path, tree assertions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from graftax.backbones.dit import dit_spec
from graftax.backbones.pixart import pixart_spec
from graftax.models import random_params
from graftax.ops.base import Params
from graftax.spec import ModelSpec

__all__ = ["assert_same_leaves", "assert_trees_close", "random_params", "tiny_spec", "tiny_text_spec"]


def tiny_spec(**changes: Any) -> ModelSpec:
    """A DiT that runs in milliseconds: latents 8x8x4, patch 2 (16 tokens), width 48, 4 blocks, 4 heads, 10 classes.

    `changes` are arguments of `graftax.backbones.dit.dit_spec`.
    """
    sizes = {
        "input_size": 8, "patch_size": 2, "in_channels": 4, "hidden_size": 48, "depth": 4, "num_heads": 4, "num_classes": 10
    }  # fmt: skip
    return dit_spec(**{**sizes, **changes})


def tiny_text_spec(**changes: Any) -> ModelSpec:
    """A PixArt of that size that looks at 6 tokens of text, of width 12, and brings a null caption.

    `changes` are arguments of `graftax.backbones.pixart.pixart_spec`.
    """
    sizes = {
        "input_size": 8, "patch_size": 2, "in_channels": 4, "hidden_size": 48, "depth": 4, "num_heads": 4, "text_width": 12,
        "text_tokens": 6, "null_tokens": 6,
    }  # fmt: skip
    return pixart_spec(**{**sizes, **changes})


def assert_same_leaves(before: Params, after: Params, except_paths: Sequence[str] = ()) -> None:
    """Fail unless both trees have the same paths and the same objects there, apart from what lies under `except_paths`.

    An exception is a path or the start of one ("blocks/01/mixer"); each must exist in one of the trees.
    """
    old, new = (flatten_dict(tree, sep="/") for tree in (before, after))

    def excepted(path: str) -> bool:
        return any(path == prefix or path.startswith(f"{prefix}/") for prefix in except_paths)

    for prefix in except_paths:
        assert any(path == prefix or path.startswith(f"{prefix}/") for path in {**old, **new}), f"{prefix}: no such leaf"
    different = [path for path in {**old, **new} if not excepted(path) and old.get(path) is not new.get(path)]
    assert not different, f"leaves that are not the same objects: {different[:8]}"


def assert_trees_close(actual: Any, expected: Any, *, rtol: float = 1e-5, atol: float = 1e-5) -> None:
    """Fail unless both trees have the same structure and their leaves agree to rtol and atol; names a leaf that does not."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected), "trees of different structure"
    for (path, a), b in zip(jax.tree.leaves_with_path(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol, err_msg=jax.tree_util.keystr(path))
