import io

import pytest

from graftax.progress import Progress, say, silence


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
        clock[0] += 60  # the first piece compiles: it counts neither in the rate nor in what is left
        progress.advance(5, metrics={"loss": 0.25})
        for _ in range(7):
            clock[0] += 4
            progress.advance(5, metrics={"loss": 0.25})
        assert file.getvalue().splitlines() == [
            "train 25/100 (25%), the first after 01:00, loss 0.25",
            "train 40/100 (40%), 1.25 step/s, 00:48 left, loss 0.25",
            "train 55/100 (55%), 1.25 step/s, 00:36 left, loss 0.25",
        ]
        clock[0] += 2
        progress.advance(40)
    assert file.getvalue().splitlines()[3:] == ["train 100/100 (100%), 2.5 step/s, took 01:30, loss 0.25"]


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
    assert text.index("compiling") < text.index("1/3")
    assert "compiling" not in text.split("1/3")[1]


def test_silence(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(3, "sample", show=False, interval=0) as progress:
        progress.advance(3)
    assert progress.done == 3
    assert capsys.readouterr() == ("", "")


def test_in_silence_nothing_is_said_or_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with silence(), Progress(3, "sample", interval=0) as progress:
        say("one")
        progress.advance(3)
    say("two")
    assert capsys.readouterr() == ("", "two\n")
