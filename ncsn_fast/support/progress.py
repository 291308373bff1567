"""Progress of long work: a bar, a function of the caller's, or nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

_EVERY = 30.0  # seconds between two lines for a log
# True: a bar on stderr, in a log a line now and then; a function (done, total); None or False:
# nothing.
ProgressWish = bool | Callable[[int, int], None] | None


class _Lines:
    """What ``tqdm`` is to somebody who watches, for a log: now and then a line."""

    def __init__(self, total: int, initial: int = 0, unit: str = "step", **_: Any) -> None:
        self.n, self.initial, self._total = initial, initial, total
        self._units = f"{unit}s" if unit.isalpha() else unit
        self._note = ""
        self._began = self._told = time.monotonic()

    def update(self, steps: int) -> None:
        self.n += steps
        now = time.monotonic()
        if now - self._told < _EVERY or not self.initial <= self.n < self._total:
            return
        self._told = now
        told = [f"  {self.n:,} of {self._total:,} {self._units}"]
        if self.n > self.initial:
            left = (now - self._began) / (self.n - self.initial) * (self._total - self.n)
            told.append(
                f"about {left:.0f} s left" if left < 120 else f"about {left / 60:.0f} min left"
            )
        sys.stderr.write(", ".join([*told, *filter(None, [self._note])]) + "\n")
        sys.stderr.flush()

    def set_postfix_str(self, text: str, refresh: bool) -> None:
        self._note = text
        if refresh:
            self.update(0)

    def close(self) -> None:
        """A log keeps what was told."""


def _is_watched() -> bool:
    """Whether somebody looks at stderr: at a terminal, or at a notebook, which says it is none."""
    return getattr(sys.stderr, "isatty", bool)() or "ipykernel" in sys.modules


class Bar:
    """A bar on stderr, or lines where nobody watches it; where it is closed, or its reader has
    gone, nothing. Work goes on.

    Args:
        total: how many steps there are.
        settings: others of tqdm.
    """

    def __init__(self, total: int, **settings: Any) -> None:
        from tqdm import tqdm

        self._bar: Any = None
        if sys.stderr is not None:

            def begin() -> None:
                kind: Any = tqdm if _is_watched() else _Lines
                self._bar = kind(total=total, leave=False, **settings)

            self._shown(begin)

    def to(self, done: int) -> None:
        """Show that so many steps are done."""
        if self._bar is not None:
            self._shown(lambda: self._bar.update(done - self._bar.n))

    def found(self, steps: int) -> None:
        """Show that so many more steps were done before this work began, in none of its time."""
        if self._bar is not None:
            self._bar.initial = getattr(self._bar, "initial", 0) + steps  # a bar of TQDM_DISABLE
            self._bar.n += steps  # has none
            self._bar.last_print_n = self._bar.n

    def note(self, text: str, now: bool = False) -> None:
        """A word beside the bar, shown with its next change or ``now``."""
        if self._bar is not None:
            self._shown(lambda: self._bar.set_postfix_str(text, refresh=now))

    def close(self) -> None:
        if self._bar is not None:
            self._shown(self._bar.close)

    def _shown(self, change: Callable[[], object]) -> None:
        try:
            change()
        except (OSError, ValueError):  # ValueError: a stream that Python has closed
            if self._bar is not None:
                self._bar.disable = True  # or tqdm writes once more when it is collected
            self._bar = None


class Progress:
    """Counts steps of work and shows them as the caller wishes; a context manager."""

    def __init__(self, wish: ProgressWish, total: int, unit: str = "step", done: int = 0) -> None:
        self.done = done  # what an earlier run did already
        self.total = total
        self._report = wish if callable(wish) else None
        self._bar: Bar | None = None
        if wish is True:
            self._bar = Bar(total, initial=done, unit=unit, unit_scale=total > 10_000)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def advance(self, steps: int = 1) -> None:
        self.back_to(self.done + steps)

    def back_to(self, done: int) -> None:
        """Set the count, for work that has to be done again."""
        self.done = done
        if self._bar is not None:
            self._bar.to(done)
        if self._report is not None:
            self._report(done, self.total)

    def found(self, steps: int) -> None:
        """Count steps that an earlier run did: the time that is left is not judged by them."""
        self.done += steps
        if self._bar is not None:
            self._bar.found(steps)

    def note(self, text: str, now: bool = False) -> None:
        """A word beside the bar, such as the current loss; ``now``, or when the count changes."""
        if self._bar is not None:
            self._bar.note(text, now)


__all__ = ["Bar", "Progress", "ProgressWish"]
