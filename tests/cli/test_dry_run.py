"""`--dry-run` of the verbs that train: it says what would be, refuses what training would refuse, and writes nothing."""

import pytest

TRAIN = """
def get_config():
    return {{
        "task": {task!r}, "workdir": {workdir!r}, "data": {{"source": {data!r}, "size": {size}}}, "model": {{{sizes}}},
        "training": {{"loop": {{"steps": 4}}, "batch_size": 8}},
    }}
"""
SIZES = {
    "dit": "'input_size': 8, 'in_channels': 1, 'hidden_size': 32, 'depth': 2, 'num_heads': 2, 'num_classes': 3",
    "classifier": "'widths': (8, 8, 8), 'features': 8, 'image_size': 8, 'num_classes': 3",
}


def files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_both_stages(run, recipe, tmp_path):
    assert run("graft", "--config", recipe)[0] == 0
    before = files(tmp_path)
    code, out, err = run("distill", "--config", recipe, "--dry-run")
    assert code == 0, err
    for line in ("stage 1       6 steps", "45 images, 15 held out, seen as 8x8x1, 3 classes", "image float32(8, 8, 8, 1)"):
        assert line in out
    assert out.endswith("run/distill: begins\n")
    kept = "--config.finetune.remat=none"  # what a CPU keeps unless told so is not estimated
    code, out, err = run("finetune", "--config", recipe, kept, "--student", tmp_path / "run" / "grafted", "--dry-run")
    assert code == 0, err
    for line in ("stage 2       6 steps", "data 1, fsdp 1, tensor 1", "loss float32()", "activations", " new    |"):
        assert line in out
    assert files(tmp_path) == before


@pytest.mark.slow
def test_a_run_that_would_go_on_says_so(run, recipe, tmp_path):
    assert run("graft", "--config", recipe)[0] == 0
    assert run("distill", "--config", recipe)[0] == 0
    assert run("distill", "--config", recipe, "--dry-run")[1].endswith("run/distill: continues after step 6\n")


@pytest.mark.parametrize("task", SIZES)
def test_training_from_scratch(run, tmp_path, data, task):
    config = tmp_path / "c.py"
    config.write_text(TRAIN.format(task=task, workdir=str(tmp_path / "w"), data=str(data), size=8, sizes=SIZES[task]))
    before = files(tmp_path)
    code, out, err = run("train", "--config", config, "--dry-run")
    assert code == 0, err
    assert "4 steps" in out
    assert "label int32(8,)" in out
    assert "loss float32()" in out
    assert files(tmp_path) == before
