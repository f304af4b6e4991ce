"""Sizes of models of square images, as users give them."""

from __future__ import annotations

from graftax.errors import BadInput
from graftax.spec import Sizes


def square(*, input_size: int, patch_size: int, hidden_size: int, num_heads: int, context: int = 0, **counts: int) -> Sizes:
    """What operators are built to in a model of images of side `input_size`, `patch_size` of it to a token's.

    `context`: tokens of the text that blocks look at. `counts` are the model's other sizes by name, which only have to be
    positive. Raises `BadInput` on sizes that are no positive integers or do not go together.
    """
    shape = {"input_size": input_size, "patch_size": patch_size, "hidden_size": hidden_size, "num_heads": num_heads}
    for name, value in {**shape, **counts}.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise BadInput(f"{name}: got {value!r}, expected a positive integer")
    if input_size % patch_size:
        raise BadInput(f"input_size {input_size} is not a multiple of patch_size {patch_size}")
    if hidden_size % num_heads:
        raise BadInput(f"hidden_size {hidden_size} is not a multiple of num_heads {num_heads}")
    side = input_size // patch_size
    return Sizes(hidden_size, num_heads, hidden_size // num_heads, (side, side), context=context)
