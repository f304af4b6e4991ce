"""What is DiT's own around the blocks: classes, and whose numerics.

The frame's option `compat` "diffusers" computes as Hugging Face diffusers' DiTTransformer2DModel (0.42), which deviates in
the timestep's frequencies (`timestep_features`); its other deviation, eps 1e-5 in the norm before the channel mixer, is an
option of that norm. `rope` true gives the blocks rotary positions, for operators that read them (`mha_normed`,
`clear_normed`), beside the fixed table; `final_rms` true makes the last norm an RMSNorm with a scale. LightningDiT has both.
`class_tokens` true lets blocks with a cross-attention look at two tokens, the embeddings of time and class; `class_in_vec`
false takes the class out of the conditioning vector (`graftax.surgery.class_tokens`). `decoupled` true makes it a model of
two stages, whose blocks and last layer are conditioned as those of a DDT (`graftax.surgery.decouple`).
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from graftax.ops.rope import Rope, tables
from graftax.spec import ModelSpec, Sizes

COMPAT = ("dit", "diffusers")

SWITCHES = {"class_in_vec": True, "class_tokens": False, "decoupled": False, "final_rms": False, "rope": False}
"""Options of the frame that are true or false, and what they are where nothing is said."""


def compat_of(spec: ModelSpec) -> str:
    """Whose numerics: "dit" or "diffusers"."""
    return spec.option("compat", "dit")


def grid_rope(sizes: Sizes) -> Rope:
    """Rotary tables of image tokens at (row, column), whole numbers from 0.

    The first half of a head's channels turns with the row, the second with the column (EVA-02, arXiv 2303.11331, as
    LightningDiT has it); heads have a multiple of 4 channels.
    """
    places = np.indices(sizes.grid).reshape(2, -1).T.astype(np.float64)  # (n, 2)
    return tables(places, (sizes.head_dim // 2, sizes.head_dim // 2))


class LabelEmbed(nn.Module):
    """y (b,) int -> (b, d). Row `classes` is the null class of classifier-free guidance.

    Attributes:
        classes: without the null class.
        width: d.
        null: whether the null class has a row; without one it is zero, as in MaskDiT.
    """

    classes: int
    width: int
    null: bool = True

    @nn.compact
    def __call__(self, y: jax.Array) -> jax.Array:
        table = self.param("embedding", nn.initializers.normal(0.02), (self.classes + self.null, self.width), jnp.float32)
        return jnp.take(table, y, axis=0, fill_value=None if self.null else 0)
