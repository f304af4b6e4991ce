"""Accelerators by name: peak arithmetic, memory and its bandwidth, for utilisation, rooflines and fits.

Sources: Google Cloud's pages "TPU v2", "v3", "v4", "v5e", "v5p", "v6e" and "TPU7x" (docs.cloud.google.com/tpu/docs), per
chip, dense bfloat16 (jax shows a v2, v3 or TPU7x chip as two devices); NVIDIA's data sheets of the A100 (SXM, 80 GB), H100
(SXM) and H200, likewise dense and bfloat16.
"""

from __future__ import annotations

from dataclasses import dataclass

from graftax.errors import BadInput, did_you_mean

TERA, GIGA, GIB = 10**12, 10**9, 2**30


@dataclass(frozen=True)
class Chip:
    """One chip.

    Attributes:
        name: short, "v5e".
        kinds: the names that jax's `device_kind` has for it.
        flops: bfloat16 FLOP/s at peak.
        hbm_bytes: memory.
        hbm_bandwidth: bytes/s.
    """

    name: str
    kinds: tuple[str, ...]
    flops: float
    hbm_bytes: int
    hbm_bandwidth: float


_ALL = (
    Chip("v2", ("TPU v2",), 45 * TERA, 16 * GIB, 700 * GIGA),
    Chip("v3", ("TPU v3",), 123 * TERA, 32 * GIB, 900 * GIGA),
    Chip("v4", ("TPU v4",), 275 * TERA, 32 * GIB, 1200 * GIGA),
    Chip("v5e", ("TPU v5 lite", "TPU v5e"), 197 * TERA, 16 * GIB, 819 * GIGA),
    Chip("v5p", ("TPU v5", "TPU v5p"), 459 * TERA, 95 * GIB, 2765 * GIGA),
    Chip("v6e", ("TPU v6 lite", "TPU v6e"), 918 * TERA, 32 * GIB, 1638 * GIGA),
    Chip("tpu7x", ("TPU7x",), 2307 * TERA, 192 * GIB, 7380 * GIGA),
    Chip("a100", ("NVIDIA A100-SXM4-80GB",), 312 * TERA, 80 * GIGA, 2039 * GIGA),
    Chip("h100", ("NVIDIA H100 80GB HBM3",), 989 * TERA, 80 * GIGA, 3350 * GIGA),
    Chip("h200", ("NVIDIA H200",), 989 * TERA, 141 * GIGA, 4800 * GIGA),
)
CHIPS: dict[str, Chip] = {chip.name: chip for chip in _ALL}
"""Every known chip by its short name."""

_BY_KIND = {kind: chip for chip in _ALL for kind in chip.kinds}


def chip_of(device_kind: str) -> Chip | None:
    """The chip that jax calls `device_kind` ("TPU v5 lite"); None where it is not in the table, as for a CPU."""
    return _BY_KIND.get(device_kind)


def find_chip(name: str) -> Chip:
    """The chip of a short name, "v5e". Raises `BadInput` on others."""
    if name not in CHIPS:
        raise BadInput(f"chip: got {name!r}, expected one of {', '.join(CHIPS)}{did_you_mean(name, CHIPS)}")
    return CHIPS[name]
