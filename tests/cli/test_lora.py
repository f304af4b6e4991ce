"""Adapters and diffusers folders on the command line."""

import numpy as np
import pytest

from graftax.checkpoint import open_checkpoint
from graftax.surgery.check import leaves_by_path
from graftax.testing import assert_trees_close

DEPTH = 2


@pytest.mark.slow
def test_adapters_are_added_trained_alone_and_merged(run, refused, tmp_path, recipe, teacher):
    """A recipe that grafts, distils, and fine-tunes only the adapters."""
    folder = tmp_path / "run"
    edits = "blocks[50%].mixer=hyena_x(kernel=4)", "lora(blocks[*].mixer, rank=4)", "lora(final, rank=2, alpha=8)"
    lora = f"--config.graft.edits={edits}"
    for verb in ("graft", "distill"):
        assert run(verb, "--config", recipe, lora)[0] == 0
    assert run("finetune", "--config", recipe, lora, "--config.finetune.frozen=('(?!lora/).*',)")[0] == 0
    (spec, before, _), (after_spec, after, _) = open_checkpoint(folder / "distilled"), open_checkpoint(folder / "finetuned")
    assert spec == after_spec
    assert {(adapter.rank, adapter.alpha) for adapter in spec.adapters} == {(4, 16.0), (2, 8.0)}
    old, new = leaves_by_path(before), leaves_by_path(after)
    changed = {path for path in old if not np.array_equal(old[path], new[path])}
    assert changed
    assert all(path.startswith("lora/") for path in changed)
    assert not any(np.any(leaf) for path, leaf in old.items() if path.startswith("lora/") and path.endswith("/b"))

    assert "adapters    6, rank 2, 4" in run("inspect", folder / "finetuned")[1]
    assert "merge_lora() first" in refused("convert", folder / "finetuned", tmp_path / "x.pt")
    assert run("convert", folder / "finetuned", tmp_path / "x.pt", "--merge-lora")[0] == 0
    merged_spec, merged, _ = open_checkpoint(tmp_path / "x.pt", num_heads=4)
    assert merged_spec == spec.replace(adapters=())
    assert not np.array_equal(merged["final"]["linear"]["kernel"], new["final/linear/kernel"])
    assert "no adapters" in refused("convert", teacher, tmp_path / "y.pt", "--merge-lora")


def test_adapters_on_a_model_without_a_recipe(run, tmp_path, teacher):
    out = tmp_path / "adapted"
    edits = ("--edit", "lora('blocks/.*/adaln', rank=4)", "--edit=lora(final/linear, rank=2)")
    code, text, _ = run("graft", teacher, *edits, "--out", out)
    assert code == 0
    assert "adapters            0 -> 3" in text
    assert open_checkpoint(out)[2]["edits"][-1].startswith("compose(lora('blocks/.*/adaln', rank=4, alpha=16.0), lora(")


def test_a_lora_file_is_put_on_and_written_again(run, refused, tmp_path, teacher):
    """Grafted, written, put on the original again, replayed: one model."""
    grafted, file, out = tmp_path / "grafted", tmp_path / "x.safetensors", tmp_path / "again"
    assert run("graft", teacher, "--edit", "lora(blocks[*].mixer, rank=4)", "--out", grafted)[0] == 0
    assert run("convert", grafted, file, "--adapters")[0] == 0
    assert run("graft", teacher, "--edit", f"lora_file('{file}', strength=0.6)", "--out", out)[0] == 0
    spec, _, meta = open_checkpoint(out)
    assert meta["edits"] == [f"lora_file('{file}', strength=0.6)"]
    assert {adapter.rank for adapter in spec.adapters} == {4}
    assert [adapter.path for adapter in spec.adapters] == [one.path for one in open_checkpoint(grafted)[0].adapters]
    assert run("replay", out, teacher, "--out", tmp_path / "replayed")[0] == 0
    assert open_checkpoint(tmp_path / "replayed")[0] == spec
    assert "no such file" in refused("graft", teacher, "--edit", "lora_file('none.safetensors')", "--out", tmp_path / "n")
    assert "no adapters" in refused("convert", teacher, tmp_path / "y.safetensors", "--adapters")
    assert "--adapters writes name.safetensors" in refused("convert", grafted, tmp_path / "y", "--adapters")


@pytest.mark.parametrize(
    "text",
    ["lora()", "lora(blocks[*].mixer, rank=x)", "lora(blocks[*].mixer, 4)", "lora(, rank=4)", "lora(nothing)",
     "lora(final, alpha=0)"],
)  # fmt: skip
def test_malformed_adapters_are_refused(refused, tmp_path, teacher, text):
    assert "lora" in refused("graft", teacher, "--edit", text, "--out", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_diffusers_folders(run, refused, tmp_path, teacher):
    out = tmp_path / "theirs"
    assert "the model has compat 'dit'" in refused("convert", teacher, out, "--diffusers")
    assert "expected a name without .pt" in refused("convert", teacher, tmp_path / "x.pt", "--diffusers")
    assert run("convert", teacher, out, "--diffusers", "--compat=diffusers")[0] == 0
    names = ["README.md", "config.json", "diffusion_pytorch_model.safetensors"]
    assert sorted(path.name for path in out.iterdir()) == names
    assert run("convert", out, tmp_path / "back")[0] == 0
    before, after = open_checkpoint(teacher), open_checkpoint(tmp_path / "back")
    assert after[0] == before[0]
    assert_trees_close({**after[1], "pos_embed": 0}, {**before[1], "pos_embed": 0}, rtol=0, atol=0)
    assert "numerics    those of diffusers" in run("inspect", out, "--compat=diffusers")[1]
