"""Every kind of bad input ends with one line on stderr and exit code 2; other ends have their own codes."""

import re
import subprocess
import sys
import zipfile

import pytest

from graftax import api
from graftax.cli import demo, main
from graftax.cli.parser import VERBS
from graftax.errors import NonFinite, Preempted


def test_help_lists_verbs_and_exit_codes(run):
    code, out, _ = run("--help")
    assert code == 0
    assert all(re.search(rf"^    {verb}\s", out, re.M) for verb in VERBS)
    assert re.findall(r"^  (\d+) +\S", out, re.M) == ["0", "1", "2", "3", "42", "130"]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(run, verb):
    code, out, _ = run(verb, "--help")
    assert code == 0
    assert out.startswith(f"usage: graftax {verb}")


@pytest.mark.parametrize(
    "argv",
    [(), ("transmogrify",), ("convert", "one"), ("train",), ("inspect", "x", "--no-such"), ("sample", "x", "--steps=two")],
)
def test_wrong_usage(run, argv):
    code, _, err = run(*argv)
    assert code == 2
    assert "usage: graftax" in err


QUICK = (
    ["--help"], ["--version"], ["zoo"], ["zoo", "DiT-XL-2-256x256", "--json"], ["zoo", "nothing"], ["inspekt", "demo"],
    ["sample", "demo", "--lables", "1"], ["convert", "one"],
)  # fmt: skip


@pytest.mark.parametrize(
    ("argv", "unneeded"),
    [
        *((argv, ("jax", "flax", "numpy")) for argv in QUICK),
        (["inspect", "demo"], ("orbax", "grain", "matplotlib", "tensorflow", "torch", "ml_collections")),
    ],
)
def test_quick_answers_load_nothing_heavy(argv, unneeded):
    code = f"""
import sys
from graftax.cli.main import main
try:
    main({argv})
except SystemExit:
    pass
print({set(unneeded)} & set(sys.modules))
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "set()"


@pytest.mark.parametrize("argv", [("inspect", "nowhere.pt"), ("convert", "nowhere.pt", "{tmp}/x"), ("evaluate", "nowhere")])
def test_missing_file(refused, tmp_path, argv):
    assert refused(*(text.format(tmp=tmp_path) for text in argv)).count("nowhere") == 1


def test_damaged_model(refused, tmp_path):
    path = tmp_path / "model.pt"
    path.write_bytes(b"PK\x03\x04 not really")
    assert str(path) in refused("inspect", path)


def test_hostile_model(refused, tmp_path):
    canary = tmp_path / "canary"
    path = tmp_path / "model.pt"
    pickled = b"cos\nsystem\n(X" + len(f"touch {canary}").to_bytes(4, "little") + f"touch {canary}".encode() + b"tR."
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", b"\x80\x02" + pickled)
        file.writestr("archive/version", b"3\n")
    out = tmp_path / "out"
    for argv in (("inspect", path), ("convert", path, out), ("graft", path, "--edit=blocks[0].mixer=swa", "--out", out)):
        assert "os" in refused(*argv)
    assert not canary.exists()
    assert not out.exists()


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("finetune.loop.stepz=3", "config.finetune.loop.stepz: unknown key"),
        ("nonsense.deep=1", "config.nonsense: unknown key"),
        ("finetune.loop.steps=many", "config.finetune.loop.steps: got 'many', expected an integer"),
        ("finetune.loop.steps=2.5", "expected an integer"),
        ("finetune.loop.steps=0", "LoopConfig.steps: got 0"),
        ("distill.settings.mixer_loss=l7", "DistillConfig.mixer_loss"),
        ("data.held_out=no", "config.data.held_out: got 'no', expected a number"),
        ("data", "override 'data': expected --config.key=value"),
        ("data=3", "config.data: got '3', expected keys"),
        ("data.source=nowhere.npz", "nowhere.npz"),
        ("finetune.compute_dtype=float8", "compute_dtype"),
        ("mesh.fsdp=3", "mesh"),
    ],
)
def test_bad_config(run, refused, recipe, override, expected):
    assert run("graft", "--config", recipe)[0] == 0
    assert expected in refused("distill", "--config", recipe, f"--config.{override}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import nonsense_module", "nonsense_module"),
        ("x = 1", "no get_config()"),
        ("def get_config(): return 3", "returned int"),
        ("def get_config(: pass", "SyntaxError"),
        ("def get_config(): return {'task': 'poem'}", "config.task: got 'poem'"),
        ("def get_config(): return {'task': 'dit'}", "missing"),
    ],
)
def test_broken_config_file(refused, tmp_path, text, expected):
    path = tmp_path / "config.py"
    path.write_text(text)
    assert expected in refused("train", "--config", path)


def test_config_for_a_verb_without_one(run):
    code, _, err = run("doctor", "--config.x=1")
    assert code == 2
    assert "takes no config" in err


@pytest.mark.parametrize(
    "edit",
    ["blocks[9].mixer=hyena_x", "blocks[1].nose=hyena_x", "blocks[1].mixer=mlp", "blocks[1].mixer=bagpipe",
     "blocks[1].mixer", "blocks[1].mixer=hyena_x(kernel=0)", "blocks[1].mixer=hyena_x(colour=3)",
     "blocks[1].mixer=hyena_x(kernel)", "blocks[60%].mixer=hyena_x", "=hyena_x"],
)  # fmt: skip
def test_impossible_edit_is_refused_before_weights_are_loaded(refused, tmp_path, teacher, monkeypatch, edit):
    monkeypatch.setattr(api, "place", None)  # what would put them on a device
    refused("graft", teacher, f"--edit={edit}", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (("sample", "{m}", "--out={t}/x.gif"), ".gif"),
        (("sample", "{m}", "--out={t}/images.npz/x.png"), "is a file"),
        (("sample", "{m}", "--out={t}/x.png", "--labels=7"), "0..2"),
        (("sample", "{m}", "--out={t}/x.png", "--labels=a"), "class numbers"),
        (("sample", "{m}", "--out={t}/x.png", "--steps=0"), "0"),
        (("sample", "{m}", "--out={t}/x.png", "--steps=5000"), "5000"),
        (("sample", "{m}", "--out={t}/x.png", "--cfg-scale=-1"), "-1"),
        (("sample", "{m}", "--out={t}/x.png", "--eta=3"), "eta"),
        (("sample", "{m}", "--out={t}/x.png", "--last=sigma_min"), "last 'sigma_min' with 'ddim'"),
        (("sample", "{m}", "--out={t}/x.png", "--per-class=0"), "per-class"),
        (("sample", "{m}", "--out={t}/x.png", "--latents=nowhere"), "nowhere"),
        (("sample", "{m}", "--out={t}/x.png", "--latents=demo"), "latents"),
        (("convert", "{m}", "{t}/teacher"), "exists already"),
        (("convert", "{m}", "{t}/x.pt", "--dtype=float16"), "float16"),
        (("convert", "{m}", "{t}/x.pt", "--num-heads=2"), "--num-heads=2"),
        (("graft", "{m}", "--edit=blocks[1].mixer=swa"), "--out"),
        (("graft", "{m}", "--out={t}/x"), "--edit"),
        (("bench", "nonsense"), "nonsense"),
        (("bench", "conv", "flavour=3"), "flavour"),
        (("bench", "conv", "rounds=x"), "rounds"),
    ],
)
def test_bad_arguments(refused, tmp_path, teacher, argv, expected):
    (tmp_path / "images.npz").write_text("a file")
    before = sorted(tmp_path.rglob("*"))
    assert expected in refused(*(text.format(m=teacher, t=tmp_path) for text in argv))
    assert sorted(tmp_path.rglob("*")) == before, "a refused command left something behind"


@pytest.mark.parametrize(
    ("error", "code"), [(NonFinite("loss is nan"), 3), (Preempted("saved"), 42), (KeyboardInterrupt(), 130)]
)
def test_exit_codes_of_other_ends(run, monkeypatch, error, code):
    def fail(args):
        raise error

    monkeypatch.setattr(demo, "run", fail)
    found, _, err = run("demo")
    assert found == code
    assert err.count("\n") == 1


def test_a_bug_shows_its_traceback(monkeypatch):
    monkeypatch.setattr(demo, "run", lambda args: [][1])
    with pytest.raises(IndexError):
        main.main(["demo"])


def test_on_a_slice_the_hosts_are_joined_before_the_verb_runs(run, monkeypatch):
    import jax

    joined = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda: joined.append(1))
    assert run("inspect", "demo")[0] == 0
    assert not joined
    monkeypatch.setenv(main.DISTRIBUTED, "1")
    assert run("inspect", "demo")[0] == 0
    assert joined


@pytest.mark.parametrize(
    "command",
    [
        ("cost", "demo", "--batch", "1", "--out"), ("encode", "fashion_mnist", "--vae", "demo", "--size", "32"),
        ("analyze", "demo", "--what", "locality", "--out"), ("evaluate", "demo", "--count", "70", "--out"),
        ("finetune", "--config", "configs/demo_graft.py", "--student", "demo", "--workdir"),
    ],
    ids=lambda command: command[0],
)  # fmt: skip
def test_an_output_below_a_file_is_refused_and_the_file_stays(refused, tmp_path, command):
    (tmp_path / "file").write_text("mine")
    assert str(tmp_path / "file") in refused(*command, tmp_path / "file" / "out")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    "command",
    [
        ("graft", "{m}", "--edit=blocks[1].mixer=swa", "--out"), ("convert", "{m}"), ("analyze", "{m}", "--out"),
        ("sample", "{m}", "--out"), ("evaluate", "demo", "--out"), ("distill", "--config={r}", "--workdir"),
        ("encode", "fashion_mnist", "--vae=demo", "--size=32"), ("graft", "--config={r}", "--workdir"),
    ],
    ids=lambda command: command[0],
)  # fmt: skip
def test_where_nothing_can_be_written_is_found_before_any_work(refused, teacher, recipe, tmp_path, monkeypatch, command):
    """As root, too: /proc takes no files from anybody, and no name has 300 letters."""
    monkeypatch.setattr(api, "place", None)  # what would put weights on a device
    suffix = ".png" if command[0] == "sample" else ""
    for out in (f"/proc/x{suffix}", f"{tmp_path}/{300 * 'x'}{suffix}"):
        assert out in refused(*(text.format(m=teacher, r=recipe) for text in command), out)
