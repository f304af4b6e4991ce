"""The demo: half of the attention of the shipped DiT becomes Hyena-X, and then all of it.

    graftax demo                                      everything, with a report in runs/demo/report.html

Expect under 4 minutes on two quiet CPU cores, the teacher's class accuracy (93 %) within a point and 1.3 x its Fréchet
distance after both stages.
"""

from common import demo, demo_judging
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Settings of the demo."""
    return ConfigDict(
        {
            **demo(stage_1=150, stage_2=80),
            "kind": "demo",
            "workdir": "runs/demo",
            "graft": {"edits": ("blocks[50%].mixer=hyena_x(kernel=4)",), "seed": 0},
            "others": ({"edits": ("blocks[*].mixer=hyena_x(kernel=4)",), "seed": 0},),
            "judging": demo_judging(judged=240),
        }
    )
