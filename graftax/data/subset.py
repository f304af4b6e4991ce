"""Stratified subsets by seed: "8k", "10%", "128 per class". The same text, seed and labels give the same images anywhere.

Every image has a random rank within its class, drawn by the seed alone; a subset takes the first ranks of each class. So
"10%" lies within "20%", and "8 per class" within "16 per class". Ranks come from the raw bits of a Philox generator,
which NumPy promises never to change.
"""

from __future__ import annotations

import hashlib
import re

import numpy as np

from graftax.errors import BadInput

_SUBSET = re.compile(r"\s*(?P<amount>\d+(?:\.\d+)?)\s*(?P<unit>k|%|per class|)\s*")


def check_subset(text: str) -> tuple[float, str]:
    """(amount, unit) of a subset's text; the unit is "", "k", "%" or "per class". Raises `BadInput` on other text."""
    match = _SUBSET.fullmatch(text)
    amount, unit = (float(match["amount"]), match["unit"]) if match else (0.0, "")
    count = 1000 * amount if unit == "k" else amount
    if not amount or not (amount <= 100 if unit == "%" else count.is_integer()):
        raise BadInput(f"subset {text!r}: expected a number of images like 8000, 8k, 10% or '128 per class'")
    return amount, unit


def stratified(labels: np.ndarray, text: str, seed: int = 0) -> np.ndarray:
    """Indices (m,) int64, ascending, of the subset `text` of images with `labels` (n,) int.

    "128 per class": so many of every class that occurs. "8k" or "8000": so many in all, equally many of each class;
    where that does not divide, classes drawn by `seed` have one more. "10%": that share of every class; the total is
    rounded to the nearest, the classes with the largest remainders having one more. Raises `BadInput` where a class has
    too few images, or the subset would be empty.
    """
    amount, unit = check_subset(text)
    classes, sizes = np.unique(labels, return_counts=True)
    bits = np.random.Philox(key=seed)
    keys = bits.random_raw(len(labels))
    ties = bits.random_raw(len(classes))
    order = np.lexsort((keys, labels))  # class after class, by rank within
    wanted = _per_class(amount, unit, sizes, ties)
    if not wanted.sum():
        raise BadInput(f"subset {text!r}: none of {len(labels)} images, expected a larger one")
    if short := np.flatnonzero(wanted > sizes).tolist():
        c = short[0]
        raise BadInput(f"subset {text!r}: class {classes[c]} has {sizes[c]} images, expected at least {wanted[c]}")
    ranks = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.sort(order[ranks < np.repeat(wanted, sizes)]).astype(np.int64)


def digest(indices: np.ndarray) -> str:
    """SHA-256 (hex) of indices (m,) as little-endian 64-bit integers: what a subset is called by."""
    return hashlib.sha256(np.asarray(indices, "<i8").tobytes()).hexdigest()


def _per_class(amount: float, unit: str, sizes: np.ndarray, ties: np.ndarray) -> np.ndarray:
    """How many images of each class, (classes,) int."""
    if unit == "per class":
        return np.full(len(sizes), int(amount))
    if unit == "%":
        exact = sizes * amount / 100
        total = round(sizes.sum() * amount / 100)
    else:
        total = round(amount * 1000) if unit == "k" else int(amount)
        exact = np.full(len(sizes), total / len(sizes))
    wanted = np.floor(exact + 1e-9).astype(int)
    more = np.lexsort((ties, np.round(wanted - exact, 9)))[: total - wanted.sum()]  # largest remainders first
    wanted[more] += 1
    return wanted
