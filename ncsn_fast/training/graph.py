"""The training step as a CUDA graph: warmed up by real steps, then captured once and replayed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ncsn_fast.device import capture
from ncsn_fast.training.step import Piece

WARM_UPS = 3
_log = logging.getLogger("ncsn_fast")


class TrainingGraph:
    """Does a step again and again, as a graph where that is wished and possible.

    The first three steps are done without a graph, on the stream that is captured later. A capture
    records a step without doing it. So no step is done twice, and a run is the same with and
    without a graph.

    Args:
        pieces: the step, in the order in which it is done; what changes from one to the next it
            reads from tensors. What cannot be captured is done between the graphs of the others.
        device: where it runs.
        wish: True, False, or "auto": a graph on CUDA devices, and where the step cannot be captured
            none, with one warning.
        changed: the tensors that a step changes and others read. A replay raises their version, so
            that a prepared copy of the weights is seen to be old.

    Raises:
        ValueError: for ``wish = True`` where nothing can be captured.
    """

    def __init__(
        self,
        pieces: Sequence[Piece],
        device: torch.device,
        wish: bool | str,
        changed: Sequence[Tensor],
    ) -> None:
        obstacle = capture.obstacle(device)
        if wish is True and obstacle is not None:
            raise ValueError(f'graph = True, but {obstacle}: leave graph to "auto"')
        self._pieces, self._device, self._changed = pieces, device, changed
        self._must = wish is True
        self._eager = wish is False or obstacle is not None
        self._warm_ups = 0
        self._captured: list[capture.Captured] = []
        self._replay: list[Callable[[], None]] = []

    def __call__(self) -> None:
        """Do the step once.

        Raises:
            CaptureError: for ``wish = True`` where the step cannot be captured. It was not done.
        """
        if not self._captured and not self._eager and self._warm_ups == WARM_UPS:
            self._capture()
        if self._captured:
            for replay in self._replay:
                replay()
            torch.autograd.graph.increment_version(self._changed)
        elif self._eager:
            self._do()
        else:
            with capture.side_stream(self._device):
                self._do()
            self._warm_ups += 1

    def release(self) -> None:
        """Give the graphs' memory back; later steps are warmed up and captured anew."""
        for graph in self._captured:
            graph.release()
        self._captured, self._warm_ups = [], 0

    def _do(self) -> None:
        for piece in self._pieces:
            piece.run()

    def _capture(self) -> None:
        captured, replay = [], []
        try:
            for piece in self._pieces:
                replay.append(piece.run)
                if piece.captured:
                    captured.append(capture.capture(piece.run, self._device, warm_ups=0))
                    replay[-1] = captured[-1].replay
            self._captured, self._replay = captured, replay
        except (capture.CaptureError, torch.OutOfMemoryError) as error:
            for graph in captured:
                graph.release()
            if self._must:
                raise
            self._eager = True
            _log.warning(
                "the training step cannot be captured (%s): it runs without a graph, which is "
                "slower where batches are small; graph=False says so without this warning%s",
                error,
                "" if isinstance(error, torch.OutOfMemoryError) else _held(error),
            )


def _held(error: BaseException) -> str:
    """The likely cause of an error of CUDA itself, which names none.

    Gradients are added up on the stream on which a parameter first took part in an autograd graph.
    While such a graph of somebody else's is alive, a capture would have to wait for its stream.
    """
    if "CUDA error" not in str(error):
        return ""
    return (
        ". A likely cause: a loss or another result of this network, from before the training, is "
        "still held, and with it the stream of its gradients; delete it, or detach() it"
    )


__all__ = ["WARM_UPS", "TrainingGraph"]
