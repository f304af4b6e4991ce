"""Scores of one model, kept with the protocol that gave them and the space they were measured in."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from graftax.checkpoint.files import made, replacing
from graftax.errors import BadInput
from graftax.evaluate.protocol import Protocol, require_equal
from graftax.models.cost import count_params, flops
from graftax.spec import ModelSpec

SCORES = "scores"
MADE_IN_ORDER = ("teacher", "grafted", "distilled", "finetuned")
LOWER_IS_BETTER = ("FID", "sFID", "FD", "Fréchet")


@dataclass(frozen=True)
class Result:
    """Scores of one model. What they were computed from is `protocol.features` and `protocol.reference`.

    Attributes:
        name: of the model.
        model: hash of its weights.
        spec: what it is.
        protocol: how it was sampled and scored.
        scores: by metric.
        environment: versions, device, date.
    """

    name: str
    model: str
    spec: ModelSpec
    protocol: Protocol
    scores: dict[str, float]
    environment: dict[str, str]

    @property
    def cost(self) -> tuple[int, int]:
        """Parameters, and FLOPs of one forward pass on one image."""
        return count_params(self.spec), flops(self.spec)

    def record(self) -> dict[str, Any]:
        """JSON types, with the protocol's hash."""
        return {
            "name": self.name, "model": self.model, "scores": self.scores, "protocol_hash": self.protocol.hash,
            "protocol": json.loads(self.protocol.to_json()), "spec": json.loads(self.spec.to_json()),
            "environment": self.environment,
        }  # fmt: skip

    def save(self, folder: Path) -> Path:
        """Write FOLDER/scores/SPACE.json, one file for each feature space, and return its path."""
        path = folder / SCORES / f"{_slug(self.protocol.features)}.json"
        with made(path.parent), replacing(path) as temporary:
            temporary.write_text(json.dumps(self.record(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return path


def environment() -> dict[str, str]:
    """Versions, device and date, and the commit where launch/tpu.sh has named it."""
    devices = jax.devices()
    found = {
        "graftax": version("graftax"), "jax": jax.__version__, "python": platform.python_version(),
        "devices": f"{len(devices)} x {devices[0].device_kind}", "date": datetime.date.today().isoformat(),
    }  # fmt: skip
    return found | ({"commit": commit} if (commit := os.environ.get("GIT_COMMIT")) else {})


def read_result(path: Path) -> Result:
    """A file that `Result.save` has written. Raises `BadInput` on anything else, and where protocol and hash disagree."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        protocol = Protocol.from_json(json.dumps(record["protocol"]))
        result = Result(
            record["name"], record["model"], ModelSpec.from_json(json.dumps(record["spec"])), protocol,
            {name: float(value) for name, value in record["scores"].items()}, dict(record["environment"]),
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{path}: not a file of scores ({error!r})") from None
    if protocol.hash != record["protocol_hash"]:
        raise BadInput(f"{path}: protocol {protocol.hash}, but {record['protocol_hash']} when it was written; changed since")
    return result


def find_results(folder: Path) -> dict[str, Result]:
    """All results at or below a folder, by path: EVALUATION/scores/SPACE. Raises `BadInput` where there are none.

    Evaluations called as a run's models come in the order in which it makes them, the others after them.
    """
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder")
    files = sorted(folder.glob(f"**/{SCORES}/*.json"), key=lambda file: (made_at(file.parent.parent.name), file))
    if not files:
        raise BadInput(f"{folder}: no {SCORES}/*.json in it, expected a folder that `graftax evaluate --out` has written to")
    return {str(file.relative_to(folder).with_suffix("")): read_result(file) for file in files}


def made_at(name: str) -> int:
    """The place of a model in `MADE_IN_ORDER`, the last for others."""
    return MADE_IN_ORDER.index(name) if name in MADE_IN_ORDER else len(MADE_IN_ORDER)


def by_space(results: Sequence[tuple[str, Result]]) -> dict[str, list[tuple[str, Result]]]:
    """Named results, those of each feature space together."""
    spaces: dict[str, list[tuple[str, Result]]] = {}
    for name, result in results:
        spaces.setdefault(result.protocol.features, []).append((name, result))
    return spaces


def check_comparable(results: Sequence[tuple[str, Result]]) -> None:
    """Raise `BadInput` naming every field in which the protocols of results in one feature space differ."""
    for members in by_space(results).values():
        require_equal({name: result.protocol for name, result in members})


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "unnamed"
