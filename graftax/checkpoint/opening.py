"""One door in and one door out: any file to (spec, params, meta), and a model to a file of a foreign layout.

Opening is asking a list: our own format first, then the layouts of every backbone (`graftax.models.layout.Layout`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from graftax.checkpoint.card import card, card_path
from graftax.checkpoint.files import filling, replacing
from graftax.checkpoint.hub import fetched, pinned
from graftax.checkpoint.hugging_face import (
    CONFIG,
    PART,
    PIPELINE,
    find_folder,
    pipeline_class,
    read_any_config,
    read_weights,
)
from graftax.checkpoint.members import shown
from graftax.checkpoint.paths import local_copy
from graftax.checkpoint.store import INDEX, from_own_layout, is_own_layout, read_folder, read_spec
from graftax.checkpoint.tensors import TORCH_SUFFIXES, Source, read_tensors, write_safetensors
from graftax.checkpoint.torch_writer import write_torch
from graftax.errors import BadInput, did_you_mean, naming
from graftax.models.backbone import find, module_of, modules, published
from graftax.models.layout import Layout, Shape, params_from, tensors_from
from graftax.spec import ModelSpec, Option

SPEC_KEY = "graftax_spec"
"""Safetensors metadata entry of exported files: the spec, so that they come back without overrides."""

OWN = "graftax"
"""Name of our own layout."""

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
"""What a model's name on the Hugging Face Hub looks like: ORG/NAME."""

Opened = tuple[ModelSpec, dict[str, Any], dict[str, Any]]


def layouts() -> dict[str, Layout]:
    """All foreign layouts by name, in the order in which they are asked."""
    return {layout.name: layout for module in modules() for layout in module.LAYOUTS}


def require_there(path: str | Path) -> None:
    """Raise `BadInput` where `path` is neither a file nor a folder, saying where a model of that name is published.

    What is in a bucket (gs://) or at the Hugging Face Hub (hf://) is looked for when it is read.
    """
    if ":/" in str(path) or Path(path).exists():
        return
    known = published(str(path))
    hint = f"; it is published at {known.url}" if known else ""
    if not known and HUB_NAME.fullmatch(str(path)):
        download = f"hf download {path} --local-dir {Path(path).name}"
        hint = f"; if it is a model of the Hugging Face Hub: hf://{path} names it, or {download}"
    raise BadInput(f"model {str(path)!r}: no such file or folder{hint}")


def open_checkpoint(path: str | Path, layout: str | None = None, **overrides: Option) -> Opened:
    """(spec, params, meta) of a graftax folder, a folder as Hugging Face's libraries write it, a `.safetensors` or a PyTorch
    `.pt` / `.pth` file, local, in a bucket (gs://) or at the Hugging Face Hub (hf://ORG/NAME, see `hub.fetched`).

    `params` are numpy arrays in the types that they are stored in, where possible views of the mapped file, and where a leaf
    is several tensors a `Joined` of them. `meta` holds `source` (file or folder name, of the Hub's the address with its
    commit), `sha256` of the weights file and `format`, the name of the layout; for training checkpoints `entry` ("ema"); a
    model of ours keeps the provenance it was saved with. `layout` names the format where several fit. `overrides` give what
    tensors cannot tell (`num_heads=4`, `window=4`, `compat="diffusers"`); they must not contradict the file. Raises
    `BadInput` with the file's name.
    """
    require_there(path)
    known = _asked(layout)
    with local_copy(fetched(path, PART)) as file:
        with naming(file):
            spec, params, meta = _open(file, known, layout, overrides)
        return spec, params, {**meta, "source": pinned(file)} if meta["source"] == file.name else meta


def _asked(layout: str | None) -> dict[str, Layout]:
    """The foreign layouts that a file may be in: all, or the one of that name; none where it is our own."""
    known = layouts()
    if layout is not None and layout not in (OWN, *known):
        raise BadInput(f"layout {layout!r}: not known, expected one of {(OWN, *known)}{did_you_mean(layout, (OWN, *known))}")
    return known if layout is None else {name: one for name, one in known.items() if name == layout}


def _open(path: Path, known: Mapping[str, Layout], layout: str | None, overrides: Mapping[str, Option]) -> Opened:
    folder = find_folder(path) if path.is_dir() and not (path / INDEX).exists() else None
    if path.is_dir() and folder is None:
        if (path / PIPELINE).is_file():
            raise BadInput(f"a pipeline without {PART}/{CONFIG}, expected its diffusion transformer there")
        spec, params, saved, digest = read_folder(path)
        return _own(layout, spec, params, _provenance(path.name, digest, saved), overrides)
    if folder is not None:
        config = read_any_config(folder)
        if "model_type" in config and "_class_name" not in config:
            raise BadInput(f"{CONFIG}: a {shown(config['model_type'])} of transformers, expected a diffusion transformer")
        if folder != path and (path / PIPELINE).is_file():
            _check_pipeline(pipeline_class(path / PIPELINE), config)
        names = dict.fromkeys(name for one in known.values() for name in one.folder)
        if not names:
            raise BadInput(f"layout {layout!r}: this is a folder with a {CONFIG}, which has no such layout")
        tensors, source = read_weights(folder, tuple(names))
        found = _fitting(known, tensors, config)
        spec, params = _read(found, tensors, config, overrides)
        return spec, params, {"source": path.name, "sha256": source.sha256, "format": found.name}
    tensors, source = read_tensors(path)
    if is_own_layout(source.metadata):
        spec, params, saved = from_own_layout(tensors, source.metadata)
        return _own(layout, spec, params, _provenance(source.name, source.sha256, saved), overrides)
    said = read_spec(source.metadata[SPEC_KEY]) if SPEC_KEY in source.metadata else None
    found = _fitting(known if said is None else _holding(known, said), tensors, {})
    if said is not None:
        spec = find_overridden(said, overrides)
        params = params_from(found, spec, tensors)
    else:
        spec, params = _read(found, tensors, {}, overrides)
    found.vet(path, spec)
    return spec, params, _foreign(found, source)


def _holding(known: Mapping[str, Layout], spec: ModelSpec) -> Mapping[str, Layout]:
    """Those layouts that can hold a model; all of them where none can, for their readers to say why."""
    own = {one.name for one in module_of(spec.backbone).LAYOUTS}
    return {name: one for name, one in known.items() if name in own and _holds(one, spec)} or known


def _check_pipeline(name: str, config: Mapping[str, Any]) -> None:
    """Raise `BadInput` where pipelines of a class, if any family knows it, have another transformer than this one."""
    expected = [one for layout in layouts().values() if name in layout.pipelines for one in layout.classes]
    if expected and config.get("_class_name") not in expected:
        found = shown(str(config.get("_class_name")))
        raise BadInput(f"{PART}/{CONFIG}: a {found}, expected {' or '.join(expected)}, as {PIPELINE} says {name}")


def _fitting(known: Mapping[str, Layout], tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> Layout:
    """The layout that says that it fits. Where none does, the likeliest one, whose own reader then says what is wrong."""
    shapes = {name: tuple(array.shape) for name, array in tensors.items()}
    if not known:
        raise BadInput(f"layout {OWN!r}: this is no model of ours, expected a folder or file that graftax.save wrote")
    alike = [layout for layout in known.values() if bool(layout.folder) == bool(config)]
    if config:
        alike = [layout for layout in alike if config.get("_class_name") in layout.classes]
    fitting = [layout for layout in alike if layout.fits(_parts(layout, shapes), config)] or alike
    if not fitting:
        what = f"a {shown(str(config.get('_class_name')))}" if config else "no layout of ours"
        classes = sorted({name for layout in known.values() for name in layout.classes})
        raise BadInput(f"{what}, expected {f'one of {classes}' if config else f'one of {tuple(known)}'}")
    return fitting[0]


def _parts(layout: Layout, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """The shapes in a file as a layout names them, those beside the model included."""
    own, beside = layout.parted(shapes)
    return {**own, **beside}


def _read(
    layout: Layout, tensors: Mapping[str, np.ndarray], config: Mapping[str, Any], overrides: Mapping[str, Option]
) -> tuple[ModelSpec, dict[str, Any]]:
    spec = layout.spec({name: tuple(array.shape) for name, array in layout.own(tensors).items()}, config, overrides)
    params = params_from(layout, spec, tensors)
    return find_overridden(spec, overrides), params


def read_beside(path: str | Path, layout: str | None = None) -> dict[str, np.ndarray]:
    """What a file of a family holds beside the model (`Layout.beside`), by name: REPA's `projectors`, SRA's `ap_head`, the
    statistics `bn` of REPA-E's latents. {} where there is nothing; `layout` and errors as in `open_checkpoint`."""
    require_there(path)
    with local_copy(path) as file, naming(file):
        tensors, _ = read_tensors(file)
        return _fitting(_asked(layout), tensors, {}).parted(tensors)[1]


def find_overridden(spec: ModelSpec, overrides: Mapping[str, Option]) -> ModelSpec:
    """`spec` with the user's overrides, as its backbone understands them."""
    return find(spec).override(spec, overrides)


def _own(
    layout: str | None, spec: ModelSpec, params: dict[str, Any], meta: dict[str, Any], overrides: Mapping[str, Option]
) -> Opened:
    if layout not in (None, OWN):
        raise BadInput(f"layout {layout!r}: this is a model in the layout {OWN!r}")
    return find_overridden(spec, overrides), params, meta


def _foreign(layout: Layout, source: Source) -> dict[str, Any]:
    entry = {"entry": source.entry} if source.entry else {}
    return {"source": source.name, "sha256": source.sha256, "format": layout.name, **entry}


def _provenance(name: str, digest: str, saved: Mapping[str, Any]) -> dict[str, Any]:
    """What was saved with the model, completed where that names no source."""
    origin = {} if saved.get("source") else {"source": name, "sha256": digest}
    return {**saved, **origin, "format": OWN}


# --- Out -------------------------------------------------------------------------------------------------------------------


def export_model(
    path: Path, spec: ModelSpec, params: Mapping[str, Any], layout: str | None = None, meta: Mapping[str, Any] | None = None
) -> None:
    """Write a model in a foreign layout, by default the first of its backbone's that fits the path and can hold it: a file
    `.pt`, `.pth` or `.safetensors`, or without suffix a folder. A model card goes beside it, with what `meta` says of its
    provenance.

    Raises `BadInput` on other suffixes and on models that the layout cannot hold. Nothing is written then.
    """
    own = {one.name: one for one in module_of(spec.backbone).LAYOUTS}
    if not own:
        raise BadInput(f"{path}: a {spec.backbone} has no layout but graftax's own; save a folder")
    if layout is not None and layout not in own:
        raise BadInput(f"{path}: layout {layout!r}, expected one of {tuple(own)} for a {spec.backbone}")
    if path.suffix not in ("", *TORCH_SUFFIXES, ".safetensors"):
        raise BadInput(f"{path}: suffix {path.suffix!r}, expected one of {(*TORCH_SUFFIXES, '.safetensors')} or none")
    fitting = [one for one in own.values() if bool(one.folder) != bool(path.suffix) and layout in (None, one.name)]
    if not fitting:
        raise BadInput(f"{path}: layout {layout!r} is {'one file' if not path.suffix else 'a folder'}, expected such a path")
    chosen = next((one for one in fitting if _holds(one, spec)), fitting[0])
    tensors = {name: np.asarray(tensor, np.float32) for name, tensor in tensors_from(chosen, spec, dict(params)).items()}
    about = card(path.name, spec, meta or {})
    if chosen.folder:
        _write_folder(path, chosen, spec, dict(sorted(tensors.items())), about)
        return
    texts = {SPEC_KEY: spec.to_json()}
    if path.suffix == ".safetensors":
        write_safetensors(path, tensors, {"format": "pt", **texts})
    else:
        write_torch(path, tensors, key=chosen.entry or None, texts=texts)
    with replacing(card_path(path)) as temporary:
        temporary.write_text(about)


def _holds(layout: Layout, spec: ModelSpec) -> bool:
    """Whether a layout can hold a model."""
    try:
        layout.check(spec)
    except BadInput:
        return False
    return True


def _write_folder(folder: Path, layout: Layout, spec: ModelSpec, tensors: dict[str, np.ndarray], about: str) -> None:
    with filling(folder) as fresh:
        card_path(fresh).write_text(about)
        write_safetensors(fresh / layout.folder[0], tensors, {"format": "pt"})
        with replacing(fresh / CONFIG) as temporary:
            temporary.write_text(json.dumps(layout.config(spec), indent=2) + "\n")
