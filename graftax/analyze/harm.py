"""How much harm scions do: the error of the whole model's output when only some sites hold them."""

from __future__ import annotations

from collections.abc import Iterable

from jax.typing import DTypeLike

from graftax.analyze.inputs import noised_batches
from graftax.analyze.outputs import Outputs
from graftax.diffusion import Noising
from graftax.distill.sites import check_pair, scion_sites
from graftax.errors import BadInput
from graftax.models import Model
from graftax.models.cost import operator_cost
from graftax.models.library import Library
from graftax.models.stack import runs
from graftax.spec import ModelSpec
from graftax.surgery.select import Site
from graftax.train.loop import Batch


class Harm:
    """`harm(sites)`: ||student's output - teacher's|| / ||teacher's output|| when only `sites` hold the student's scions.

    Norms are over prediction and variance on one fixed held-out set of (x0, t, noise) (`noised_batches`, which says what
    `heldout`, `seed` and `batch_size` are). 0 is the teacher; a single site gives that site's own harm, several their joint
    harm. All but the scions is the teacher's, its program included. Which scions run is data
    (`graftax.models.library`): one program is compiled for all choices, whatever the depth.

    `student` holds distilled scions at every candidate site, by default `meta.sites`, over the teacher's weights. Raises
    `BadInput` where the two models or the held-out set do not fit together.

    Attributes:
        sites: the candidates, in order.
    """

    def __init__(
        self, teacher: Model, student: Model, heldout: Batch, *, process: Noising | None = None, seed: int = 0,
        batch_size: int = 64, dtype: DTypeLike | None = None,
    ) -> None:  # fmt: skip
        check_pair(teacher, student)
        self.sites = scion_sites(student, None)
        library = Library((teacher.spec, student.spec), frozenset((site.block, site.slot) for site in self.sites))
        batches = noised_batches(teacher.spec, heldout, process, seed, batch_size)
        capacity = len(runs(teacher.spec))
        self._outputs = Outputs(
            library, library.prepare(teacher.params, student.params), batches, capacity=capacity, dtype=dtype
        )

    @property
    def compilations(self) -> int:
        """How often the model was compiled: once."""
        return self._outputs.compilations

    def __call__(self, sites: Iterable[Site]) -> float:
        """The joint harm of `sites`. Raises `BadInput` on one that is no candidate."""
        chosen = set(sites)
        if unknown := sorted(chosen - set(self.sites)):
            raise BadInput(
                f"site {unknown[0]}: the student has no scion there, expected some of its {len(self.sites)} sites"
            )
        return self._outputs.error(choice={(site.block, site.slot): 1 for site in chosen})


def flops_saved(teacher: ModelSpec, student: ModelSpec, sites: Iterable[Site]) -> dict[Site, int]:
    """FLOPs per image and forward pass that each site saves when the student's operator takes the teacher's place.

    From the operators' closed forms (`Operator.cost`), times the runs of the block; negative where the scion costs more.
    """
    order = runs(teacher)

    def saved(site: Site) -> int:
        old, new = (operator_cost(spec, spec.blocks[site.block], site.slot).flops for spec in (teacher, student))
        return order.count(site.block) * (old - new)

    return {site: saved(site) for site in sites}
