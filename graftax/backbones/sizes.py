"""Sizes of models from scratch, as config files give them: what all families share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from graftax.errors import BadInput


@dataclass(frozen=True, kw_only=True)
class ModelSizes:
    """A model of blocks of one kind: a published one by name, or every size.

    Attributes:
        variant: its name; then no size counts beside it.
        input_size: side of the (latent) image.
        patch_size: side of a token in it.
        in_channels: of the image.
        hidden_size: width of a token.
        depth: number of blocks.
        num_heads: of attention.
    """

    variant: str | None = None
    input_size: int | None = None
    patch_size: int = 2
    in_channels: int = 4
    hidden_size: int | None = None
    depth: int | None = None
    num_heads: int | None = None

    def sizes(self, *more: str) -> dict[str, Any]:
        """All sizes by name, `more` of the family's own among them. Raises `BadInput` naming those that are missing."""
        given = {name: getattr(self, name) for name in ("patch_size", "in_channels")}
        return given | required(self, "input_size", "hidden_size", "depth", "num_heads", *more)


@dataclass(frozen=True, kw_only=True)
class ClassModelSizes(ModelSizes):
    """`ModelSizes` of a model of classes; beside a variant `num_classes` counts too, and the resolution where there is one.

    Attributes:
        num_classes: without the null class.
    """

    num_classes: int = 1000

    def sizes(self, *more: str) -> dict[str, Any]:
        return {**super().sizes(*more), "num_classes": self.num_classes}


def required(config: Any, *names: str) -> dict[str, Any]:
    """Fields of a config without a variant. Raises `BadInput` naming those that are missing."""
    found = {name: getattr(config, name) for name in names}
    if missing := [name for name, value in found.items() if value is None]:
        raise BadInput(f"model: neither variant nor {', '.join(missing)}; expected one or the other")
    return found
