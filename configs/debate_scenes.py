"""The debate over DiT, asked of the shipped model of scenes: what has changed since, as grafts and recipes of one model.

    graftax sweep --config configs/debate_scenes.py             every question that it can be asked, 80 steps
    graftax sweep --config configs/debate_scenes.py:bc,300      questions b and c, 300 steps

The argument is QUESTIONS,STEPS, with the letters of configs/debate.py:

    a  is DDPM behind flow matching?                    d  is one modulation for all blocks too little, or too much?
    b  is TREAD more than stochastic depth?             f  pieces of LightningDiT
    c  does computing less in training help the end?    g  SRA, dispersive loss

Every entrant begins with the weights of the shipped model, a PixArt of 4.15 M parameters that draws what a caption says; it
is edited as its name says, and trained on as many FLOPs as so many steps of 32 pictures are for the unedited one. So this
asks which change a trained model takes to within a short training, and what the change costs it, not what would come of it
from scratch: configs/debate.py asks that, of garments. Questions e and h are there alone, since placed norms and DDT's split
are of DiT's blocks, and so is REPA: the judge of scenes is no network whose features a model could be held to. Rotary
positions are a DiT's too.

The page, runs/debate_scenes/QUESTIONS_STEPS/report.html, has each claim with its verdict, by the share of 180 held-out
captions that are drawn right, three seeds each. Flows are drawn by Heun's method in half as many steps, which calls the
model as often.

Expect 75 minutes of one CPU core (an AMD EPYC with AVX-512) for every question at 80 steps, whose verdicts stand in
graftax/study/README.md. Interrupted, the same command continues.
"""

from typing import Any

from common import scenes, scenes_judging
from debate import REPLY, THREAD, debated

PLAINLY = "DDPM, as it was"
FLOW = ("interface(velocity)", "native()")
ENTRANTS: dict[str, dict[str, Any]] = {
    PLAINLY: {},
    "flow": {"edits": FLOW},
    "flow, logit-normal times": {"edits": FLOW, "times": "logit_normal(0, 1)"},
    "TREAD": {"recipe": "tread(1, 6, 0.5)"},
    "stochastic depth by batch": {"recipe": "stochastic_depth(0.74, mode=batch)"},
    "stochastic depth by image": {"recipe": "stochastic_depth(0.2)"},
    "a modulation for each block": {"edits": ("replace(blocks[*].adaln, adaln)",)},
    "one modulation of rank 16": {"edits": ("replace(blocks[*].adaln, adaln_shared_lowrank(rank=16))",)},
    "SwiGLU": {"edits": ("replace(blocks[*].mlp, swiglu(bias=true))",)},
    "RMSNorm": {"edits": ("replace(blocks[*].norm, rms_norm)",)},
    "QK norm": {"edits": ("replace(blocks[*].mixer, mha_kv(factor=1, qk_norm=true))",)},
    "SRA": {"recipe": "sra(2, 5)"},
    "dispersive loss": {"recipe": "dispersive(2)"},
}

LIGHTNING = "LightningDiT (arXiv 2501.01423)"
CLAIMS: tuple[tuple[str, str, str, str, str, str], ...] = (
    (
        "a",
        "Flow matching draws better than DDPM.",
        f"SiT (arXiv 2401.08740); {REPLY}",
        "flow",
        PLAINLY,
        "The weights come from DDPM.",
    ),
    (
        "a",
        "Logit-normal times are better than uniform ones.",
        "SD3 (arXiv 2403.03206)",
        "flow, logit-normal times",
        "flow",
        "",
    ),
    (
        "b",
        "TREAD is more than stochastic depth.",
        "TREAD (arXiv 2501.04765); the reply says it is like it, a regulariser",
        "TREAD",
        "stochastic depth by batch",
        "Both leave out 0.36 of a step.",
    ),
    ("c", "Tokens that go around blocks in training help the end.", THREAD, "TREAD", PLAINLY, ""),
    ("c", "Blocks left out in training help the end.", REPLY, "stochastic depth by batch", PLAINLY, ""),
    ("c", "Branches dropped image by image help the end.", REPLY, "stochastic depth by image", PLAINLY, "Saves no FLOPs."),
    (
        "d",
        "A modulation for each block is better than one for all.",
        "DiT (arXiv 2212.09748)",
        "a modulation for each block",
        PLAINLY,
        "Starts as the same function.",
    ),
    ("d", "Narrow modulations are better than wide ones.", THREAD, "one modulation of rank 16", PLAINLY, "Fitted."),
    ("f", "There is a gain from SwiGLU alone.", LIGHTNING, "SwiGLU", PLAINLY, "Starts from the MLP's neurons."),
    ("f", "There is a gain from RMSNorm alone.", LIGHTNING, "RMSNorm", PLAINLY, ""),
    ("f", "There is a gain from QK norm alone.", LIGHTNING, "QK norm", PLAINLY, ""),
    ("g", "SRA learns faster.", "SRA (arXiv 2505.02831)", "SRA", PLAINLY, ""),
    ("g", "Dispersive loss learns faster.", "dispersive loss (arXiv 2506.09027)", "dispersive loss", PLAINLY, ""),
)
"""As in configs/debate.py."""


def get_config(argument: str = "abcdfg,80") -> dict[str, Any]:
    """Some questions at so many steps of the unedited model, more than its rate takes to rise."""
    questions, steps, debate = debated(argument, ENTRANTS, CLAIMS, least=6)
    stages, judging = scenes(0, steps, records={"log_every": 20}), scenes_judging(judged=180, shown=1)
    return {
        **debate,
        "workdir": f"runs/debate_scenes/{questions}_{steps}",
        "teacher": stages["teacher"],
        "training": {**stages["finetune"], "class_dropout": 0.1},
        "data": stages["data"],
        "seeds": (0, 1, 2),
        "judging": judging,
        "flows": "heun",
        "flow_steps": judging["sample"]["steps"] // 2,  # a step calls the model twice
    }
