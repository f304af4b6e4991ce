"""Models whose files are a DiT's but for names in front and heads beside it (SiT, TREAD, REPA, SRA), from their files."""

import functools
from pathlib import Path

import numpy as np

from graftax.backbones.dit.layouts import DiTFile
from graftax.checkpoint.torch_reader import read_torch
from graftax.models import Model
from graftax.models.layout import params_from
from graftax.spec import Prediction

GOLDENS = Path(__file__).parent / "goldens" / "modern"
VELOCITY = Prediction("velocity", "noise", variance=False)
LAYOUT = DiTFile()


@functools.cache
def golden(name):
    """A set of reference arrays."""
    return dict(np.load(GOLDENS / f"{name}.npz"))


@functools.cache
def tensors(name, part=""):
    """The tensors of a reference file, names as in a DiT."""
    found = read_torch(GOLDENS / f"{name}.pt")
    found = found[part] if part else found
    return {key.removeprefix("model."): np.asarray(value) for key, value in found.items()}


@functools.cache
def model(name, part="", heads=4, **prediction):
    """The DiT in a reference file, as a model of velocities at noise fractions unless told otherwise."""
    stem = ("x_embedder", "t_embedder", "y_embedder", "pos_embed", "final_layer", "blocks")
    own = {key: value for key, value in tensors(name, part).items() if key.startswith(stem)}
    spec = LAYOUT.spec({key: value.shape for key, value in own.items()}, {}, {"num_heads": heads})
    spec = spec.replace(prediction=Prediction(**prediction) if prediction else VELOCITY)
    return Model(spec, params_from(LAYOUT, spec, own))


def nhwc(array):
    """(b, c, h, w) -> (b, h, w, c)."""
    return np.moveaxis(array, 1, -1)
