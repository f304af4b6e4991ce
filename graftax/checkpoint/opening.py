"""One door in and one door out: any checkpoint to (spec, params, meta), and a model to a PyTorch-layout file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graftax.checkpoint import diffusers_keys
from graftax.checkpoint.dit_keys import check_overrides, params_from_tensors, spec_from_tensors, tensors_from_params
from graftax.checkpoint.paths import local_copy
from graftax.checkpoint.store import INDEX, from_own_layout, is_own_layout, load_model, read_spec
from graftax.checkpoint.tensors import TORCH_SUFFIXES, read_tensors, write_safetensors
from graftax.checkpoint.torch_writer import write_torch
from graftax.checkpoint.zoo import check_published
from graftax.errors import BadInput
from graftax.spec import ModelSpec, Option

SPEC_KEY = "graftax_spec"
"""Safetensors metadata entry of exported files: the spec, so that they come back without overrides."""


def open_checkpoint(
    path: str | Path, *, compat: str | None = None, **overrides: Option
) -> tuple[ModelSpec, dict[str, Any], dict[str, Any]]:
    """(spec, params, meta) of a graftax folder, a diffusers folder, a `.safetensors` or a PyTorch `.pt` / `.pth` file,
    local or in a bucket (gs://).

    `params` are float32 numpy arrays, where possible views of the mapped file. `meta` holds `source` (file or folder
    name), `sha256` of the weights file and `format` ("pytorch", "safetensors", "graftax", "diffusers"), for training
    checkpoints `entry` ("ema"); a model of ours keeps the provenance it was saved with. `overrides` give what tensors
    cannot tell (`num_heads=4`, `window=4`); they must not contradict the file. `compat` says whose numerics to compute
    with (`ModelSpec.compat`), None: what the file says, else DiT's, for diffusers folders too. Raises `BadInput` with the
    file's name.
    """
    with local_copy(path) as file:
        spec, params, meta = _open(file, compat or "dit", overrides)
    return spec if compat is None else spec.replace(compat=compat), params, meta


def _open(path: Path, compat: str, overrides: Mapping[str, Option]) -> tuple[ModelSpec, dict[str, Any], dict[str, Any]]:
    if path.is_dir() and not (path / INDEX).exists() and (folder := diffusers_keys.find_folder(path)):
        spec, params, source = diffusers_keys.read_folder(folder, compat)
        _agree(path, spec, overrides)
        return spec, params, {"source": path.name, "sha256": source.sha256, "format": "diffusers"}
    if path.is_dir():
        spec, params, saved, digest = load_model(path)
        _agree(path, spec, overrides)
        return spec, params, _provenance(path.name, digest, saved)
    tensors, source = read_tensors(path)
    if is_own_layout(source.metadata):
        spec, params, saved = from_own_layout(path, tensors, source.metadata)
        _agree(path, spec, overrides)
        return spec, params, _provenance(source.name, source.sha256, saved)
    try:
        spec = _torch_spec(tensors, source.metadata, overrides)
        params = params_from_tensors(spec, tensors)
        check_published(path, spec)
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from None
    layout = "safetensors" if path.suffix == ".safetensors" else "pytorch"
    entry = {"entry": source.entry} if source.entry else {}
    return spec, params, {"source": source.name, "sha256": source.sha256, "format": layout, **entry}


def export_torch(path: str | Path, spec: ModelSpec, params: Mapping[str, Any]) -> None:
    """Write a model as a flat state dict in PyTorch's DiT layout, `.pt`, `.pth` or `.safetensors` by the suffix.

    Raises `BadInput` on other suffixes, on models that the layout cannot hold, and on `compat` "diffusers", which those
    who read the layout would not know of.
    """
    path = Path(path)
    if spec.compat != "dit":
        raise BadInput(f"{path}: the model has compat {spec.compat!r}, and DiT's code computes otherwise with its weights")
    if path.suffix not in (*TORCH_SUFFIXES, ".safetensors"):
        raise BadInput(f"{path}: suffix {path.suffix!r}, expected one of {(*TORCH_SUFFIXES, '.safetensors')}")
    tensors = tensors_from_params(spec, params)
    if path.suffix == ".safetensors":
        write_safetensors(path, tensors, {"format": "pt", SPEC_KEY: spec.to_json()})
    else:
        write_torch(path, tensors)


def export_diffusers(folder: str | Path, spec: ModelSpec, params: Mapping[str, Any]) -> None:
    """Write a model as a folder that diffusers' DiTTransformer2DModel reads (`diffusers_keys.write_folder`)."""
    diffusers_keys.write_folder(Path(folder), spec, params)


def _torch_spec(tensors: Mapping[str, Any], texts: Mapping[str, str], overrides: Mapping[str, Option]) -> ModelSpec:
    if SPEC_KEY not in texts:
        return spec_from_tensors(tensors, **overrides)
    spec = read_spec(texts[SPEC_KEY])
    check_overrides(spec, overrides)
    return spec


def _agree(path: Path, spec: ModelSpec, overrides: Mapping[str, Option]) -> None:
    try:
        check_overrides(spec, overrides)
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from None


def _provenance(name: str, digest: str, saved: Mapping[str, Any]) -> dict[str, Any]:
    """What was saved with the model, completed where that names no source."""
    origin = {} if saved.get("source") else {"source": name, "sha256": digest}
    return {**saved, **origin, "format": "graftax"}
