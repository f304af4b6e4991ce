"""Surgery: edits of a model as pure functions on (spec, params). Nothing is ever mutated."""

from graftax.surgery.check import check
from graftax.surgery.edits import Edit, compose, replace, resize
from graftax.surgery.graft import apply_edit, graft
from graftax.surgery.hybrid import hybrid
from graftax.surgery.inverse import inverse
from graftax.surgery.lora import lora, merge_lora
from graftax.surgery.program import (
    Rewrite,
    looped_parallel,
    painters_span,
    parallel,
    random_order,
    repeat,
    reverse,
    skip,
)
from graftax.surgery.report import Report, diff
from graftax.surgery.restructure import drop, parallel_pairs, tie
from graftax.surgery.select import Site, select

__all__ = [
    "Edit", "Report", "Rewrite", "Site", "apply_edit", "check", "compose", "diff", "drop", "graft", "hybrid",
    "inverse", "looped_parallel", "lora", "merge_lora", "painters_span", "parallel", "parallel_pairs", "random_order",
    "repeat", "replace", "resize", "reverse", "select", "skip", "tie",
]  # fmt: skip
