"""Self-grafting (arXiv 2506.05340, Table 2): all operators of a kind replaced by random ones of the same kind, and taught.

    graftax graft    --config configs/self_grafting.py:mha,10%
    graftax distill  --config configs/self_grafting.py:mha,10%
    graftax finetune --config configs/self_grafting.py:mha,10%
    graftax sample 'runs/self_grafting/mha_10%/finetuned' --labels 207,360 --sampler ddpm --steps 250 --out samples.npz
    graftax bench --aot v4:2x2x4 --config configs/self_grafting.py:mha,10%

The argument is OPERATOR,SHARE: mha or mlp in all 28 blocks, and the part of ImageNet for stage 2. The rungs of the ladder
are the folders of one run: grafted/ is the random start, distilled/ is after stage 1, finetuned/ after stage 2. Needs the
published `DiT-XL-2-256x256.pt` and ImageNet's training and validation images as latent sets, which `graftax encode` makes.

Stage 1 is 200 epochs over 8,000 images (0.63 %) in batches of 64, 25,000 steps; stage 2 is 30,000 steps of 256 images.

Hardware: v4-32, which is 16 chips, weights split over 8 (`--config.mesh.fsdp=1` for a single device). Hours there, stage 1
+ stage 2 as far as the row goes, are computed from our FLOP counts at 40 % of peak, as is the 0.9 for 50,000 samples (DDPM,
250 steps, guidance 1.5). Expect what the paper reports of those; not run here.

    argument      folder     sites   parameters    hours          IS     FID    sFID  precision  recall
    mha,10%       grafted       28  675,129,632  0.00 + 0.00    1.66  289.23  154.00       0.00    0.00
    mha,10%       distilled     28  675,129,632  0.12 + 0.00  117.68   16.78   13.69       0.60    0.61
    mha,0.63%     finetuned     28  675,129,632  0.12 + 0.86  148.56   11.26   11.10       0.66    0.60
    mha,5%        finetuned     28  675,129,632  0.12 + 0.86  270.39    2.70    5.46       0.81    0.57
    mha,10%       finetuned     28  675,129,632  0.12 + 0.86  287.81    2.49    4.71       0.83    0.56
    mlp,10%       grafted       28  675,129,632  0.00 + 0.00    1.27  314.72  204.99       0.00    0.00
    mlp,10%       finetuned     28  675,129,632  0.18 + 0.86  277.72    2.54    4.52       0.83    0.57

The teacher: 278.20, 2.27, 4.60, 0.83, 0.57.
"""

from common import paper
from ml_collections import ConfigDict

OPERATORS = {"mha": "mixer=mha", "mlp": "mlp=mlp(ratio=4.0)"}


def get_config(argument: str = "mha,10%") -> ConfigDict:
    """The paper's recipe for one operator and one share of the data."""
    operator, _, share = argument.partition(",")
    if operator not in OPERATORS or not share:
        raise ValueError(f"got {argument!r}, expected OPERATOR,SHARE with {list(OPERATORS)} and 0.63%, 5%, 10%, ..")
    graft = {"edits": (f"blocks[*].{OPERATORS[operator]}",)}
    workdir = f"runs/self_grafting/{operator}_{share}"
    return ConfigDict({**paper(share, steps=30_000), "workdir": workdir, "graft": graft})
