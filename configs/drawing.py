"""A published model drawing at its full size, in bfloat16, its weights split over the chips of a slice: for `bench --aot`.

    graftax bench --aot v5e:2x4 --config configs/drawing.py:flux-schnell,8
    graftax bench --aot v6e:2x2 --config configs/drawing.py:sd3-medium,4

The argument is MODEL,CHIPS; MODEL any published name (`graftax zoo`). It draws as its family does: flux-schnell 1024 pixels
in 4 steps. As many chips as can share the heads of attention do (`tensor`), and the others split weights and images
(`fsdp`), one image each. No weights are needed and nothing is drawn. Expect what the families' READMEs tell of their models,
in two to twelve minutes of compiling.
"""

import math

from ml_collections import ConfigDict

from graftax.backbones.zoo import names, spec_of
from graftax.errors import did_you_mean


def get_config(argument: str = "flux-schnell,8") -> ConfigDict:
    """One model on so many chips."""
    model, _, chips = argument.partition(",")
    if not chips.isdecimal() or int(chips) < 1:
        raise ValueError(f"got {argument!r}, expected MODEL,CHIPS like flux-schnell,8")
    spec = spec_of(model)
    if spec is None:
        raise ValueError(f"got {argument!r}, expected MODEL,CHIPS with a published model{did_you_mean(model, names())}")
    tensor = math.gcd(spec.sizes.heads, int(chips))
    fsdp = int(chips) // tensor
    return ConfigDict({
        "kind": "drawing", "model": model, "batch_size": fsdp, "mesh": {"data": 1, "fsdp": fsdp, "tensor": tensor},
    })  # fmt: skip
