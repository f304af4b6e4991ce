"""How well a model's modulations say what another's do, over all times and conditions, without any image."""

from __future__ import annotations

import numpy as np

from graftax.errors import BadInput
from graftax.models import Model
from graftax.surgery import all_sites
from graftax.surgery.replace import conditions, modulation_at


def modulation_error(before: Model, after: Model) -> dict[str, float]:
    """Relative error of the modulations of `after` against those of `before`, by site and as "mean" over sites.

    Per site ("blocks[3].adaln") sqrt(E ||m' - m||^2 / E ||m||^2) with m all its shifts, scales and gates, the mean taken
    over the conditioning vectors that `before` makes of times and conditions (`graftax.surgery.replace.conditions`): in
    closed form, since every modulation is an affine map of silu(vec). So it says what an exchange of modulations
    (`graftax.replace("blocks[*].adaln", "adaln_lowrank", rank=64)`) lost, before any training; embedders that have changed
    since are not seen. Raises `BadInput` where the two models do not have the same modulations to compare.
    """
    sites = all_sites(before.spec, "modulation")
    theirs = all_sites(after.spec, "modulation")
    if not sites or sites != theirs or before.spec.width != after.spec.width:
        raise BadInput(
            f"modulations: {len(sites)} sites of width {before.spec.width} and {len(theirs)} of width {after.spec.width}, "
            "expected the same ones, at least one"
        )
    u = conditions(before.spec, before.params)
    found = {
        str(site): u.error(modulation_at(after.spec, after.params, site), modulation_at(before.spec, before.params, site))
        for site in sites
    }
    return {**found, "mean": float(np.mean(list(found.values())))}
