"""How samples were drawn and scored, as data: two results compare only where this is the same."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from graftax.diffusion import Process, Sampler
from graftax.errors import BadInput

LABELS = ("balanced", "random")
ROUNDINGS = ("nearest", "truncate")
DIGITS = 12


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Everything beside the model that a score depends on.

    `sampler`, `steps`, `cfg_scale`, `cfg_channels` (None: all) and `eta` as in `graftax.sample`. `count` images; image i has
    its own noise, drawn from `seed` and i alone, so batch sizes, devices and hosts change nothing. `labels`: "balanced"
    takes the classes in turn, "random" draws each (as DiT's published scores). `decoder`: what turned latents into pixels,
    by name and hash. `rounding` of pixels in [-1, 1] to bytes: "nearest" as DiT's code, "truncate" as ADM's. `dtype` of
    the model's matrix products. `reference` and `features`: the real images by name and hash, and the space in which they
    are compared; "" while nothing has been compared yet.

    Raises BadInput on values out of range.
    """

    sampler: Sampler = "ddpm"
    steps: int = 250
    cfg_scale: float = 1.5
    cfg_channels: int | None = 3
    eta: float = 0.0
    seed: int = 0
    count: int = 50_000
    labels: str = "random"
    decoder: str = "none"
    rounding: str = "nearest"
    dtype: str = "float32"
    reference: str = ""
    features: str = ""

    def __post_init__(self) -> None:
        for name, choices in {"sampler": ("ddpm", "ddim"), "labels": LABELS, "rounding": ROUNDINGS}.items():
            if getattr(self, name) not in choices:
                raise BadInput(f"protocol {name}: got {getattr(self, name)!r}, expected one of {choices}")
        if self.count < 1 or self.seed < 0:
            raise BadInput(f"protocol: count {self.count}, seed {self.seed}; expected at least 1 and 0")
        Process().respaced(self.steps)  # refuses impossible numbers of steps

    @property
    def hash(self) -> str:
        """Twelve hex digits that change with any field."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:DIGITS]

    def to_json(self) -> str:
        """One line of JSON that `from_json` reads back to an equal protocol."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Protocol:
        """Inverse of `to_json`. Raises `BadInput` on anything else."""
        try:
            return cls(**json.loads(text))
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
        root = jax.random.key(self.seed)
        return jax.vmap(lambda i: jax.random.fold_in(root, i))(np.arange(first, last))

    def to_uint8(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels in [-1, 1], any shape, as bytes; what lies beyond is cut off."""
        scaled = 127.5 * pixels + 128 if self.rounding == "nearest" else 127.5 * (pixels + 1)
        return np.clip(scaled, 0, 255).astype(np.uint8)  # astype truncates

    def __str__(self) -> str:
        channels = "all" if self.cfg_channels is None else f"the first {self.cfg_channels}"
        guidance = f"guidance {self.cfg_scale:g} on {channels} channels" if self.cfg_scale != 1 else "no guidance"
        noise = f", eta {self.eta:g}" if self.eta else ""
        return (
            f"{self.count:,} images of {self.labels} classes, {self.sampler.upper()}, {self.steps} steps{noise}, "
            f"{guidance}, seed {self.seed}, decoder {self.decoder}, bytes by {self.rounding}, {self.dtype}"
        )


def differences(protocols: Mapping[str, Protocol]) -> list[str]:
    """One line for each field in which the named protocols are not all the same: "steps: 50 (a, b), 250 (c)"."""
    lines = []
    for field in dataclasses.fields(Protocol):
        users: dict[Any, list[str]] = {}
        for name, protocol in protocols.items():
            users.setdefault(getattr(protocol, field.name), []).append(name)
        if len(users) > 1:
            lines.append(f"{field.name}: " + ", ".join(f"{value} ({', '.join(names)})" for value, names in users.items()))
    return lines


def require_equal(protocols: Mapping[str, Protocol]) -> None:
    """Raise `BadInput` naming every field in which the named protocols differ."""
    if lines := differences(protocols):
        raise BadInput(f"protocols differ in {'; '.join(lines)}: such scores do not compare")
