import io

import pytest

from graftax.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr("graftax.progress.time.perf_counter", lambda: now[0])
    return now


def test_plain_lines_come_at_intervals_with_rate_time_left_and_metrics(clock: list[float]) -> None:
    file = io.StringIO()
    with Progress(100, "train", initial=20, interval=10, file=file) as progress:
        for _ in range(8):
            clock[0] += 4
            progress.advance(5, metrics={"loss": 0.25})
        assert file.getvalue().splitlines() == [
            "train 35/100 (35%), 1.25 step/s, 00:52 left, loss 0.25",
            "train 50/100 (50%), 1.25 step/s, 00:40 left, loss 0.25",
        ]
        clock[0] += 2
        progress.advance(40)
    assert file.getvalue().splitlines()[2:] == ["train 100/100 (100%), 2.35 step/s, took 00:34, loss 0.25"]


def test_a_terminal_gets_one_bar_with_the_metrics() -> None:
    file = Terminal()
    with Progress(3, "sample", unit="image", file=file) as progress:
        for i in range(3):
            progress.advance(metrics={"loss": i})
    text = file.getvalue()
    assert "sample" in text
    assert "3/3" in text
    assert "loss 2" in text
    assert text.count("\n") == 1


def test_silence(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(3, "sample", show=False, interval=0) as progress:
        progress.advance(3)
    assert progress.done == 3
    assert capsys.readouterr() == ("", "")
