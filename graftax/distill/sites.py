"""Which sites stage 1 works on, and whether teacher and student go together."""

from __future__ import annotations

from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from graftax.errors import BadInput
from graftax.models import Model
from graftax.models.lora import LORA
from graftax.surgery.select import Selector, Site, select


def scion_sites(student: Model, sites: Selector | None) -> tuple[Site, ...]:
    """The selected sites, or all that hold scions where `sites` is None. Raises `BadInput` where there are none."""
    if sites is None and not student.meta.sites:
        raise BadInput("distillation sites: the student's meta names none, expected a grafted student or explicit sites")
    return select(student.meta.sites if sites is None else sites, student.spec)


def check_pair(teacher: Model, student: Model) -> None:
    """Raise `BadInput` unless the student's operators can be taught what the teacher's do."""
    for name in ("depth", "hidden_size", "tokens", "num_classes"):
        theirs, ours = getattr(teacher.spec, name), getattr(student.spec, name)
        if theirs != ours:
            raise BadInput(f"student {name}: {ours}, expected the teacher's {theirs}")
    # Stage 1 trains operators as they are without adapters, so one that already does something would be left out.
    adapters: dict[str, Any] = flatten_dict(student.params.get(LORA, {}), sep="/")
    trained = [path for path, leaf in adapters.items() if np.any(leaf)]
    if changed := [path.removesuffix("/b") for path in trained if path.endswith("/b")]:
        raise BadInput(f"student: trained adapters at {changed[0]} and {len(changed) - 1} more, expected merge_lora() first")
