"""What a config says of a model that draws and nothing else: `graftax bench --aot` compiles that without weights."""

from __future__ import annotations

from dataclasses import dataclass, field

from graftax.models.arguments import as_float_type
from graftax.train import MeshConfig

KIND = "drawing"


@dataclass(frozen=True, kw_only=True)
class DrawingConfig:
    """A model loaded onto a mesh, drawing as its family does. Raises `BadInput` on types that are none.

    Attributes:
        model: its published name, or its file or folder.
        batch_size: images at a time.
        weights: type in which they are loaded, split as `graftax.load` splits them.
        dtype: matmul type.
        plan: as in `graftax.models.forward`. "auto" compiles soon; its loops over blocks want a stacked copy too.
        mesh: devices.
        kind: tells such a config from others.
    """

    model: str
    batch_size: int = 1
    weights: str = "bfloat16"
    dtype: str = "bfloat16"
    plan: str = "auto"
    mesh: MeshConfig = field(default_factory=MeshConfig)
    kind: str = KIND

    def __post_init__(self) -> None:
        as_float_type(self.weights)
        as_float_type(self.dtype)
