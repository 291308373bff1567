"""What a command tells: words, warnings, progress, and a report as JSON.

Nobody has to listen: where a stream is closed, or its reader has gone, the work goes on.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from ncsn_fast.pictures.terminal import as_text, protocol_of
from ncsn_fast.support.files import check_suffix, check_writable, write_text

if TYPE_CHECKING:
    from PIL import Image

STDOUT = "-"
_OURS = re.compile(r"(run|levels|schedule|metrics|evaluation|(model|best)(_\d+)?)\.json")
_log = logging.getLogger("ncsn_fast")
_absent: set[int] = set()  # the standard streams that this process was started without


def open_streams() -> None:
    """Let descriptors 0 to 2 be open, and words be written as they can be.

    A process may be started without them (``2>&-``). The first file that it opens would then get
    such a number, and whatever writes to stderr would write into that file.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free: this one
            _absent.add(number)
        if getattr(sys, name) is None:
            nowhere = os.fdopen(number, "w" if number else "r", encoding="utf-8", closefd=False)
            setattr(sys, name, nowhere)
    for stream in (sys.stdout, sys.stderr):
        encoding = (getattr(stream, "encoding", None) or "").lower().replace("-", "")
        if hasattr(stream, "reconfigure"):
            # The bytes of a file's name come out as they are; σ and × somehow.
            stream.reconfigure(
                errors="surrogateescape" if encoding == "utf8" else "backslashreplace"
            )


def write(text: str, *, err: bool = False, color: bool | None = None) -> Exception | None:
    """Write a line to stdout or stderr; returns why that did not take it.

    One that does not, a pipe without a reader or a full disk, gets nothing from then on. Colours
    are left out where it is no terminal, unless `color` is True.
    """
    stream = sys.stderr if err else sys.stdout
    try:
        click.echo(text, err=err, color=color)
    except (OSError, ValueError) as error:
        # What is left in its buffer would fail once more when Python ends.
        with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())
        return error
    return None


class Output:
    """Where the words of one command go.

    Args:
        command: its name.
        quiet: whether to say nothing but warnings.
        report: the file of the report, "-" for stdout, None for none.
        opens: whether to open what is shown.
        previews: whether to draw pictures in the terminal. Default: where it says that it can.
        silent: whether to say nothing at all, nor write the report: as one of several processes
            that do the same work, of which another one speaks.

    Attributes:
        progress: whether to tell how far the work is.
        opens: whether the user asked for the result to be opened.

    Raises:
        ValueError, OSError: for a report that cannot be written, or would replace another file.
    """

    def __init__(
        self,
        command: str,
        *,
        quiet: bool = False,
        report: str | None = None,
        opens: bool = False,
        previews: bool | None = None,
        silent: bool = False,
    ) -> None:
        report = None if silent else report
        self._command, self._quiet, self._report = command, quiet or silent, report
        self._silent, self._previews = silent, previews
        self.opens = opens and not silent
        self.progress = not self._quiet
        if report == STDOUT:
            if 1 in _absent:
                raise ValueError("--json -: stdout is closed, give the name of a file")
        elif report is not None:
            _check_report(Path(report))

    def say(self, text: str = "", *, color: bool | None = None) -> None:
        """A line for the user: on stdout, unless the report is there."""
        if self._quiet:
            return
        error = write(text, err=self._report == STDOUT, color=color)
        if error is not None and not isinstance(error, BrokenPipeError):  # as of `| head`
            self.warn(f"warning: stdout cannot be written ({error}), the work goes on")

    def warn(self, text: str) -> None:
        """A line that the user has to see, also one who wants quiet."""
        if not self._silent:
            write(text, err=True)

    def preview(self, picture: Path | Image.Image) -> None:
        """Draw a picture in the terminal, where that can show one."""
        protocol = protocol_of(os.environ)
        wanted = self._previews
        if wanted is None:
            wanted = protocol is not None and sys.stdout.isatty() and _takes_blocks(sys.stdout)
        if self._quiet or self._report == STDOUT or not wanted:
            return
        from PIL import Image

        if isinstance(picture, Path):
            picture = Image.open(picture)
        text = as_text(picture, protocol or "blocks", *shutil.get_terminal_size())
        self.say(text, color=True)  # without its colours it is no picture, in a pipe either

    def show(self, path: Path) -> None:
        """Show a result, a picture or a page: with --open in the program that is for it."""
        if self.opens and not _open(path):
            self.warn(f"--open: no program here shows {path}: copy it to where there is one")

    def told(self, report: Mapping[str, Any]) -> None:
        """Name the files of a report, and write it where it is wanted."""
        for path in report["files"].values():
            self.say(f"  {path}")
        self.report(report)

    def report(self, facts: Mapping[str, Any]) -> None:
        """Write the report, if one is wanted.

        Raises:
            OSError: where it cannot be written any more.
        """
        if self._report is None:
            return
        text = json.dumps(_plain({"command": self._command, **facts}), indent=2)
        if self._report == STDOUT:
            if error := write(text):
                raise OSError(f"the report could not be written to stdout ({error})")
            return
        path = Path(self._report)
        if path.exists() and not path.is_file():  # a pipe, say, which cannot be replaced
            path.write_text(text + "\n", encoding="utf-8")
        else:
            _check_report(path)  # once more: the work may have made a file of this name
            write_text(path, text + "\n")

    @contextlib.contextmanager
    def warnings(self) -> Iterator[None]:
        """Show the warnings of the library while the block runs."""
        handler = _Warnings(self, logging.WARNING)
        _log.addHandler(handler)
        try:
            yield
        finally:
            _log.removeHandler(handler)


class _Warnings(logging.Handler):
    def __init__(self, output: Output, level: int) -> None:
        super().__init__(level)
        self._output = output

    def emit(self, record: logging.LogRecord) -> None:
        self._output.warn(f"warning: {record.getMessage()}")


def _takes_blocks(stream: TextIO) -> bool:
    return (stream.encoding or "").lower().replace("-", "") == "utf8"


def _open(path: Path) -> bool:
    """Open a file in the program that the desktop has for it; False where there is no desktop.

    Without one xdg-open would take a browser for terminals, if any.
    """
    if sys.platform == "win32":  # where click.launch of click 8.1 to 8.3 runs a program "start"
        try:
            os.startfile(path.absolute())
        except OSError:
            return False
        return True
    desktop = sys.platform == "darwin" or os.environ.get("DISPLAY")
    if not (desktop or os.environ.get("WAYLAND_DISPLAY")):
        return False
    return click.launch(str(path.absolute())) == 0


def _check_report(path: Path) -> None:
    """Refuse now a report that could not be written after the work, or would replace another file:
    one that is there, or one that a command is about to write.

    Raises:
        ValueError, OSError: naming the file.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        return  # a pipe or a device
    check_suffix(path, (".json",))
    if _OURS.fullmatch(path.name):
        raise ValueError(
            f"--json {path}: files of that name are what commands keep: give another name"
        )
    check_writable(path)
    if path.exists() and not _is_report(path):
        raise ValueError(
            f"{path} is there already and is no report of ncsn-fast: give another name"
        )


def _is_report(path: Path) -> bool:
    """Whether a file begins as reports do."""
    with open(path, "rb") as file:
        start = file.read(64).split()
    return not start or start[:2] == [b"{", b'"command":']


def _plain(value: Any) -> Any:
    """The value as JSON has it: a number that is not finite is null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


__all__ = ["STDOUT", "Output", "open_streams", "write"]
