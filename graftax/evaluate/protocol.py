"""How samples were drawn and scored, as data: two results compare only where this is the same."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from graftax.diffusion import Sampling, image_keys
from graftax.errors import BadInput

LABELS = ("balanced", "random")
ROUNDINGS = ("nearest", "truncate")
DIGITS = 12

LATER = {
    "spacing": "linspace", "last": "zero", "shift": 1.0, "text": "", "guidance": None, "skip": (), "skip_scale": 2.8,
    "skip_span": (0.01, 0.2), "interval": None, "cfg_power": 0.0, "weak": "null", "last_size": 0.04, "diffusion": "sigma",
    "churn": (), "tolerance": (1e-3, 1e-6), "refresh": (), "reuse": "",
}  # fmt: skip
"""Fields younger than the first results, and what those stand for: left out of the JSON there, so hashes stay."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Everything beside the model that a score depends on. Raises BadInput on values out of range.

    Attributes:
        sampling: how each image is drawn.
        seed: of the noise; image i has its own (`graftax.diffusion.sampling`).
        count: images.
        labels: "balanced" takes the classes in turn, "random" draws each (as DiT's published scores).
        text: what reads the prompts of a text-to-image model, by name and hash; "" for a model of classes.
        guidance: that a model is conditioned on, as Flux-dev is; None of a model that takes none.
        decoder: what turned latents into pixels, by name and hash.
        rounding: of pixels in [-1, 1] to bytes: "nearest" as DiT's code, "truncate" as ADM's.
        dtype: of the model's matrix products.
        reference: the real images by name and hash; "" while nothing has been compared yet.
        features: the space in which they are compared, likewise.
    """

    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    count: int = 50_000
    labels: str = "random"
    text: str = ""
    guidance: float | None = None
    decoder: str = "none"
    rounding: str = "nearest"
    dtype: str = "float32"
    reference: str = ""
    features: str = ""

    def __post_init__(self) -> None:
        for name, choices in {"labels": LABELS, "rounding": ROUNDINGS}.items():
            if getattr(self, name) not in choices:
                raise BadInput(f"protocol {name}: got {getattr(self, name)!r}, expected one of {choices}")
        if self.count < 1 or self.seed < 0:
            raise BadInput(f"protocol: count {self.count}, seed {self.seed}; expected at least 1 and 0")

    @property
    def hash(self) -> str:
        """Twelve hex digits that change with any field."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:DIGITS]

    def to_json(self) -> str:
        """One line of JSON, all fields side by side, that `from_json` reads back to an equal protocol.

        Fields of `LATER` are left out where they are as they were before there were any.
        """
        fields = {name: value for name, value in self.fields().items() if name not in LATER or value != LATER[name]}
        return json.dumps(fields, sort_keys=True)

    def fields(self) -> dict[str, Any]:
        """All fields by name, those of the sampling among them."""
        own = {name: value for name, value in vars(self).items() if name != "sampling"}
        return {**dataclasses.asdict(self.sampling), **own}

    @classmethod
    def from_json(cls, text: str) -> Protocol:
        """Inverse of `to_json`. Raises `BadInput` on anything else."""
        try:
            fields = json.loads(text)
            sampling = Sampling(**{name: fields.pop(name) for name in Sampling.__dataclass_fields__ if name in fields})
            return cls(sampling=sampling, **fields)
        except (TypeError, ValueError) as error:
            raise BadInput(f"protocol: {error} in {text[:80]!r}, expected the fields of a Protocol") from None

    def drawn(self) -> Protocol:
        """The same without what only scores depend on: two runs that agree here share their images."""
        return dataclasses.replace(self, reference="", features="")

    def label_array(self, classes: int) -> np.ndarray:
        """(count,) int32: the class of every image."""
        if self.labels == "balanced":
            return np.arange(self.count, dtype=np.int32) % classes
        # numpy's Philox gives the same numbers on every platform; 1 keeps its stream apart from the noise's seeds.
        return np.random.Generator(np.random.Philox([self.seed, 1])).integers(0, classes, self.count, dtype=np.int32)

    def keys(self, first: int, last: int) -> jax.Array:
        """(last - first,) keys: the noise of images first..last - 1."""
        return image_keys(jax.random.key(self.seed), first, last - first)

    def to_uint8(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels in [-1, 1], any shape, as bytes; what lies beyond is cut off."""
        scaled = 127.5 * pixels + 128 if self.rounding == "nearest" else 127.5 * (pixels + 1)
        return np.clip(scaled, 0, 255).astype(np.uint8)  # astype truncates

    def __str__(self) -> str:
        what = f"prompts read by {self.text}" if self.text else f"{self.labels} classes"
        how = str(self.sampling) if self.guidance is None else f"{self.sampling}, conditioned on guidance {self.guidance:g}"
        return (
            f"{self.count:,} images of {what}, {how}, seed {self.seed}, decoder {self.decoder}, "
            f"bytes by {self.rounding}, {self.dtype}"
        )


def differences(protocols: Mapping[str, Protocol]) -> list[str]:
    """One line for each field in which the named protocols are not all the same: "steps: 50 (a, b), 250 (c)"."""
    lines = []
    for field_name in Protocol().fields():
        users: dict[Any, list[str]] = {}
        for name, protocol in protocols.items():
            users.setdefault(protocol.fields()[field_name], []).append(name)
        if len(users) > 1:
            lines.append(f"{field_name}: " + ", ".join(f"{value} ({', '.join(names)})" for value, names in users.items()))
    return lines


def require_equal(protocols: Mapping[str, Protocol]) -> None:
    """Raise `BadInput` naming every field in which the named protocols differ."""
    if lines := differences(protocols):
        raise BadInput(f"protocols differ in {'; '.join(lines)}: such scores do not compare")
