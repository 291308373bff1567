"""Progress where nobody watches a bar: lines for a log."""

import functools
import io
import sys

import pytest
import tqdm

from ncsn_fast.support import progress
from ncsn_fast.support.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    """The time, which goes on where the test says."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_every_half_minute(clock, capsys):
    with Progress(True, total=4000, done=1000) as bar:
        for _ in range(100):
            clock[0] += 1
            bar.advance(10)
    assert capsys.readouterr().err.splitlines() == [
        "  1,300 of 4,000 steps, about 4 min left",
        "  1,600 of 4,000 steps, about 4 min left",
        "  1,900 of 4,000 steps, about 4 min left",
    ]


def test_what_an_earlier_run_did_is_counted_and_took_no_time(clock, capsys):
    with Progress(True, total=1000) as bar:
        bar.found(500)
        for _ in range(4):
            clock[0] += 10
            bar.advance(30)
        bar.found(100)
        clock[0] += 20
        bar.advance(60)
    assert capsys.readouterr().err.splitlines() == [
        "  590 of 1,000 steps, about 2 min left",
        "  780 of 1,000 steps, about 73 s left",
    ]


def test_a_line_has_the_note_and_the_unit(clock, capsys):
    with Progress(True, total=100, unit="file") as bar:
        bar.note("loss 0.5")
        clock[0] += 40
        bar.advance(80)
    assert capsys.readouterr().err == "  80 of 100 files, about 10 s left, loss 0.5\n"


def test_a_note_of_now_is_told_where_the_count_stands_still(clock, capsys):
    with Progress(True, total=100, done=20) as bar:
        bar.note("drawing samples: 1 of 8", now=True)
        clock[0] += 31
        bar.note("drawing samples: 2 of 8", now=True)
    assert capsys.readouterr().err == "  20 of 100 steps, drawing samples: 2 of 8\n"


def test_short_work_and_its_end_get_no_line(clock, capsys):
    with Progress(True, total=2) as bar:
        clock[0] += 29
        bar.advance()
        clock[0] += 29
        bar.advance()
    assert capsys.readouterr().err == ""


def test_work_that_is_done_again_gets_no_line_before_it_is_where_it_was(clock, capsys):
    with Progress(True, total=10, done=5) as bar:
        clock[0] += 60
        bar.back_to(2)
    assert capsys.readouterr().err == ""


def test_somebody_who_watches_gets_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Progress(True, total=2) as bar:
        bar.advance()
    assert "0/2" in capsys.readouterr().err


@pytest.mark.parametrize("disabled", [False, True])  # as by TQDM_DISABLE=1
def test_a_bar_shows_what_an_earlier_run_did(monkeypatch, capsys, disabled):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr("tqdm.tqdm", functools.partial(tqdm.tqdm, disable=disabled))
    with Progress(True, total=8) as bar:
        bar.found(4)
        bar.note("half", now=True)
        bar.advance()
    assert bar.done == 5
    shown = capsys.readouterr().err
    assert ("4/8 [00:00<?, ?step/s, half]" in shown) == (not disabled), shown


def test_a_bar_whose_stream_is_closed_does_not_stop_the_work(monkeypatch):
    stream = io.StringIO()
    stream.close()
    for broken in (stream, object(), None):
        monkeypatch.setattr(sys, "stderr", broken)
        with Progress(True, 2) as progress:
            progress.advance()
        assert progress.done == 1
