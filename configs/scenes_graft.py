"""The demo of scenes: half of the self-attention of a small PixArt becomes Hyena-X, and all of it; then hyena_2d.

    graftax demo --what scenes          everything, with a report in runs/scenes_demo/report.html (configs/scenes_graft.py)

Every graft goes through stage 1 and stage 2, the first one also through a stage 2 of adapters (LoRA) alone. The commands
`graftax graft`, `distill` and `finetune` take the first graft of this file.

Expect five minutes on two cores of an Intel Xeon with AVX-512 (476 s of processor time, a third of it compiling), and of the
teacher's 72 % some 28 with half of it grafted by hyena_x, 36 by hyena_2d, 3 with all: so few steps heal little.
"""

from typing import Any

from common import adapters, scenes, scenes_judging

MIXERS = ("hyena_x(kernel=4)", "hyena_2d(kernel=3)")
SHARES = ("50%", "*")


def get_config() -> dict[str, Any]:
    """Settings of the demo; a plain dict, since a ConfigDict knows no lists of them."""
    first, *others = ({"edits": (f"blocks[{share}].mixer={mixer}",)} for mixer in MIXERS for share in SHARES)
    stages = scenes(stage_1=60, stage_2=24, batch=16)
    return {
        **stages,
        "kind": "demo",
        "workdir": "runs/scenes_demo",
        "graft": first,
        "others": tuple(others),
        "adaptation": {**adapters(stages["finetune"]), "grafts": 1},
        "judging": scenes_judging(judged=36, shown=3),
    }
