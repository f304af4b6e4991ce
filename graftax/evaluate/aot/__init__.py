"""Compiling ahead of time for TPUs that are not there: does an experiment fit, what does it send, how long may it take.

Everything is computed by the compiler or from the FLOP count; nothing here was run on the hardware it speaks of.
"""

from graftax.evaluate.aot.measure import REMATERIALISATION, UTILISATION, check, measure
from graftax.evaluate.aot.programs import Program, sample_program, stage1_program, train_program
from graftax.evaluate.aot.table import format_report
from graftax.evaluate.aot.topology import Topology, parse_topology, require_libtpu

__all__ = [
    "REMATERIALISATION", "UTILISATION", "Program", "Topology", "check", "format_report", "measure", "parse_topology",
    "require_libtpu", "sample_program", "stage1_program", "train_program",
]  # fmt: skip
