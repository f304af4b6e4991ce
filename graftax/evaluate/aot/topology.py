"""TPU slices by name, as devices to compile for: libtpu describes them without any TPU."""

from __future__ import annotations

import importlib.util
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from graftax.errors import BadInput
from graftax.train.chips import CHIPS, Chip

EXAMPLES = "v5e:2x4, v5e:16x16, v6e:4x4, v4:2x2x2, v5p:2x2x2"
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",  # ask no metadata server which TPU this is
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # libtpu else locks a file and lets one process in
    "TPU_STDERR_LOG_LEVEL": "1",  # warnings: the compiler else keeps its own to itself
}
"""Environment in which libtpu must be loaded where there is no TPU."""

_DIMENSIONS = {"v4": 3, "v5e": 2, "v5p": 3, "v6e": 2}
_NAME = re.compile(r"(?P<chip>v\w+):(?P<shape>\d+(?:x\d+)+)")


@dataclass(frozen=True)
class Topology:
    """A slice of chips, one jax device each. Prints as its name, "v5e:2x4".

    Attributes:
        chip: its kind.
        shape: chips along each dimension.
    """

    chip: Chip
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def size(self) -> int:
        """Number of chips."""
        return math.prod(self.shape)

    def devices(self) -> Sequence[Any]:
        """The slice's devices, which programs can be compiled for but not run on. Loads libtpu.

        Raises `BadInput` where libtpu is missing or knows no slice of this shape.
        """
        require_libtpu()
        os.environ.update(ENVIRONMENT)
        import jax
        from jax.experimental import topologies

        # Without it libtpu gives a v4 chip's two cores a device each, which no v4 program of today does.
        options = {"chip_config_name": "megacore"} if self.chip.name == "v4" else {}
        try:
            return topologies.get_topology_desc(platform="tpu", topology_name=str(self), **options).devices
        except jax.errors.JaxRuntimeError as error:
            reason = str(error).splitlines()[0]
            raise BadInput(f"topology {str(self)!r}: {reason}; expected one like {EXAMPLES}") from None


def parse_topology(name: str) -> Topology:
    """The slice of a name like "v5e:2x4". Raises `BadInput` with examples."""
    match = _NAME.fullmatch(name)
    shape = tuple(map(int, match["shape"].split("x"))) if match else ()
    if match is None or len(shape) != _DIMENSIONS.get(match["chip"]) or 0 in shape:
        raise BadInput(f"topology: got {name!r}, expected one like {EXAMPLES}")
    return Topology(CHIPS[match["chip"]], shape)


def require_libtpu() -> None:
    """Raise `BadInput` unless the TPU compiler is installed."""
    if importlib.util.find_spec("libtpu") is None:
        raise BadInput("compiling for TPUs: libtpu is not installed, expected pip install graftax[tpu]")
