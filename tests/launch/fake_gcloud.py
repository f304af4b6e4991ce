#!/usr/bin/env python3
"""Stands in for gcloud: TPUs are folders under $FAKE, workers run their commands on this machine.

$FAKE/script holds the states that `describe` gives one after the other ("ACTIVE" from then on); "ABSENT" and what comes
after a delete are answered as gcloud does. Calls are appended to $FAKE/calls.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

FAKE = Path(os.environ["FAKE"])
WORKERS = 2


def describe() -> int:
    script = FAKE / "script"
    first, *rest = script.read_text().split() or ["ACTIVE"]
    script.write_text(" ".join(rest))
    if not (FAKE / "exists").exists() or first == "ABSENT":
        print("ERROR: (gcloud.compute.tpus.queued-resources.describe) NOT_FOUND: no such request", file=sys.stderr)
        return 1
    print(first)
    return 0


def on_workers(action) -> int:
    codes = []
    for worker in range(WORKERS):
        home = FAKE / f"worker{worker}"
        home.mkdir(exist_ok=True)
        codes.append(action(home))
    return max(codes)


def ssh(command: str) -> int:
    if "launch/setup.sh" in command:  # would install for minutes: the unpacked source is what it left behind
        return on_workers(lambda home: (home / "graftax").mkdir(exist_ok=True) or 0)
    return on_workers(
        lambda home: subprocess.run(["bash", "-c", command], cwd=home, env=os.environ | {"HOME": str(home)}).returncode
    )


def main(argv: list[str]) -> int:
    with (FAKE / "calls").open("a") as calls:
        calls.write(" ".join(argv[2:4]) + "\n")
    if argv[:3] == ["storage", "buckets", "describe"]:
        return 0 if (FAKE / "bucket").exists() else 1
    flags = dict(arg.removeprefix("--").split("=", 1) for arg in argv if arg.startswith("--") and "=" in arg)
    match argv[2:4]:
        case ["queued-resources", "describe"]:
            return describe()
        case ["queued-resources", "create"]:
            (FAKE / "exists").touch()
        case ["queued-resources", "delete"]:
            (FAKE / "exists").unlink()
        case ["tpu-vm", "scp"]:
            source, target = argv[4], argv[5].split(":", 1)[1]
            return on_workers(lambda home: shutil.copy(source, home / target) and 0)
        case ["tpu-vm", "ssh"]:
            return ssh(flags["command"])
        case other:
            print(f"fake gcloud: unknown call {other}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
