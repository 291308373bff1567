"""NCSNv2 in its three sizes (Song & Ermon 2020).

The body does not see the noise level and learns the normalised score n = σ·s; the score is
n / σ (Technique 3 of the paper).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ncsn_fast.models.base import check_labels
from ncsn_fast.models.blocks import ClassInstanceNormPlus, InstanceNormPlus, Norm
from ncsn_fast.models.ncsn import SMALL
from ncsn_fast.models.refinenet import ImageSize, RefineNet, Stage

MOST_CLASSES = 10_000
_LONGEST_NAME = 100  # characters


class NCSNv2(RefineNet):
    """NCSNv2 for images of 28, 32 or 64 pixels (Song & Ermon 2020, appendix A).

    Arguments as :class:`ncsn_fast.models.refinenet.RefineNet`, and:

    Args:
        classes: the names of the classes that it can be told, or how many there are, named by their
            numbers then. Each has an offset of the γ, α, β of all norms, zero at the beginning;
            without a class the network is the one that has none, with the same weights.
        divided: False for weights of training code that leaves the division by σ to the sampler:
            ``forward`` then returns the body as it is, like that code's network, and the
            state_dict holds no noise levels.
    """

    STAGES: tuple[Stage, ...] = SMALL
    sees_sigma = False

    def __init__(
        self,
        *,
        channels: int,
        image_size: ImageSize,
        ngf: int,
        sigmas: Tensor | np.ndarray | Sequence[float],
        activation: str = "elu",
        rescaled: bool = False,
        logit_transform: bool = False,
        classes: int | Sequence[str] = (),
        divided: bool = True,
    ) -> None:
        self.classes = class_names(classes)  # first: what is built depends on it
        super().__init__(
            channels=channels,
            image_size=image_size,
            ngf=ngf,
            sigmas=sigmas,
            activation=activation,
            rescaled=rescaled,
            logit_transform=logit_transform,
        )
        self.divided = bool(divided)
        if not divided:
            self.register_buffer("sigmas", self.sigmas, persistent=False)

    def _norm(self) -> Norm:
        if self.classes:
            return partial(ClassInstanceNormPlus, num_classes=len(self.classes))
        return InstanceNormPlus

    def _refine_norm(self) -> Norm | None:
        return None

    def forward(
        self, x: Tensor, labels: Tensor | None, classes: Tensor | int | None = None
    ) -> Tensor:
        """The score (N, C, H, W) of the images x at the noise levels ``labels`` (N,).

        Where the network is not ``divided``: the normalised score. ``classes`` are as for
        :meth:`normalized`.

        Raises:
            ValueError: without labels, where it is.
        """
        told = {} if classes is None else {"classes": classes}
        n = self.normalized(x, labels, **told)
        if not self.divided:
            return n
        if labels is None:
            raise ValueError("the score is divided by σ: give labels (N,), or call normalized()")
        return n / self.level(labels, x)

    def normalized(
        self, x: Tensor, labels: Tensor | None = None, classes: Tensor | int | None = None
    ) -> Tensor:
        """The normalised score σ·s of x, (N, C, H, W) both: the body's. Labels are not read.

        Args:
            classes: (N,) int64, the class of each image, ``len(net.classes)`` where it has none, or
                one number for all; None: no image has one.

        Raises:
            ValueError: for classes that the network does not have.
        """
        if classes is not None:
            if not self.classes:
                raise ValueError("this network knows no classes: leave them out")
            if isinstance(classes, int):
                classes = torch.full((len(x),), classes, device=x.device)
            check_labels(classes, len(x), len(self.classes) + 1, "classes")
        return self.body(x, classes)

    def class_of(self, name: str | int) -> int:
        """The number of a class, by its name or that number itself.

        Raises:
            ValueError: for another one, naming those that there are.
        """
        if not self.classes:
            raise ValueError(f"class {name!r:.80}: this network knows no classes")
        known = dict(zip(map(str.lower, self.classes), range(len(self.classes)), strict=True))
        wanted = str(name).lower()
        number = known.get(wanted)
        if number is None and wanted.isdecimal() and int(wanted) < len(self.classes):
            number = int(wanted)
        if number is None:
            names = ", ".join(self.classes[:20]) + (" …" if len(self.classes) > 20 else "")
            raise ValueError(
                f"class {name!r:.80} is unknown; there are {names}, or 0 to {len(known) - 1}"
            )
        return number

    def numbers_of(self, classes: object, n: int) -> Tensor:
        """The numbers of the classes of n images, (n,) int64 where the network is.

        Args:
            classes: names or numbers; one for all images, or a tensor, list or array of them.

        Raises:
            ValueError: for what are no such classes, and for others than the network has.
        """
        given: Any = classes.tolist() if isinstance(classes, np.ndarray) else classes
        if not isinstance(given, Tensor):
            several = given if isinstance(given, list | tuple | range) else [given]
            given = [self.class_of(one) if isinstance(one, str) else one for one in several]
        try:
            numbers = torch.as_tensor(given)
        except (TypeError, ValueError, RuntimeError, OverflowError):
            numbers = torch.empty(0)
        whole = not (numbers.is_floating_point() or numbers.is_complex())
        if not whole or numbers.dtype == torch.bool or numbers.shape not in ((), (1,), (n,)):
            raise ValueError(
                f"classes = {classes!r:.80}: give names or numbers from 0 on, one for all or one "
                f"for each of {n} images"
            )
        numbers = numbers.long().expand(n).contiguous()
        check_labels(numbers, n, len(self.classes) + 1, "classes")
        return numbers.to(self.sigmas.device)

    @property
    def config(self) -> dict[str, Any]:
        """Plain JSON values that rebuild the network."""
        classes = {"classes": list(self.classes)} if self.classes else {}
        return {**super().config, **classes, "divided": self.divided}


def class_names(classes: int | Sequence[str]) -> tuple[str, ...]:
    """The names of classes, of so many classes "0", "1", …; checked.

    Raises:
        ValueError: for another number than 1 to 10,000, and for what are no different names.
    """
    if isinstance(classes, int) and not isinstance(classes, bool):
        classes = [str(number) for number in range(min(classes, MOST_CLASSES + 1))] or [""]
    if isinstance(classes, str) or not isinstance(classes, Sequence):
        raise ValueError(f"classes = {classes!r:.80}: give their names, or how many there are")
    if len(classes) > MOST_CLASSES:
        raise ValueError(f"{len(classes):,} classes are too many: at most {MOST_CLASSES:,}")
    seen: set[str] = set()
    for name in classes:
        if not isinstance(name, str) or not 0 < len(name) <= _LONGEST_NAME:
            raise ValueError(f"class {name!r:.80}: a name has 1 to {_LONGEST_NAME} characters")
        if name.lower() in seen:
            raise ValueError(f"two classes are called {name!r:.80}, capital letters left aside")
        seen.add(name.lower())
    return tuple(classes)


class NCSNv2Deeper(NCSNv2):
    """NCSNv2 for 96 or 128 pixels (Song & Ermon 2020).

    Arguments as :class:`NCSNv2` and :class:`ncsn_fast.models.refinenet.RefineNet`.
    """

    STAGES = (
        Stage("res1", "refine5", width=1, refined=1),
        Stage("res2", "refine4", width=2, refined=1, pool=True),
        Stage("res3", "refine3", width=2, refined=2, pool=True),
        Stage("res4", "refine2", width=4, refined=2, dilation=2),
        Stage("res5", "refine1", width=4, refined=4, dilation=4),
    )


class NCSNv2Deepest(NCSNv2):
    """NCSNv2 for 256 pixels (Song & Ermon 2020).

    Arguments as :class:`NCSNv2` and :class:`ncsn_fast.models.refinenet.RefineNet`.
    """

    STAGES = (
        Stage("res1", "refine5", width=1, refined=1),
        Stage("res2", "refine4", width=2, refined=1, pool=True),
        Stage("res3", "refine3", width=2, refined=2, pool=True),
        Stage("res31", "refine31", width=2, refined=2, pool=True),
        Stage("res4", "refine2", width=4, refined=2, dilation=2),
        Stage("res5", "refine1", width=4, refined=4, dilation=4),
    )


__all__ = ["MOST_CLASSES", "NCSNv2", "NCSNv2Deeper", "NCSNv2Deepest", "class_names"]
