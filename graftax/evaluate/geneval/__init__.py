"""GenEval (Ghosh et al., arXiv 2310.11513): does a text-to-image model draw the objects, counts, colours and places it is
told to? Prompts are the official file that users bring; pictures are drawn into the official folder; our own scorer judges
them by what any detector saw.

    prompts = read_prompts("evaluation_metadata.jsonl")
    draw = bound(model, encoder, decode, protocol)
    draw_folder(prompts, draw, folder, drawn_by(name, model, protocol, prompts, "evaluation_metadata.jsonl"))
    scores = score(read_folder(folder), read_detections("detections.json"))
"""

from graftax.evaluate.geneval.detections import Detection, Detections, read_detections
from graftax.evaluate.geneval.drawing import bound, draw_folder, drawn_by
from graftax.evaluate.geneval.folder import read_folder
from graftax.evaluate.geneval.prompts import Prompt, Wanted, read_prompts
from graftax.evaluate.geneval.rules import faults, kept, relations
from graftax.evaluate.geneval.scoring import Scores, Verdict, score

__all__ = [
    "Detection", "Detections", "Prompt", "Scores", "Verdict", "Wanted", "bound", "draw_folder", "drawn_by", "faults", "kept",
    "read_detections", "read_folder", "read_prompts", "relations", "score",
]  # fmt: skip
