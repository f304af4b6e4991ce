"""How far a reader walks from the verb to what a step of stage 1 computes: the files that the call goes through."""

import inspect
from pathlib import Path

import pytest

import graftax
from graftax.cli import main
from graftax.distill import losses
from graftax.ops import hyena

ROOT = Path(graftax.__file__).parent


class Reached(Exception):
    """Stops the run where it has been followed to."""


def files_on_the_way_to(function, argv, monkeypatch):
    """Files of the package that are on the call stack when `function` (module, name) is called for the first time."""

    def stop(*args, **kwargs):
        raise Reached

    with monkeypatch.context() as patch:
        patch.setattr(*function, stop)
        with pytest.raises(Reached) as caught:
            main.main([str(arg) for arg in argv])
    holder, name = function
    paths = [Path(inspect.getfile(inspect.unwrap(getattr(holder, name)))), *(Path(entry.path) for entry in caught.traceback)]
    return {str(path.relative_to(ROOT)) for path in paths if path.is_relative_to(ROOT)}


def test_stage_1_from_the_verb_to_a_scion_and_its_loss(run, recipe, monkeypatch):
    assert run("graft", "--config", recipe)[0] == 0
    argv = ("distill", "--config", recipe, "--config.distill.eval_every=0")
    ends = [(hyena.Hyena, "__call__"), (losses, "l1")]
    files = set().union(*(files_on_the_way_to(end, argv, monkeypatch) for end in ends))
    assert {"cli/distill.py", "distill/stage1.py", "distill/update.py", "train/loop.py", "ops/hyena.py"} <= files
    assert len(files) <= 14, sorted(files)
