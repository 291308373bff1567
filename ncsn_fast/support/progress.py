"""Progress of long work: a bar, a function of the caller's, or nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

# True: a bar on stderr; a function (done, total); None or False: nothing.
ProgressWish = bool | Callable[[int, int], None] | None


class Progress:
    """Counts steps of work and shows them as the caller wishes; a context manager."""

    def __init__(self, wish: ProgressWish, total: int, unit: str = "step", done: int = 0) -> None:
        self.done = done  # what an earlier run did already
        self.total = total
        self._report = wish if callable(wish) else None
        self._bar: Any = None
        if wish is True:
            from tqdm import tqdm

            self._bar = tqdm(
                total=total, initial=done, unit=unit, unit_scale=total > 10_000, leave=False
            )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def advance(self, steps: int = 1) -> None:
        self.back_to(self.done + steps)

    def back_to(self, done: int) -> None:
        """Set the count, for work that has to be done again."""
        step, self.done = done - self.done, done
        if self._bar is not None:
            self._bar.update(step)
        if self._report is not None:
            self._report(done, self.total)

    def note(self, text: str) -> None:
        """A word beside the bar, such as the current loss."""
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)


__all__ = ["Progress", "ProgressWish"]
