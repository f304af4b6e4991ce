"""DiT-XL/2 at half its depth (arXiv 2506.05340, Section 6 and Table 6): blocks 2j and 2j + 1 run on one input, merged by a
learned projection.

    graftax graft    --config configs/parallel_pairs.py
    graftax distill  --config configs/parallel_pairs.py
    graftax finetune --config configs/parallel_pairs.py
    graftax sample runs/parallel_pairs/finetuned --labels 207,360 --sampler ddpm --steps 250 --out samples.npz
    graftax bench --aot v6e:4x4 --config configs/parallel_pairs.py

Every pair starts from its trained weights and learns, under the L1 loss, what its two blocks did one after the other: 200
epochs over 8,000 images in batches of 64, 25,000 steps. Then the whole is trained on a quarter of ImageNet, 256 images a
step, at a rate warmed up to 1e-4 and halved after 75,000 and 150,000 steps. How long the paper trained was not to be found:
200,000 steps are our choice, as is a projection that starts as the mean. Needs the published `DiT-XL-2-256x256.pt` and
ImageNet's training and validation images as latent sets, which `graftax encode` makes.

Hardware: v6e-16, weights split over 8 chips (`--config.mesh.fsdp=1` for a single device). Hours there, stage 1 + stage 2,
are computed from our FLOP counts at 40 % of peak, as is the 0.3 for 50,000 samples (DDPM, 250 steps, guidance 1.5). Expect
what the paper reports of those; not run here.

    pairs   parameters    hours      FID
       14  712,304,672  0.08 + 1.86  2.77

Of others at depth 14 the paper quotes TinyDiT-D14 (340 M parameters): 3.92, and 2.86 with masked distillation. DiT-XL/2
itself has 2.27.
"""

from common import paper
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The paper's recipe for parallel blocks."""
    config = paper("25%", steps=200_000, eval_every=10_000, halve_at=(75_000, 150_000), step_loss="l1")
    return ConfigDict({**config, "workdir": "runs/parallel_pairs", "graft": {"edits": ("parallel_pairs()",)}})
