"""A run while it goes on: training.html in its folder, to be looked at in a browser."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from ncsn_fast.pictures.chart import STYLE, Curve, chart, number
from ncsn_fast.pictures.curves import running_mean
from ncsn_fast.pictures.images import columns_of, thumbnail
from ncsn_fast.pictures.page import (
    Markup,
    command,
    element,
    heading,
    page,
    paragraph,
    picture,
    table,
    text,
)
from ncsn_fast.support.files import write_text
from ncsn_fast.support.parsers import read_json
from ncsn_fast.training.log import FID, by_level, warned
from ncsn_fast.training.samples import FOLDER, SHOWN
from ncsn_fast.training.trainer import Trainer

NAME = "training.html"
SECONDS = 15.0  # from one page to the next, at least
# And so many times as long as a page takes: writing pages costs half a percent at most.
_SHARE = 200
_ENOUGH = 10  # losses of a level, for a mean that says something
_SMALL, _LARGE = 320, 660  # pixels of a picture's side
_PICTURES, _IMAGES = 8, 4  # of the small ones, and the images along their side
_STYLE = """
progress { width: 100%; height: .8rem; accent-color: var(--c1) }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .6rem;
  margin: 1rem 0 }
dl div { background: var(--panel); border-radius: 6px; padding: .5rem .8rem }
dt { color: var(--soft); font-size: .85rem }
dd { margin: 0; font-size: 1.15rem; overflow-wrap: anywhere;
  font-variant-numeric: tabular-nums }
.samples { display: grid; grid-template-columns: repeat(auto-fill, minmax(6.8rem, 1fr));
  gap: .8rem }
.samples figure { margin: 0 } .samples img { width: 100% }
.samples figure:last-child { grid-column: 1 / -1; grid-row: 1; max-width: 41rem }
figcaption { color: var(--soft); font-size: .9rem }
"""
# Where the page was left, and whether it loads itself, outlast loading it.
_SCRIPT = """
const note = document.getElementById('age'), box = document.getElementById('anew');
const shown = [...document.querySelectorAll('details')], every = EVERY, written = WRITTEN;
const kept = JSON.parse(sessionStorage.getItem('ncsn_fast') || '{}');
box.checked = !kept.still;
(kept.open || []).forEach(i => { if (shown[i]) shown[i].open = true });
function keep() { sessionStorage.setItem('ncsn_fast', JSON.stringify(
  { still: !box.checked, open: shown.flatMap((one, i) => one.open ? [i] : []) })) }
function tell() {
  const past = Math.max(0, Math.round(Date.now() / 1000 - written));
  note.textContent = past < 120 ? past + ' s ago' : Math.round(past / 60) + ' min ago';
}
box.addEventListener('change', keep);
tell();
setInterval(tell, 1000);
setInterval(() => { if (box.checked && !document.hidden) { keep(); location.reload() } }, every);
"""


class TrainingPage:
    """The page of a run, written anew as its log grows, but no more often than costs nothing.

    Args:
        trainer: of the run, in the process that writes to its folder.
        settings: by name, those that a reader wants to know.
        machine: what it runs on, in words.
        clock: seconds that pass.
    """

    def __init__(
        self,
        trainer: Trainer,
        settings: Mapping[str, object],
        machine: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        assert trainer.out is not None, "a page needs a folder"
        self._trainer, self._out = trainer, trainer.out
        self._settings, self._machine, self._clock = dict(settings), machine, clock
        self._started, self._first, self._due = clock(), trainer.step, 0.0
        self._columns = columns_of(min(trainer.config.samples, SHOWN))
        self._pictures: dict[tuple[int, int], Markup] = {}

    def update(self) -> None:
        """Write the page of a run that goes on, if that is due."""
        if self._clock() >= self._due:
            self.write(going_on=True)

    def write(self, going_on: bool = False) -> None:
        """Write the page; what fails is a warning."""
        began = self._clock()
        # The page is an ornament: nothing in it may end a run, or hide why the run has ended.
        with warned(f"the page of step {self._trainer.step}", Exception):
            write_text(self._out / NAME, self._page(going_on))
        ended = self._clock()
        self._due = ended + max(SECONDS, _SHARE * (ended - began))

    def _page(self, going_on: bool) -> str:
        parts = [*self._state(going_on), *self._losses(), *self._levels(), *self._distances()]
        parts += [*self._samples(), *self._commands(going_on), heading("Settings")]
        rows = [(name.replace("_", " "), _told(value)) for name, value in self._settings.items()]
        parts.append(table("Settings", [*rows, ("on", self._machine)], figures=False))
        script = ""
        if going_on:
            script = _SCRIPT.replace("EVERY", f"{1000 * SECONDS:.0f}")
            script = script.replace("WRITTEN", f"{time.time():.0f}")
        return page(f"Training in {self._out}", parts, style=STYLE + _STYLE, script=script)

    def _state(self, going_on: bool) -> list[Markup]:
        """How far the run is."""
        step, steps, log = self._trainer.step, self._trainer.config.steps, self._trainer.log
        when = time.strftime("%Y-%m-%d %H:%M:%S")
        facts: list[tuple[str, str, str | None]] = [("step", f"{step:,} of {steps:,}", None)]
        if log.losses:
            facts.append(("loss", number(log.losses[-1][1]), None))
        if log.distances:
            best = min(log.distances, key=lambda pair: pair[1])
            facts.append((_called(log.measure), number(log.distances[-1][1]), None))
            facts.append(("best", f"{number(best[1])} at step {best[0]:,}", None))
        seconds, done = self._clock() - self._started, step - self._first
        if done and seconds > 0:
            rate = done * self._trainer.config.batch_size / seconds
            facts.append(("images a second", number(float(f"{rate:.3g}")), "measured"))
        if going_on and done:
            facts.append(("time left", _duration(self._left(seconds / done)), "measured"))
        told = f"Step {step:,} of {steps:,}"
        state = "finished" if step >= steps else "under way" if going_on else f"stopped at {step:,}"
        cards = [
            element("div", element("dt", text(name)), element("dd", text(value)), class_=kind)
            for name, value, kind in facts
        ]
        bar = element("progress", value=str(step), max=str(steps), aria_label=told)
        written = element("span", text(when), class_="measured")
        line = [text(f"{state.capitalize()}; written "), written]
        if going_on:
            box = Markup('<input type="checkbox" id="anew" checked>')
            again = element("label", box, text(f" load it again every {SECONDS:.0f} s"))
            line += [text(", "), element("span", id="age"), text(". "), again]
        return [element("p", *line, class_="soft"), bar, element("dl", *cards)]

    def _left(self, seconds_of_a_step: float) -> float:
        """Seconds to the end of the run."""
        config = self._trainer.config
        left = (config.steps - self._trainer.step) * seconds_of_a_step
        if config.max_seconds is not None:
            left = min(left, config.max_seconds - (self._clock() - self._started))
        return max(0.0, left)

    def _losses(self) -> list[Markup]:
        if not self._trainer.history:
            return [paragraph("The log has no entry yet.", "soft")]
        steps, losses = zip(*self._trainer.history, strict=True)
        smooth = running_mean(np.array(losses), max(5, len(losses) // 25)).tolist()
        curves = [Curve("each entry", steps, losses, "faint"), Curve("running mean", steps, smooth)]
        drawn = chart(
            "The loss over the steps",
            curves,
            xlabel="optimiser step",
            ylabel="denoising score matching loss, per image",
        )
        return [heading("Loss"), drawn]

    def _levels(self) -> list[Markup]:
        """The loss of each noise level: of the steps since the last save, where these say enough;
        else as it was then."""
        sums, sigmas = self._trainer.sums.levels, self._trainer.net.sigmas.tolist()
        step, losses = self._trainer.step, by_level(sums)
        if float(sums[1].sum()) < _ENOUGH * len(sigmas):
            step, losses = _reported(self._out / "levels.json", len(sigmas)) or (step, losses)
        known = [
            (sigma, loss)
            for sigma, loss in zip(sigmas, losses, strict=True)
            if loss is not None and math.isfinite(loss)  # as it is not where training diverged
        ]
        if not known:
            return []
        drawn_at, means = zip(*known, strict=True)
        curve = Curve(f"up to step {step:,}", drawn_at, means, "line points")
        drawn = chart(
            f"The loss over the noise level, up to step {step:,}",
            [curve],
            xlabel="noise level σ",
            ylabel=f"loss of the images with this noise, mean since a save, up to step {step:,}",
            log_x=True,
        )
        return [heading("Loss by noise level"), drawn]

    def _distances(self) -> list[Markup]:
        log = self._trainer.log
        if not log.distances:
            return []
        title = f"Distance of samples, by {_called(log.measure)}"
        steps, values = zip(*log.distances, strict=True)
        curve = Curve(_called(log.measure), steps, values, "line points")
        label = "to the images it is judged by; less is better"
        drawn = chart(f"{title} over the steps", [curve], xlabel="optimiser step", ylabel=label)
        return [heading(title), drawn]

    def _samples(self) -> list[Markup]:
        """Some pictures of samples, the last one large.

        A run that goes on from an earlier checkpoint has not come to all that are there.
        """
        there = (self._out / FOLDER).glob("step_*.png")
        steps = {int(file.stem[5:]): file for file in there if file.stem[5:].isdecimal()}
        files = sorted(pair for pair in steps.items() if pair[0] <= self._trainer.step)
        chosen = np.unique(np.linspace(0, len(files) - 1, min(len(files), _PICTURES)).round())
        steps = dict(files[int(i)] for i in chosen)
        last = max(steps, default=None)
        wanted = {(step, _LARGE if step == last else _SMALL): file for step, file in steps.items()}
        self._pictures = {key: found for key, found in self._pictures.items() if key in wanted}
        for key, file in wanted.items():
            part = 1.0 if key[1] == _LARGE else min(1.0, _IMAGES / self._columns)
            if key not in self._pictures and (data := thumbnail(file, key[1], part)) is not None:
                words = f"samples of step {key[0]:,}"
                figure = element("figcaption", text(f"step {key[0]:,}"))
                shown = element("figure", picture(data, words, "webp"), figure)
                self._pictures[key] = shown
        if not self._pictures:
            return []
        shown_ones = [self._pictures[key] for key in wanted if key in self._pictures]
        told = f"The same chains each time; all pictures are in {self._out / FOLDER}."
        grid = element("div", *shown_ones, class_="samples")
        return [heading("Samples"), paragraph(told, "soft"), grid]

    def _commands(self, going_on: bool) -> list[Markup]:
        out, config = self._out, self._trainer.config
        again = ["ncsn-fast", "train", "--out", str(out), "--resume"]
        model = shlex.join(["ncsn-fast", "sample", str(out / "model.safetensors"), "-n", "64"])
        if self._trainer.step >= config.steps:
            more = shlex.join([*again, "--steps", str(2 * config.steps)])
            return [heading("Sample, or go on"), command(model, more)]
        title = "Should it be stopped" if going_on else "Go on"
        return [heading(title), command(shlex.join(again))]


def _told(value: object) -> str:
    """A setting in words."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _called(measure: str) -> str:
    return "FID" if measure == FID else "pixel Fréchet distance"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _reported(path: Path, levels: int) -> tuple[int, list[float | None]] | None:
    """The step and the losses that were reported last; None where nothing sound is there."""
    try:
        report = read_json(path)
        step, losses = int(report["step"]), list(report["loss"])
        losses = [None if loss is None else float(loss) for loss in losses]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return (step, losses) if len(losses) == levels else None


__all__ = ["NAME", "TrainingPage"]
