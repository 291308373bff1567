"""The page of a training run: what it shows, when it is written, what it must not cost."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.pages import Page
from helpers.training import config, train_small

from ncsn_fast.pictures.images import save_grid
from ncsn_fast.runs import train as runs
from ncsn_fast.runs.training import page as pages
from ncsn_fast.runs.training.page import NAME, TrainingPage
from ncsn_fast.training.step import TrainingError
from ncsn_fast.training.trainer import Trainer

SIGMAS = [10.0, 1.0, 0.1]


class Run(TrainingPage):
    """The page of a run that is at some step, of which nothing else is there."""

    def __init__(self, out: Path, step: int = 40, **settings: Any) -> None:
        self.now = 1000.0
        self.log = SimpleNamespace(losses=[], distances=[], measure="pixel_frechet_distance")
        self.sums = torch.zeros(2, len(SIGMAS))
        self.run: Any = SimpleNamespace(
            out=out,
            step=0,
            config=config(**{"steps": 100, **settings}),
            history=self.log.losses,
            log=self.log,
            sums=SimpleNamespace(levels=self.sums),
            net=SimpleNamespace(sigmas=torch.tensor(SIGMAS)),
        )
        super().__init__(self.run, {"batch_size": 8, "ema": 0.999}, "a CPU", lambda: self.now)
        self.run.step = step
        self.now += 20.0

    def read(self, going_on: bool = False) -> Page:
        self.write(going_on)
        return Page((self.run.out / NAME).read_text(encoding="utf-8"))


def test_the_page_says_how_far_the_run_is_how_fast_and_how_long_it_takes(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.log.losses += [(20, 9.0), (40, 7.25)]
    words = run.read(going_on=True).words
    # 40 steps of 8 images in 20 seconds, and 60 steps are left.
    for told in ("Under way", "step 40 of 100", "loss 7.25", "a second 16 ", "left 30 s"):
        assert told in words
    assert f"ncsn-fast train --out {tmp_path} --resume" in words
    assert "batch size 8 ema 0.999 on a CPU" in words


def test_what_is_left_is_no_more_than_the_time_it_may_take(tmp_path: Path) -> None:
    assert "left 5 s" in Run(tmp_path, max_seconds=25.0).read(going_on=True).words


def test_only_the_page_of_a_run_that_goes_on_loads_itself(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert run.read(going_on=True).count("script") == 1
    stopped = run.read()
    assert stopped.count("script") == stopped.count("input") == 0
    assert "Stopped at 40" in stopped.words
    run.run.step = 100
    finished = run.read()
    assert "Finished" in finished.words
    assert f"ncsn-fast sample {tmp_path / 'model.safetensors'}" in finished.words
    assert "--resume --steps 200" in finished.words


def test_a_page_is_written_no_more_often_than_it_may_cost(tmp_path: Path) -> None:
    run, written = Run(tmp_path), []
    run.write = lambda going_on=False: written.append(run.now) or TrainingPage.write(run, going_on)
    for _ in range(40):
        run.update()
        run.now += 1.0
    assert [now - written[0] for now in written] == [0, 15, 30]

    page = run._page
    run._page = lambda going_on: setattr(run, "now", run.now + 0.5) or page(going_on)
    run.now += 15.0
    run.update()
    run.now += 99.0  # of the hundred seconds that half a second is worth
    run.update()
    assert len(written) == 4


def test_the_losses_of_the_levels_are_those_of_now_once_they_say_enough(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert "Loss by noise level" not in run.read().words
    report = {"step": 30, "sigma": SIGMAS, "loss": [1.0, 2.0, None]}
    (tmp_path / "levels.json").write_text(json.dumps(report))
    assert "up to step 30 1 2 10 1" in run.read().words
    run.sums[0], run.sums[1] = torch.tensor([15.0, 30.0, 45.0]), 5.0  # of each level too few
    assert "up to step 30 1 2 10 1" in run.read().words
    run.sums *= 2
    assert "up to step 40 0.1 9 1 6 10 3" in run.read().words


@pytest.mark.parametrize(
    "report", ["", "[]", '{"step": 1}', '{"step": 1, "loss": [1]}', '{"step": 1, "loss": ["x"]}']
)
def test_a_damaged_report_of_the_levels_is_passed_over(tmp_path: Path, report: str) -> None:
    (tmp_path / "levels.json").write_text(report)
    assert "Loss by noise level" not in Run(tmp_path).read().words


def test_distances_are_called_by_their_measure(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.log.distances += [(10, 3.0), (20, 1.5), (30, 2.0)]
    words = run.read().words
    assert "pixel Fréchet distance 2 " in words
    assert "best 1.5 at step 20" in words
    run.log.measure = "fid"
    assert "Distance of samples, by FID" in run.read().words


def test_of_many_pictures_some_are_shown_from_the_first_to_the_last(tmp_path: Path) -> None:
    run = Run(tmp_path, samples=36)
    (tmp_path / "samples").mkdir()
    images = torch.rand(36, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for step in range(1, 31):
        save_grid(tmp_path / "samples" / f"step_{step:07d}.png", images)
    (tmp_path / "samples" / "step_0000001.png").write_bytes(b"\x89PNG\r\n\x1a\n damaged")
    (tmp_path / "samples" / "notes.png").write_bytes(b"of somebody else")
    shown = [tag["alt"] for name, tag in run.read().tags if name == "img"]
    assert len(shown) == 7  # of eight, one is damaged
    assert shown[-1] == "samples of step 30"
    before = dict(run._pictures)
    run.read()
    assert all(run._pictures[key] is picture for key, picture in before.items())


def test_pictures_of_other_names_and_of_later_steps_are_not_shown(tmp_path: Path) -> None:
    run = Run(tmp_path, step=10_000_000)
    (tmp_path / "samples").mkdir()
    names = ["0000002", "0000001", "10000000", "9999999", "10000001", "0000001_copy", "0000001²"]
    for name in names:
        save_grid(tmp_path / "samples" / f"step_{name}.png", torch.zeros(1, 1, 8, 8))
    shown = [tag["alt"] for name, tag in run.read().tags if name == "img"]
    assert shown == [f"samples of step {s}" for s in ("1", "2", "9,999,999", "10,000,000")]


def test_a_disk_that_takes_no_page_is_a_warning(tmp_path: Path, caplog: Any) -> None:
    run = Run(tmp_path)
    run.run.out = run._out = tmp_path / "gone"
    run.write()
    assert "the page of step 40 could not be written" in caplog.text


def test_a_page_that_cannot_be_drawn_is_a_warning(tmp_path: Path, caplog: Any) -> None:
    run = Run(tmp_path)
    run.log.losses += [(40, "no number")]
    run.write()
    assert "the page of step 40 could not be written" in caplog.text


def test_a_run_writes_its_page_from_the_beginning_to_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states: list[tuple[int, bool]] = []
    write = TrainingPage.write

    def watched(self: TrainingPage, going_on: bool = False) -> None:
        states.append((self._trainer.step, going_on))
        write(self, going_on)

    monkeypatch.setattr(TrainingPage, "write", watched)
    monkeypatch.setattr(pages, "SECONDS", 0.0)
    monkeypatch.setattr(pages, "_SHARE", 0)
    train_small(tmp_path)
    entries = [1, 2, 2, 3, 4, 4]  # the losses of four steps and the distances of two
    assert states == [(0, True), *((step, True) for step in entries), (4, False)]
    read = Page((tmp_path / NAME).read_text(encoding="utf-8"))
    assert [tag["alt"] for name, tag in read.tags if name == "img"] == [
        "samples of step 2", "samples of step 4",
    ]  # fmt: skip
    assert "Finished" in read.words


def test_the_page_of_a_run_that_goes_on_shows_what_was_before(tmp_path: Path) -> None:
    train_small(tmp_path)
    assert "4 of 4" in Page((tmp_path / NAME).read_text(encoding="utf-8")).words
    quiet: dict[str, Any] = {"device": "cpu", "say": lambda text: None, "progress": False}
    report = runs.resume(tmp_path, {"steps": 5}, **quiet)
    assert report["files"]["page"] == tmp_path / NAME
    read = Page((tmp_path / NAME).read_text(encoding="utf-8"))
    (told,) = [tag["aria-label"] for _, tag in read.tags if "over the steps. each" in str(tag)]
    assert told.split(". ", 1)[1].startswith("each entry: from ")
    assert " at 1 to " in told
    assert told.endswith(" at 5")


def test_a_run_that_fails_leaves_the_page_of_a_stopped_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Trainer._train_step

    def fails(self: Trainer) -> None:
        if self.step == 3:
            raise RuntimeError("no more data")
        step(self)

    monkeypatch.setattr(Trainer, "_train_step", fails)
    with pytest.raises(RuntimeError, match="no more data"):
        train_small(tmp_path)
    read = Page((tmp_path / NAME).read_text(encoding="utf-8"))
    assert "Stopped at 3" in read.words
    assert read.count("script") == 0


def test_a_run_that_diverges_says_so_and_shows_what_was_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    step = Trainer._train_step

    def diverges(self: Trainer) -> None:
        step(self)
        if self.step == 3:
            self.sums.sum.fill_(torch.nan)
            self.sums.levels[0].fill_(torch.nan)
            self.sums.levels[1].fill_(100)

    monkeypatch.setattr(Trainer, "_train_step", diverges)
    with pytest.raises(TrainingError, match="the loss is nan between steps 2 and 3"):
        train_small(tmp_path)
    assert (tmp_path / "loss.png").exists()
    assert "Stopped at 3" in Page((tmp_path / NAME).read_text(encoding="utf-8")).words
    assert "could not be written" not in caplog.text


def test_settings_are_told_in_words() -> None:
    assert [pages._told(value) for value in (True, False, 1e-4, 12, "fp32")] == [
        "yes", "no", "0.0001", "12", "fp32",
    ]  # fmt: skip
