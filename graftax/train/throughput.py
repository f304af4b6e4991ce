"""How well a training run uses its chips: images per second per chip, and model FLOP utilisation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from graftax.train.chips import chip_of


@dataclass(frozen=True)
class Throughput:
    """Turns images per second into rates per chip.

    Model FLOP utilisation is images_per_s x flops_per_image / (chips x peak), whatever type is computed in (PaLM, arXiv
    2204.02311, appendix B). Model FLOPs follow from the spec alone (`graftax.models.cost`): forward and backward together
    are 3 x forward; what rematerialisation computes twice counts once; optimiser and averages do not count. Stage 1 counts
    the teacher's forward pass once and the scions' 3 times (`graftax.distill.cost`).

    Attributes:
        chips: how many.
        flops_per_image: model FLOPs that training spends on an image, 0 where nobody counted them.
        peak: a chip's dense bfloat16 FLOP/s, None where it is not known.
    """

    chips: int
    flops_per_image: float = 0.0
    peak: float | None = None

    @classmethod
    def on(cls, devices: Sequence[Any], flops_per_image: float) -> Throughput:
        """That of a run on the given jax devices, all of one kind."""
        chip = chip_of(devices[0].device_kind)
        return cls(count_chips(devices), flops_per_image, chip.flops if chip else None)

    def rates(self, images_per_s: float) -> dict[str, float]:
        """images_per_s_per_chip; with known FLOPs flops_per_s, of all chips together; with a known peak mfu, 0 to 1."""
        found = {"images_per_s_per_chip": images_per_s / self.chips}
        if self.flops_per_image:
            found["flops_per_s"] = images_per_s * self.flops_per_image
            if self.peak:
                found["mfu"] = found["flops_per_s"] / (self.chips * self.peak)
        return found


def count_chips(devices: Sequence[Any]) -> int:
    """Chips behind jax devices: TPU v2, v3 and TPU7x show two devices per chip, which share coordinates."""
    places = {(getattr(d, "slice_index", 0), *d.coords) if hasattr(d, "coords") else d.id for d in devices}
    return len(places)
