"""DiT's relatives with their reference arrays, as files hold them: models, and what stands beside them."""

import functools
import tempfile
from pathlib import Path

import numpy as np

import graftax
from graftax.checkpoint import read_beside
from graftax.checkpoint.torch_reader import read_torch
from graftax.checkpoint.torch_writer import write_torch

GOLDENS = Path(__file__).parent / "goldens" / "modern"
HEADS = {"sit": 4, "repa": 4, "sra": 2, "reg": 2, "redi": 2, "tread": 4}
LAYOUTS = {"sit": "sit", "redi": "redi"}


@functools.cache
def golden(name):
    """A set of reference arrays."""
    return dict(np.load(GOLDENS / f"{name}.npz"))


@functools.cache
def opened(name, part=""):
    """The model in a reference file, and its heads; `part` of a training checkpoint: not what is shipped."""
    with tempfile.TemporaryDirectory() as folder:
        path = GOLDENS / f"{name}.pt"
        if part:
            write_torch(path := Path(folder) / "part.pt", read_torch(GOLDENS / f"{name}.pt")[part])
        return graftax.load(path, LAYOUTS.get(name), num_heads=HEADS[name]), read_beside(path, LAYOUTS.get(name))


def head(beside, *layers):
    """A head of dense layers from the tensors that a file has beside its model."""
    return {
        f"fc{i + 1}": {"kernel": beside[f"{layer}.weight"].T, "bias": beside[f"{layer}.bias"]}
        for i, layer in enumerate(layers)
    }


def nhwc(array):
    """(b, c, h, w) -> (b, h, w, c)."""
    return np.moveaxis(array, 1, -1)
