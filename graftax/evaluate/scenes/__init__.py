"""The judge of scenes (`graftax.data.scenes`): reads pictures back into things, and gives GenEval's table by its rules.

captions = prompt_set(100)
print(score(images, captions).table())
"""

from graftax.evaluate.scenes.folder import score_folder
from graftax.evaluate.scenes.reading import JUDGE, Reading, read
from graftax.evaluate.scenes.scoring import SceneScores, as_prompt, prompt_set, score

__all__ = ["JUDGE", "Reading", "SceneScores", "as_prompt", "prompt_set", "read", "score", "score_folder"]
