"""Inception weights from the files that people have, into the parameters of `graftax.nets.inception`.

Two layouts: the PyTorch port's state dict (`pt_inception-2015-12-05-6726825d.pth` of mseitzer/pytorch-fid and
torch-fidelity) as `.pt`, `.pth` or `.safetensors`, and the JAX ports' pickled dictionaries of numpy arrays
(matthias-wright/jax-fid, `inception_v3_weights_fid.pickle`). Neither is executed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from graftax.checkpoint.files import sha256
from graftax.checkpoint.hub import fetched
from graftax.checkpoint.numpy_pickle import read_pickled_arrays
from graftax.checkpoint.tensors import Source, read_tensors
from graftax.errors import BadInput, naming
from graftax.nets.inception import HEAD, param_shapes

PICKLES = (".pickle", ".pkl")
EPSILON = 1e-3
"""Of batch normalisation, in the graph of 2015."""

_TORCH = {"bn/weight": "scale", "bn/bias": "shift", "bn/running_mean": "mean", "bn/running_var": "var"}
_JAX = {"bn/scale": "scale", "bn/bias": "shift", "bn/mean": "mean", "bn/var": "var"}
_UNUSED = ("bn/num_batches_tracked", "fc/bias")
"""ADM's Inception score takes the logits without their bias."""


def load_inception(path: str | Path) -> tuple[dict[str, Any], Source]:
    """(params, source) of an Inception weight file: float32, batch normalisation folded into kernels and biases.

    `path` may be an address hf://. `params` has no "fc" where the file has no classifier. Raises `BadInput`, with the
    file's name, on unreadable or refused files, missing or unknown entries, and other shapes (torchvision's InceptionV3 has
    1000 classes: other weights, other numbers).
    """
    path = fetched(path)
    if path.suffix in PICKLES:
        tensors: dict[str, Any] = flatten_dict(read_pickled_arrays(path), sep="/")  # pyright: ignore
        source, names, torch = Source(path.name, sha256(path)), _JAX, False
    else:
        read, source = read_tensors(path)
        tensors = {name.replace(".", "/"): tensor for name, tensor in read.items()}
        names, torch = _TORCH, True
    with naming(path):
        return _convert(tensors, names, torch), source


def _convert(tensors: Mapping[str, np.ndarray], names: Mapping[str, str], torch: bool) -> dict[str, Any]:
    shapes: dict[str, Any] = flatten_dict(param_shapes(), sep="/")  # pyright: ignore
    layers = sorted({name.rpartition("/")[0] for name in shapes} - {HEAD})
    weight = "weight" if torch else "kernel"
    head = f"{HEAD}/{weight}"
    known = {f"{layer}/{key}" for layer in layers for key in (f"conv/{weight}", *names)}
    missing = sorted(known - tensors.keys())
    extra = sorted(name for name in tensors.keys() - known - {head} if not name.endswith(_UNUSED))
    if missing or extra:
        what, first = ("lacks", missing) if missing else ("has the unknown", extra)
        raise BadInput(f"no FID Inception weights: {what} {first[0]} ({len(first)} such entries)")
    params: dict[str, np.ndarray] = {}
    for layer in layers:
        kernel = tensors[f"{layer}/conv/{weight}"]
        given = {short: tensors[f"{layer}/{name}"] for name, short in names.items()}
        params |= _fold(layer, kernel.transpose(2, 3, 1, 0) if torch and kernel.ndim == 4 else kernel, given)
    if head in tensors:
        params[f"{HEAD}/kernel"] = (tensors[head].T if torch else tensors[head]).astype(np.float32)
    for name, array in params.items():
        if array.shape != shapes[name].shape:
            raise BadInput(f"{name}: shape {array.shape}, expected {shapes[name].shape} (FID's Inception of 2015-12-05)")
    return unflatten_dict(params, sep="/")


def _fold(layer: str, kernel: np.ndarray, norm: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Kernel (h, w, in, out) and bias (out,) of a convolution followed by batch normalisation, in float64 up to the end."""
    if any(array.shape != kernel.shape[-1:] for array in norm.values()):
        raise BadInput(f"{layer}: normalisation of another width than its convolution, {kernel.shape[-1:]}")
    gain = norm["scale"] / np.sqrt(norm["var"].astype(np.float64) + EPSILON)
    bias = norm["shift"] - norm["mean"] * gain
    return {f"{layer}/kernel": (kernel * gain).astype(np.float32), f"{layer}/bias": bias.astype(np.float32)}
