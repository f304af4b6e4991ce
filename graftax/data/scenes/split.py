"""What training never sees: combinations of words that a hash holds out, though every word occurs in training."""

from __future__ import annotations

import functools
import hashlib

from graftax.data.scenes.caption import Caption
from graftax.errors import BadInput

SPLITS = ("train", "heldout")

SHARES = {"colour": 8, "count": 5, "pair": 8, "position": 6, "binding": 8}
"""One in so many combinations of a sort is held out."""

_MIRRORED = {"right of": "left of", "below": "above"}


def combinations(caption: Caption) -> tuple[tuple[str, ...], ...]:
    """All that a caption combines, each as a sort and its words; empty for one emoji alone.

    ("colour", kind, colour) of a shape; ("count", kind, number) of two or more; ("pair", kind, kind) in one picture,
    in alphabetical order; ("position", "left of" or "above", kind, kind); ("binding", kind, colour, kind, colour).
    "A right of b" and "b left of a" are one position.
    """
    groups = caption.groups
    found: list[tuple[str, ...]] = [("colour", group.kind, group.colour) for group in groups if group.colour]
    found += [("count", group.kind, str(group.count)) for group in groups if group.count > 1]
    if len(groups) == 2:
        ordered = sorted(groups, key=lambda group: group.kind)
        found.append(("pair", *(group.kind for group in ordered)))
        if all(group.colour for group in ordered):
            found.append(("binding", *(word for group in ordered for word in (group.kind, group.colour or ""))))
    if caption.relation is not None:
        first, second = groups if caption.relation not in _MIRRORED else groups[::-1]
        found.append(("position", _MIRRORED.get(caption.relation, caption.relation), first.kind, second.kind))
    return tuple(found)


@functools.cache
def _is_kept_out(combination: tuple[str, ...]) -> bool:
    digest = hashlib.sha256(" ".join(combination).encode()).digest()
    return int.from_bytes(digest[:8], "big") % SHARES[combination[0]] == 0


def is_held_out(caption: Caption) -> bool:
    """Whether a caption has a combination that training never sees."""
    return any(map(_is_kept_out, combinations(caption)))


def check_split(split: str) -> None:
    """Raise `BadInput` unless `split` is one of `SPLITS`."""
    if split not in SPLITS:
        raise BadInput(f"split: got {split!r}, expected one of {SPLITS}")
