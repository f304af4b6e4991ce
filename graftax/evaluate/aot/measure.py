"""What a compiled program needs of its chips: memory, collectives, and time at a stated share of peak."""

from __future__ import annotations

import re
import time
from typing import Any

import jax

from graftax.errors import BadInput
from graftax.evaluate.aot.hlo import collectives
from graftax.evaluate.aot.programs import Program
from graftax.evaluate.aot.topology import Topology
from graftax.ops.target import compiling_for
from graftax.train import MeshConfig

UTILISATION = 0.4
"""Share of peak at which times are computed: what well-tuned training reaches, not what was measured."""

REMATERIALISATION = "Involuntary full rematerialization"
_NEEDED = re.compile(r"Used ([\d.]+)([KMG]) of|\(([\d.]+)([KMG])\) exceeds")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


def measure(program: Program, topology: Topology, mesh: MeshConfig) -> dict[str, Any]:
    """Compile `program` for the slice and return what is known of it, JSON types.

    step, chips, batch, `fits` (the compiler refuses what exceeds a chip's memory), peak_bytes, argument_bytes,
    temporary_bytes and code_bytes of one chip, `collectives` {kind: {"count", "bytes"}} of one call (`hlo.collectives`),
    flops of one call on all chips, `seconds` that these take at `UTILISATION` of peak, compile_s. Where it does not
    fit, peak_bytes is what the compiler asked for (None where it does not say) and all else of the program is None.

    Nothing runs. Raises `BadInput` as `check` does, and where the slice cannot be.
    """
    check(program, topology, mesh)
    devices = mesh.build(topology.devices())
    start = time.perf_counter()
    with compiling_for("tpu", topology.chip.kinds[0]):
        lowered = program.trace(devices, mesh.rules).lower(lowering_platforms=("tpu",))
    try:
        found = _describe(lowered.compile())
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        found = {**dict.fromkeys(_COMPILED), "peak_bytes": _needed(str(error)), "collectives": None}
    seconds = program.flops / (topology.size * topology.chip.flops * UTILISATION)
    fits = found["collectives"] is not None
    facts = {"step": program.name, "chips": str(topology), "batch": program.images, "fits": fits}
    return {
        **facts, **found, "flops": program.flops, "seconds": seconds, "compile_s": time.perf_counter() - start
    }  # fmt: skip


def check(program: Program, topology: Topology, mesh: MeshConfig) -> None:
    """Raise `BadInput` where the mesh does not fit the slice or a batch does not divide over it."""
    try:
        mesh.check(topology.size, program.images // program.pieces)
    except BadInput as error:
        raise BadInput(f"{program.name} on {topology}: {error}") from None


_COMPILED = ("peak_bytes", "argument_bytes", "temporary_bytes", "code_bytes")


def _describe(compiled: jax.stages.Compiled) -> dict[str, Any]:
    memory: Any = compiled.memory_analysis()
    return {
        "peak_bytes": memory.peak_memory_in_bytes,
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "code_bytes": memory.generated_code_size_in_bytes,
        "collectives": {kind: vars(found) for kind, found in collectives(compiled.as_text() or "").items()},
    }


def _needed(message: str) -> int | None:
    match = _NEEDED.search(message)
    if match is None:
        return None
    number, unit = match[1] or match[3], match[2] or match[4]
    return round(float(number) * _UNITS[unit])
