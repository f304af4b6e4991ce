"""Which loss for stage 1 (arXiv 2506.05340, Table 1): five operators of DiT-XL/2 replaced by random ones and taught.

    graftax graft    --config configs/regression_objective.py:mha,l1
    graftax distill  --config configs/regression_objective.py:mha,l1
    graftax sample runs/regression_objective/mha_l1/distilled --labels 207,360 --sampler ddpm --steps 250 --out samples.npz
    graftax bench --aot v5e:2x4 --step 'stage 1' --config configs/regression_objective.py:mha,l1

The argument is OPERATOR,LOSS. Blocks 0, 7, 16, 26 and 27 (the paper counts from 1), 200 epochs over 8,000 images in batches
of 64, 25,000 steps, Huber delta 1. There is no stage 2: the settings of one are those of configs/self_grafting.py. Needs the
published `DiT-XL-2-256x256.pt` and ImageNet's training and validation images as latent sets, which `graftax encode` makes.

Hardware: v5e-8, weights split over its 8 chips (`--config.mesh.fsdp=1` for a single device). Hours there are computed from
our FLOP counts at 40 % of peak, as are the 2.6 for 50,000 samples (DDPM, 250 steps, guidance 1.5). Expect what the paper
reports of those; not run here. Its figure of the Huber loss for MLPs was not to be found.

    argument      sites   parameters  hours   FID
    mha,l1            5  675,129,632   0.20  2.51
    mha,huber         5  675,129,632   0.20  2.55
    mha,l2            5  675,129,632   0.20  2.58
    mlp,l1            5  675,129,632   0.22  2.83
    mlp,huber         5  675,129,632   0.22     -
    mlp,l2            5  675,129,632   0.22  2.33

The teacher: 2.27.
"""

from common import paper
from ml_collections import ConfigDict

OPERATORS = {"mha": "mixer=mha", "mlp": "mlp=mlp(ratio=4.0)"}
LOSSES = ("l1", "l2", "huber")


def get_config(argument: str = "mha,l1") -> ConfigDict:
    """The paper's stage 1 for one operator and one loss."""
    operator, _, loss = argument.partition(",")
    if operator not in OPERATORS or loss not in LOSSES:
        raise ValueError(f"got {argument!r}, expected OPERATOR,LOSS with {list(OPERATORS)} and {list(LOSSES)}")
    config = paper("8k", steps=30_000, mixer_loss=loss, mlp_loss=loss, huber_delta=1.0)
    graft = {"edits": (f"blocks[0,7,16,26,27].{OPERATORS[operator]}",)}
    return ConfigDict({**config, "workdir": f"runs/regression_objective/{operator}_{loss}", "graft": graft})
