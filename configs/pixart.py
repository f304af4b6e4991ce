"""The grafting paper's second experiment (arXiv 2506.05340, Section 6): one operator in half of PixArt-Sigma's attention.

    graftax encode --text prompts.txt --text-encoder PIPELINE text
    graftax synthesize PixArt-Sigma-XL-2-2K-MS.pth text drawn_2048 --batch-size 8 --compute-dtype bfloat16
    graftax graft    --config configs/pixart.py:hyena_x,2048
    graftax distill  --config configs/pixart.py:hyena_x,2048
    graftax finetune --config configs/pixart.py:hyena_x,2048
    graftax convert runs/pixart/hyena_x_2048/finetuned student --merge-lora
    graftax geneval drawn --model student --text-encoder PIPELINE --latents PIPELINE --prompts evaluation_metadata.jsonl
    graftax bench --aot v5e:2x4 --config configs/pixart.py:hyena_x,2048
    graftax bench --aot v6e:2x4 --config configs/pixart.py:hyena_x,2048

The argument is OPERATOR,SIZE: a mixer below, and 256, 512, 1024 or 2048 pixels of a side, each with its own teacher. There
are no pictures: the teacher draws its training set from a file with 12,200 prompts, one a line (any; the paper took them
from a public set of 30,000). Needs the published file of the size, whose table of positions says that they are interpolated
by 4 at 2048, and PIPELINE, the folder of PixArt-Sigma-XL-2-1024-MS: its T5, which no stage runs, and its VAE.

From the paper: the model at 2048; Hyena-X in blocks 8, 10, .. 18 and 20 to 27; stage 1 on 8,000 pairs; stage 2 on 12,000,
by LoRA of rank 64. Ours, since it does not say: four taps, L1 and rates as in its experiments on DiT-XL/2; 25,000 steps of
8 images at 2048, one a chip (8 x the tokens of DiT's 64), of 32 at 1024, of 64 below; adapters on every product of the
blocks, those of the new operators too, with alpha = rank; 2,000 steps of 64 images at a rate warmed up to 1e-4; one caption
in ten dropped. Windows of `swa` are a quarter of a row long, as 4 tokens are of DiT's 16; those of `swa_2d` and the discs of
`clear` a sixteenth. `linear`, `clear` and `sla`, which the paper does not have, begin with the teacher's projections.

Hardware: v5e-8 or v6e-8, weights split over 8 chips (a single device: `--config.mesh.fsdp=1`, a distill.batch_size and a
finetune.accumulate that fit it). Hours there, stage 1 + stage 2, are computed from our FLOP counts at 40 % of peak; drawing
the pairs at 2048 (20 steps of DPM-Solver++, guidance 4.5) takes 11.3 and 2.4 more. "faster": FLOPs of the teacher over those
of the student. Expect what the paper reports; not run here.

    argument         parameters   faster  hours on v5e  hours on v6e  GenEval
    hyena_x,2048     612,326,816    1.50   5.28 + 5.95   1.13 + 1.28    47.78
    hyena_se,2048    612,407,456    1.50   5.28 + 5.95   1.13 + 1.28        -
    hyena_y,2048     612,165,536    1.50   5.28 + 5.95   1.13 + 1.28        -
    hyena_2d,2048    612,568,736    1.50   5.28 + 5.95   1.13 + 1.28        -
    hyena_long,2048  614,481,696    1.49   5.32 + 5.97   1.14 + 1.28        -
    swa,2048         612,084,896    1.49   5.30 + 5.96   1.14 + 1.28        -
    swa_2d,2048      612,084,896    1.48   5.36 + 6.00   1.15 + 1.29        -
    mamba2,2048      653,774,656    1.44   5.66 + 6.19   1.21 + 1.33        -
    linear,2048      612,246,176    1.49   5.30 + 5.97   1.14 + 1.28        -
    clear,2048       612,084,896    1.49   5.33 + 5.98   1.14 + 1.28        -
    sla,2048         612,158,480    1.46   5.53 + 6.11   1.19 + 1.31        -
    hyena_x,1024     612,326,816    1.20   2.99 + 0.94   0.64 + 0.20        -
    hyena_x,512      612,326,816    1.06   1.23 + 0.21   0.26 + 0.04        -
    hyena_x,256      612,326,816    1.01   0.32 + 0.06   0.07 + 0.01        -

The teacher: 49.75. The paper measured 1.43 x (235 ms, then 164, a forward pass on an H100), and saw artefacts in textures.
"""

from dataclasses import dataclass

from ml_collections import ConfigDict

from graftax.errors import did_you_mean

BLOCKS = "8:20:2,20:28"
"""The paper's choice: 8, 10, .. 18, then 20 to 27."""

LORA = "lora(blocks[*].mixer, blocks[*].cross, blocks[*].mlp, rank=64, alpha=64)"


@dataclass(frozen=True)
class Size:
    """What differs between the published models.

    Attributes:
        teacher: the authors' file.
        batch: of stage 1, whose activations of all sites must fit at once.
        accumulate: pieces of a batch of stage 2.
    """

    teacher: str
    batch: int
    accumulate: int


SIZES = {
    256: Size("PixArt-Sigma-XL-2-256x256.pth", 64, 1),
    512: Size("PixArt-Sigma-XL-2-512-MS.pth", 64, 1),
    1024: Size("PixArt-Sigma-XL-2-1024-MS.pth", 32, 2),
    2048: Size("PixArt-Sigma-XL-2-2K-MS.pth", 8, 8),
}


def operators(size: int) -> dict[str, str]:
    """Every mixer by name, as `replace` takes it.

    Windows reach as far in the picture at every size, as 4 of a row's 16 tokens do in the paper.
    """
    side = size // 16  # tokens
    return {
        "hyena_x": "hyena_x(kernel=4)",
        "hyena_se": "hyena_se(kernel=4)",
        "hyena_y": "hyena_y(kernel=4)",
        "hyena_2d": "hyena_2d(kernel=3)",
        "hyena_long": "hyena_long(bidirectional=true)",
        "swa": f"swa(window={side // 4})",
        "swa_2d": f"swa_2d(window={side // 16})",
        "mamba2": "mamba2(d_state=64, headdim=16, expand=2, d_conv=4)",
        "linear": "linear(feature=relu, conv=true), init=transplant",
        "clear": f"clear(radius={side // 16}), init=transplant",
        "sla": "sla(block=64, topk=0.05), init=transplant",
    }


def get_config(argument: str = "hyena_x,2048") -> ConfigDict:
    """The experiment with one operator at one size."""
    operator, _, side = argument.partition(",")
    sizes = {str(size): size for size in SIZES}
    if side not in sizes:
        near = did_you_mean(side, sizes)
        raise ValueError(f"got {argument!r}, expected OPERATOR,SIZE with SIZE one of {list(sizes)}{near}")
    size, known = SIZES[sizes[side]], operators(sizes[side])
    if operator not in known:
        near = did_you_mean(operator, known)
        raise ValueError(f"got {argument!r}, expected OPERATOR,SIZE with OPERATOR one of {list(known)}{near}")
    return ConfigDict({
        "workdir": f"runs/pixart/{operator}_{side}",
        "teacher": size.teacher,
        "graft": {"edits": (f"replace(blocks[{BLOCKS}].mixer, {known[operator]})", LORA)},
        "data": {
            "source": f"drawn_{side}", "latents": "given", "held_out": 0.01, "test_subset": str(size.batch), "subset": "12k",
        },
        "distill_subset": "8k",
        "mesh": {"fsdp": 8},
        "distill": {
            "settings": {
                "steps": 25_000, "learning_rate": 1e-4, "schedule": "paper", "grad_clip": 10.0, "dtype": "bfloat16",
            },
            "batch_size": size.batch, "eval_every": 2500, "save_every": 2500,
        },
        "finetune": {
            "loop": {"steps": 2000, "eval_every": 200, "save_every": 200},
            "batch_size": 64,
            "accumulate": size.accumulate,
            "optimiser": {"learning_rate": 1e-4, "warmup_steps": 100, "grad_clip": 1.0},
            "frozen": ("(?!lora/).*",),
            "ema_decay": 0.999,
            "class_dropout": 0.1,
            "compute_dtype": "bfloat16",
            "remat": "full",
        },
    })  # fmt: skip
