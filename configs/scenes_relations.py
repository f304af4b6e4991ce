"""The scenes model taught who is left of whom: two heads of its text encoder look ahead and behind, relations lead.

    graftax train --config configs/scenes_relations.py
    graftax scenes runs/judged --model runs/scenes_relations/model --cfg-scale 4

`configs/scenes.py` leaves a model that answers a caption and the same with "right of" for "left of" alike. Why, and what
leads away from there: `graftax/study/relations.py`. Five parts: relations of which the order of words tells nearly all,
twice; all relations; then, beside these, all other captions from the answers of the model as it was, the way of the text
first, all weights at last. The shipped model was made so.
"""

from typing import Any

from common import SCENES

FIRST = {"learning_rate": 1e-3, "falls": False, "leading": 0.85, "times": (450, 750)}
TAUGHT = {"relations": 8, "others": 32, "weight": 0.05, "grad_clip": 0.5, "ema_decay": 0.99, "taught": True}


def get_config() -> dict[str, Any]:
    """Settings of the five parts."""
    phases = (
        {**FIRST, "steps": 200, "relations": 26, "others": 8},
        {**FIRST, "steps": 90},
        {"learning_rate": 1e-3, "steps": 300, "times": (450, 750), "ema_decay": 0.99},
        {**TAUGHT, "learning_rate": 5e-4, "steps": 1000},
        {**TAUGHT, "learning_rate": 1.5e-4, "steps": 1000, "text_alone": False},
    )
    data = {**SCENES, "limit": 60_000, "latents": "scenes"}
    return {"task": "relations", "workdir": "runs/scenes_relations", "data": data, "phases": phases}
