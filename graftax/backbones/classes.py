"""What class-conditional backbones have in common: {"y": (b,)} is all that they take beside images and times."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from graftax.backbones.times import check_times, some
from graftax.errors import BadInput
from graftax.models.backbone import Cond
from graftax.models.model import all_known
from graftax.ops.base import Params
from graftax.spec import ModelSpec


class ClassConditional:
    """Base of such backbones; the class `spec.classes` is the null class."""

    def check_inputs(self, spec: ModelSpec, x: jax.Array, t: jax.Array, cond: Cond) -> None:
        """Raise `BadInput` where x is of no size for the model, or t or the class `y` is missing, ill-typed or out of
        range."""
        self.check_image(spec, x.shape)
        if set(cond) != {"y"}:
            raise BadInput(f"conditions: got {sorted(cond)}, expected y alone, the classes of a {spec.backbone}")
        y = cond["y"]
        if y.shape != x.shape[:1] or not jnp.issubdtype(y.dtype, jnp.integer):
            raise BadInput(f"y: {y.dtype}{y.shape}, expected class ids of integer type ({x.shape[0]},)")
        check_times(spec, t)
        if not all_known(y, lambda y: (y >= 0) & (y <= spec.classes)):
            raise BadInput(f"y: {some(y)}, expected classes 0..{spec.classes - 1}, or {spec.classes} for none")

    def check_image(self, spec: ModelSpec, shape: tuple[int, ...]) -> None:
        """Raise `BadInput` where images (b, h, w, c) are not of the spec's size."""
        if shape[1:] != spec.image_shape:
            raise BadInput(f"x: shape {shape}, expected (b, {', '.join(map(str, spec.image_shape))})")

    def condition(self, batch: Mapping[str, Any]) -> Cond:
        """The classes `label` (b,) of a batch."""
        return {"y": batch["label"]}

    def null(self, spec: ModelSpec, params: Params, cond: Cond) -> Cond:
        """The null class for every image."""
        return {"y": jnp.full_like(cond["y"], spec.classes)}

    def example(self, spec: ModelSpec, count: int) -> Cond:
        """Class 0 for every image."""
        return {"y": jnp.zeros(count, jnp.int32)}

    def sampling(self, spec: ModelSpec) -> Mapping[str, Any]:
        """Nothing: the defaults of `Sampling` are DiT's."""
        return {}
