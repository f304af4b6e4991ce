"""The scenes model taught who is left of whom: two heads of its text encoder look ahead and behind, relations lead.

    graftax train --config configs/scenes_relations.py
    graftax train --config configs/scenes_relations.py:10       ten times as long beside the model as it was
    graftax scenes runs/judged --model runs/scenes_relations/model --cfg-scale 4

The shipped model answers a caption and the same with "right of" for "left of" alike. Why, and what leads away from there:
`graftax/study/relations.py`. Five parts: relations of which the order of words tells nearly all, twice; all relations; then,
beside these, all other captions from the answers of the model as it was, the way of the text first, all weights at last.

Expect an hour on two cores. A first run of these parts, by a script, left position at 66 % (48 before), single objects at 82
(96) and all six categories at 65 (72), and was improving (`graftax/study/README.md`): two thousand steps of 32 images are
few. Nobody has run it for longer.
"""

from typing import Any

from common import SCENES

FIRST = {"learning_rate": 1e-3, "falls": False, "leading": 0.85, "times": (450, 750)}
TAUGHT = {"relations": 8, "others": 32, "weight": 0.05, "grad_clip": 0.5, "ema_decay": 0.99, "taught": True}


def get_config(times: str = "1") -> dict[str, Any]:
    """Settings of the five parts, the last two so many times as long."""
    if not times.isdecimal() or int(times) < 1:
        raise ValueError(f"got {times!r}, expected how many times as long, 1 or more")
    steps = 1000 * int(times)
    phases = (
        {**FIRST, "steps": 200, "relations": 26, "others": 8},
        {**FIRST, "steps": 90},
        {"learning_rate": 1e-3, "steps": 300, "times": (450, 750), "ema_decay": 0.99},
        {**TAUGHT, "learning_rate": 5e-4, "steps": steps},
        {**TAUGHT, "learning_rate": 1.5e-4, "steps": steps, "text_alone": False},
    )
    data = {**SCENES, "limit": 60_000, "latents": "scenes"}
    return {"task": "relations", "workdir": "runs/scenes_relations", "data": data, "phases": phases}
