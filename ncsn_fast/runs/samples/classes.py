"""Of which classes the samples of a run are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ncsn_fast.guidance.classifier_free import guided
from ncsn_fast.models.base import ScoreNetwork
from ncsn_fast.models.ncsnv2 import NCSNv2
from ncsn_fast.models.score import Score


class Classes:
    """Of which classes the images of a run are, and what is run for them.

    Attributes:
        score: the network, guided where that is asked for.
        words: the labels as a command has them, where they were left out too.

    Raises:
        ValueError: for classes that the network does not know, and for guidance without classes.
    """

    score: ScoreNetwork | Score

    def __init__(self, net: ScoreNetwork, labels: Sequence[str], guidance: float | None) -> None:
        self._names: tuple[str, ...] = getattr(net, "classes", ())
        self._device, self._guidance = net.sigmas.device, guidance
        self._numbers: list[int] = []
        if not self._names and (labels or guidance is not None):
            asked = f"label {labels[0]!r:.80}" if labels else f"guidance = {guidance:g}"
            raise ValueError(
                f"{asked}: this network knows no classes; leave it out, or take a network that was "
                "trained with --conditional"
            )
        for label in labels:
            assert isinstance(net, NCSNv2)
            self._numbers += self._meant(net, label)
        self.words = list(labels)
        if not labels and self._names:  # images of no class are worse (docs/models.md)
            self._numbers += range(len(self._names))
            self.words += [] if "all" in map(str.lower, self._names) else ["all"]
        if guidance is not None and not any(n < len(self._names) for n in self._numbers):
            raise ValueError(f"guidance = {guidance:g} goes towards a class: say which (label)")
        self.score = net if guidance is None else guided(net, guidance)

    def _meant(self, net: NCSNv2, label: str) -> Sequence[int]:
        """The classes that a label stands for, as their numbers."""
        words = {"all": range(len(self._names)), "none": [len(self._names)]}
        if (word := label.lower()) not in words:
            return [net.class_of(label)]
        if word in map(str.lower, self._names):
            raise ValueError(
                f"label {label!r}: a class of this network is called so, and {word} stands for "
                f"{'each class' if word == 'all' else 'no class'} too: give the number of the "
                f"class, {net.class_of(word)}"
            )
        return words[word]

    def told(self) -> dict[str, Any]:
        """As the report and the identity of samples have them."""
        names = [*self._names, "none"]
        of_some = any(n < len(self._names) for n in self._numbers)
        labels = [names[n] for n in self._numbers] if of_some else None
        return {"labels": labels, "guidance": self._guidance}

    def numbers(self, ids: Sequence[int]) -> list[int] | None:
        """The classes of images of these ids; None where the network knows none."""
        if not self._numbers:
            return None
        return [self._numbers[i % len(self._numbers)] for i in ids]

    def extra(self, ids: Sequence[int]) -> dict[str, Tensor]:
        """The network's further input for images of these ids."""
        numbers = self.numbers(ids)
        return {} if numbers is None else {"classes": torch.tensor(numbers, device=self._device)}


__all__ = ["Classes"]
