"""launch/tpu.sh: what it would call (golden transcripts of dry runs), and what it does, against a fake gcloud."""

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "launch/tpu.sh"
GOLDEN = Path(__file__).parent / "dry_runs.txt"
FAKE_GCLOUD = Path(__file__).parent / "fake_gcloud.py"
TPU = {"NAME": "pod", "PROJECT": "lab", "ZONE": "us-central1-a", "TYPE": "v5litepod-16"}
BUCKET = {"WORKDIR": "gs://bucket/run"}
COMMAND = ("--", "graftax", "finetune", "--config", "configs/a b.py")
DRY_RUNS = [
    ("create", "--on-demand"), ("create", "--reserved", "--max-hours", "6"), ("wait",), ("setup",), ("run", *COMMAND),
    ("logs", "--worker", "3", "--follow"), ("status",), ("ssh", "--worker", "1"), ("babysit", *COMMAND), ("stop",),
    ("delete",),
]  # fmt: skip


def call(*argv, path="", env=(), **options):
    env = {"PATH": f"{path}:{os.environ['PATH']}", "HOME": os.environ["HOME"], **TPU, **dict(env)}
    return subprocess.run(["bash", SCRIPT, *argv], capture_output=True, text=True, env=env, timeout=120, **options)


def transcript() -> str:
    parts = []
    for argv in DRY_RUNS:
        done = call(argv[0], "--dry-run", *argv[1:], env=BUCKET)
        assert done.returncode == 0, done.stderr
        text = re.sub(r"/\S*/tmp\.\w+/", "TEMP/", done.stderr).replace(str(ROOT), "ROOT")
        parts.append(f"$ tpu.sh {' '.join(argv)}\n{text}")
    return "\n".join(parts)


def test_dry_runs_print_every_call_and_make_none():
    # After a deliberate change: python -m pytest ... shows the new text; write it with
    #   PYTHONPATH=tests/launch python -c 'import test_tpu as t; t.GOLDEN.write_text(t.transcript())'
    assert transcript() == GOLDEN.read_text()


def test_the_script_is_shellcheck_clean():
    scripts = sorted(ROOT.glob("launch/*.sh"))
    done = subprocess.run(
        [shutil.which("shellcheck") or "shellcheck", "-x", *scripts], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("argv", "env", "words"),
    [
        (("fly",), {}, "verb 'fly': expected create"),
        (("create", "--cheap"), {}, "option --cheap: not known"),
        (("create", "--max-hours", "soon"), {}, "--max-hours soon: expected a number"),
        (("create", "--dry-run"), {"TYPE": "tpu7x-8"}, "only to be had through GKE"),
        (("create", "--dry-run"), {"TYPE": "h100-8"}, "TYPE h100-8: expected v2-"),
        (("create", "--dry-run"), {"TYPE": ""}, "TYPE: not set"),
        (("status",), {"ZONE": ""}, "ZONE: not set"),
        (("run", "--dry-run"), {}, "run: no command"),
        (("run", "--dry-run", "--", "x"), {"RUN_ID": "a b"}, "RUN_ID a b"),
        (("run", "--dry-run", "--", "x"), {"WORKDIR": "/mnt/disk"}, "WORKDIR /mnt/disk: expected gs://BUCKET/FOLDER"),
        (("run", "--dry-run", "--", "x"), {"WORKDIR": "gs://bucket"}, "WORKDIR gs://bucket: expected gs://BUCKET/FOLDER"),
        (("setup", "--dry-run"), {"JAX": "0.9; reboot"}, "JAX 0.9; reboot: expected a version"),
        (("run", "--dry-run", "--", "x"), {"PASS_ENV": "NOPE"}, "NOPE: not set"),
    ],
)  # fmt: skip
def test_bad_usage_is_one_line_and_exit_2(argv, env, words):
    done = call(*argv, env=env)
    assert words in done.stderr
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("kind", "image", "chips", "workers"),
    [
        ("v5litepod-8", "v2-alpha-tpuv5-lite", 8, 1), ("v5litepod-16", "v2-alpha-tpuv5-lite", 16, 4),
        ("v6e-1", "v2-alpha-tpuv6e", 1, 1), ("v6e-256", "v2-alpha-tpuv6e", 256, 64), ("v5p-32", "v2-alpha-tpuv5", 16, 4),
        ("v4-8", "tpu-ubuntu2204-base", 4, 1), ("v3-8", "tpu-ubuntu2204-base", 4, 1),
        ("v2-32", "tpu-ubuntu2204-base", 16, 4),
    ],
)  # fmt: skip
def test_cost_is_told_before_anything_is_asked_for(kind, image, chips, workers):
    done = call("create", "--dry-run", "--max-hours", "10", env={"TYPE": kind})
    first = done.stderr.splitlines()[0]
    assert f"{kind}: {chips} chips on {workers} workers, spot, for at most 10 hours = {10 * chips} chip-hours" in first
    assert f"--runtime-version={image}" in done.stderr
    assert ("training needs a folder that they share" in done.stderr) == (workers > 1)


@pytest.fixture
def cloud(tmp_path):
    """`run(argv, states=..., env=...)` against the fake gcloud; `.calls()` and `.folder`."""
    (tmp_path / "bin").mkdir()
    shutil.copy(FAKE_GCLOUD, tmp_path / "bin/gcloud")
    (tmp_path / "bin/gcloud").chmod(0o755)

    class Cloud:
        folder = tmp_path

        def run(self, *argv, states="", **env):
            (tmp_path / "script").write_text(states)
            return call(
                *argv, path=tmp_path / "bin", env={"FAKE": str(tmp_path), "POLL": "1", **env}, stdin=subprocess.DEVNULL
            )

        def calls(self):
            return (tmp_path / "calls").read_text().splitlines()

    return Cloud()


def test_create_is_idempotent_and_replaces_dead_requests(cloud):
    assert cloud.run("create").returncode == 0
    assert cloud.run("create", states="PROVISIONING").returncode == 0
    assert cloud.calls() == [f"queued-resources {verb}" for verb in ("describe", "create", "describe")]
    assert cloud.run("create", states="SUSPENDED").returncode == 0
    assert cloud.calls()[-3:] == [f"queued-resources {verb}" for verb in ("describe", "delete", "create")]


def test_a_bucket_that_is_not_there_is_found_before_the_tpu_is_paid_for(cloud):
    refused = cloud.run("create", WORKDIR="gs://bucket/run")
    assert refused.returncode != 0
    assert "queued-resources create" not in cloud.calls()
    (cloud.folder / "bucket").touch()
    assert cloud.run("create", WORKDIR="gs://bucket/run").returncode == 0
    assert cloud.calls()[-1] == "queued-resources create"


def test_the_command_gets_the_work_folder(cloud):
    cloud.run("create")
    cloud.run("setup")
    assert cloud.run("run", "--", "echo", "train", WORKDIR="gs://bucket/run").returncode == 0
    log = cloud.folder / "worker1/.graftax/pod/log"
    wait_for(lambda: log.read_text() == "train --config.workdir=gs://bucket/run\n")


def test_wait_follows_the_request_to_its_end(cloud):
    cloud.run("create")
    assert cloud.run("wait", states="WAITING_FOR_RESOURCES PROVISIONING ACTIVE").returncode == 0
    failed = cloud.run("wait", states="WAITING_FOR_RESOURCES FAILED")
    assert (failed.returncode, "did not become active" in failed.stderr) == (4, True)


def test_delete_asks_first(cloud):
    cloud.run("create")
    refused = cloud.run("delete")
    assert (refused.returncode, "not deleted" in refused.stderr) == (2, True)
    assert cloud.run("delete", "--yes").returncode == 0
    assert not (cloud.folder / "exists").exists()


def test_run_survives_its_connection_hides_secrets_and_stops_softly(cloud):
    cloud.run("create")
    cloud.run("setup")
    program = "trap 'echo saved; exit 42' TERM; echo key=$KEY; while sleep 0.1; do :; done"
    done = cloud.run("run", "--", "bash", "-c", program, KEY="sesame", PASS_ENV="KEY")
    assert done.returncode == 0, done.stderr
    assert "sesame" not in done.stderr
    home = cloud.folder / "worker1/.graftax/pod"
    assert (home / "env").stat().st_mode & 0o777 == 0o600
    wait_for(lambda: "key=sesame" in (home / "log").read_text())
    assert cloud.run("status", states="ACTIVE").stdout.split() == ["pod:", "ACTIVE", "running", "running"]
    again = cloud.run("run", "--", "true")
    assert "running already" in again.stderr
    assert again.returncode != 0
    assert cloud.run("stop").returncode == 0
    wait_for(lambda: (home / "exit").exists() and (home / "exit").read_text() == "42\n")
    assert "saved" in cloud.run("logs").stdout


@pytest.mark.slow
@pytest.mark.parametrize("code", [0, *(pytest.param(code, marks=pytest.mark.slow) for code in (1, 2)), 3])
def test_babysit_ends_with_the_commands_own_code(cloud, code):
    done = cloud.run("babysit", "--delete-on-exit", "--", "bash", "-c", f"exit {code}")
    assert done.returncode == code, done.stderr
    assert cloud.calls()[-1] == "queued-resources delete"


@pytest.mark.slow
def test_babysit_goes_on_after_preemption_in_the_same_folder(cloud):
    # 42 once, then killed with its TPU, then done: three starts, of which the second finds what the first has saved.
    program = "n=$(cat ~/n || echo 0); echo $((n + 1)) >~/n; case $n in 0) exit 42;; 1) exec sleep 60;; *) exit 0;; esac"
    states = "ABSENT ACTIVE ACTIVE ACTIVE ACTIVE ACTIVE SUSPENDING SUSPENDED"
    done = cloud.run("babysit", "--", "bash", "-c", program, states=states)
    assert done.returncode == 0, done.stderr
    assert (cloud.folder / "worker0/n").read_text() == "3\n"
    calls = cloud.calls()
    assert calls.count("queued-resources create") == 2
    assert calls.count("queued-resources delete") == 1


def test_babysit_gives_up_and_gives_back_when_time_is_over(cloud):
    cloud.run("create")
    done = cloud.run("babysit", "--max-hours", "0", "--", "sleep", "60")
    assert (done.returncode, "0 hours are over" in done.stderr) == (4, True)
    assert not (cloud.folder / "exists").exists()


def wait_for(happened, seconds=20):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if happened():
                return
        except FileNotFoundError:
            pass
        time.sleep(0.1)
    raise AssertionError("did not happen")
