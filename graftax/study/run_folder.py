"""What a run folder holds: settings, models, the records of its trainings, evaluations."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from graftax import api
from graftax import config as configs
from graftax.checkpoint.paths import work_path, write_text
from graftax.checkpoint.shipped import is_shipped
from graftax.checkpoint.store import INDEX
from graftax.errors import BadInput
from graftax.evaluate.result import Result, find_results, made_at
from graftax.evaluate.sample_set import INDEX as SAMPLES
from graftax.models import Model
from graftax.train.record import FILE, read_metrics

CONFIG, EVALUATION = "config.json", "evaluation"
TRAININGS = {"distill": "Stage 1: distillation", "finetune": "Stage 2: fine-tuning", ".": "Training"}
"""Folders that hold the record of a training, and what the page calls them."""
TEACHER = "teacher"
MODELS = ("grafted", "distilled", "finetuned", "model")


def machine() -> dict[str, Any]:
    """What the record of a training says of where it ran, JSON types."""
    return {"cpus": os.cpu_count(), "platform": platform.machine(), "device": jax.devices()[0].device_kind}


@dataclass(frozen=True)
class RunFolder:
    """What a run has left.

    Attributes:
        name: of the folder.
        settings: what it was last asked to do.
        models: by name, in the order in which a run makes them, the teacher first where the settings name it and it is still
            there.
        records: of trainings, by folder.
        results: of evaluations, by path.
        samples: folders with samples, by name.
    """

    name: str
    settings: dict[str, Any]
    models: dict[str, Model]
    records: dict[str, list[dict[str, Any]]]
    results: dict[str, Result]
    samples: dict[str, Path]

    @property
    def last(self) -> Model | None:
        """The model that the run has come to so far."""
        return next(reversed(self.models.values()), None)


def record_settings(workdir: Path, config: Any) -> None:
    """Keep a verb's config dataclass as WORKDIR/config.json: what the run was last asked to do."""
    if jax.process_index() == 0:
        write_text(work_path(workdir) / CONFIG, json.dumps(configs.as_tree(config), indent=1) + "\n")


def read_run(folder: Path) -> RunFolder:
    """What is in a run folder. Raises `BadInput` where it is none, or one of its files is damaged."""
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder")
    settings = _settings(folder / CONFIG)
    models = {name: api.read(folder / name) for name in MODELS if (folder / name / INDEX).exists()}
    records = {name: read_metrics(folder / name) for name in TRAININGS if (folder / name / FILE).exists()}
    evaluations = folder / EVALUATION
    results = find_results(evaluations) if any(evaluations.glob("**/scores/*.json")) else {}
    if not models and not records and not results:
        raise BadInput(f"{folder}: neither models nor {FILE} nor {EVALUATION}/ in it, expected the folder of a run")
    samples = {path.parent.name: path.parent for path in sorted(evaluations.glob(f"*/{SAMPLES}"), key=_order)}
    return RunFolder(folder.resolve().name, settings, {**_teacher(settings), **models}, records, results, samples)


def _order(index: Path) -> tuple[int, Path]:
    return made_at(index.parent.name), index


def _teacher(settings: Mapping[str, Any]) -> dict[str, Model]:
    name = settings.get("teacher", "")
    there = is_shipped(name) or (name and Path(name).exists())
    return {TEACHER: api.read(name)} if there else {}


def _settings(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise BadInput(f"{path}: damaged ({error})") from None


def flattened(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Leaves of nested mappings by dotted path, "finetune.loop.steps"."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flattened(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found
