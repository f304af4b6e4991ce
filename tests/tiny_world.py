"""A world small enough for seconds: 8x8 images of three classes, a DiT of four blocks, one experiment's config."""

import jax
import numpy as np
import pytest

from graftax.checkpoint import save_model
from graftax.cli import main
from graftax.nets import classifier, small
from graftax.nets.classifier import ClassifierSpec
from graftax.testing import random_params, tiny_spec

RECIPE = '''
"""A tiny experiment."""
from ml_collections import ConfigDict


def get_config():
    stage = {{"learning_rate": 1e-3, "warmup_steps": 0}}
    return ConfigDict({{
        "workdir": {workdir!r},
        "teacher": {teacher!r},
        "data": {{"source": {data!r}, "size": 8, "held_out": 0.25}},
        "graft": {{"edits": ("blocks[50%].mixer=hyena_x(kernel=4)",)}},
        "distill": {{"settings": {{"steps": 6, "learning_rate": 1e-3}}, "batch_size": 8, "eval_every": 3, "save_every": 2}},
        "finetune": {{"loop": {{"steps": 6, "eval_every": 3, "save_every": 2}}, "batch_size": 8, "optimiser": stage}},
    }})
'''


@pytest.fixture
def run(capsys):
    """A function from a command's arguments to (exit code, stdout, stderr), run in this process."""

    def run(*argv):
        try:
            code = main.main([str(arg) for arg in argv])
        except SystemExit as stop:  # argparse
            code = stop.code
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def refused(run):
    """A function from a command that must be refused to its error line."""

    def refused(*argv):
        code, out, err = run(*argv)
        assert code == 2, (out, err)
        assert err.startswith("graftax: error: "), err
        assert err.count("\n") == 1, err
        return err

    return refused


@pytest.fixture
def spec(request):
    """Of four blocks, or as many as DEPTH of the test's module says: two compile in half the time."""
    return tiny_spec(depth=getattr(request.module, "DEPTH", 4), in_channels=1, num_classes=3, hidden_size=32)


@pytest.fixture
def teacher(tmp_path, spec):
    """A model folder."""
    folder = tmp_path / "teacher"
    save_model(folder, spec, random_params(spec, jax.random.key(0)), {"source": "test"})
    return folder


@pytest.fixture
def judge(tmp_path):
    """A classifier of eight features that has learnt nothing."""
    spec = ClassifierSpec(image_size=8, num_classes=3, widths=(16, 16, 16), features=8)
    params = jax.jit(classifier.init, static_argnums=0)(spec, jax.random.key(0))
    small.save("classifier", tmp_path / "judge", spec.to_json(), params, {})
    return tmp_path / "judge"


@pytest.fixture
def data(tmp_path):
    """An image set: class c is bright in its own third."""
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    images = rng.integers(0, 80, (60, 8, 8), np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[:, 3 * label : 3 * label + 2] += 150
    path = tmp_path / "images.npz"
    np.savez(path, images=images, labels=labels)
    return path


@pytest.fixture
def recipe(tmp_path, teacher, data):
    """A config file for graft, distill and finetune."""
    path = tmp_path / "recipe.py"
    path.write_text(RECIPE.format(workdir=str(tmp_path / "run"), teacher=str(teacher), data=str(data)))
    return path
