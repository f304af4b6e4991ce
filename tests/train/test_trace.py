import gzip
import json
from pathlib import Path

import pytest
from linear_job import Stream, linear_job

from graftax.errors import BadInput
from graftax.train import LoopConfig, fit


def traced(folder: Path) -> list[int]:
    """The steps that a trace shows."""
    (file,) = folder.rglob("*.trace.json.gz")
    events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    return sorted({int(event["args"]["step_num"]) for event in events if "step_num" in event.get("args", {})})


def test_the_chosen_steps_are_traced(tmp_path: Path) -> None:
    fit(linear_job(), Stream(), LoopConfig(steps=8, profile=(3, 5)), tmp_path, show=False)
    assert traced(tmp_path / "profile")[:3] == [3, 4, 5]


@pytest.mark.slow
def test_a_trace_that_an_error_cuts_short_is_written(tmp_path: Path) -> None:
    def crash(position: int) -> None:
        if position == 5:
            raise RuntimeError("crash")

    with pytest.raises(RuntimeError, match="crash"):
        fit(linear_job(), Stream(crash), LoopConfig(steps=8, profile=(3, 100)), tmp_path, show=False)
    assert traced(tmp_path / "profile")[0] == 3


def test_no_profile_no_trace(tmp_path: Path) -> None:
    fit(linear_job(), Stream(), LoopConfig(steps=2), tmp_path, show=False)
    assert not (tmp_path / "profile").exists()


@pytest.mark.parametrize("steps", [(0, 3), (5, 4)])
def test_impossible_steps_are_refused(steps: tuple[int, int]) -> None:
    with pytest.raises(BadInput, match=r"LoopConfig\.profile"):
        LoopConfig(steps=9, profile=steps)
