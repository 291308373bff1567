"""Steps of the published networks as a GPU runs them, recorded at any size of batch.

The network, its prepared copy, the captured step of a chain and the training step are the engine's
own; weights and images are on "meta" (see ``recording.py``).
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

import ncsn_fast as nf
from ncsn_fast.benchmarks.static import recording
from ncsn_fast.benchmarks.static.recording import Launch, Work
from ncsn_fast.benchmarks.static.steps import as_on_a_gpu
from ncsn_fast.device import capture
from ncsn_fast.device.precision import network_dtype
from ncsn_fast.inference import prepare
from ncsn_fast.models.base import ScoreNetwork
from ncsn_fast.models.by_name import build
from ncsn_fast.reference import StepResult
from ncsn_fast.sampling.captured import CapturedLoop
from ncsn_fast.sampling.chain import Chain
from ncsn_fast.table import Table
from ncsn_fast.training.log import LossSums
from ncsn_fast.training.presets import PRESETS
from ncsn_fast.training.step import TrainingStep

_META = torch.device("meta")
_SIGMAS = (1.0, 0.5)
_UPDATE = importlib.import_module("ncsn_fast.ops.sampler_update")  # hidden by its function


@dataclass(frozen=True)
class Step:
    """A step of a published network.

    Attributes:
        preset: whose network, by a name of ``training/presets.py``.
        batch: samples.
        training: a training step; else a row of a chain.
        precision: what the network computes in.
        last: whether weights and activations are channels_last. What is sampled from is prepared,
            which makes them so; else it is the network as it is, under autocast.
        activation, ngf, size: of the network and its images, (height, width); None: the preset's.
    """

    preset: str
    batch: int
    training: bool = False
    precision: str = "fp16"
    last: bool = True
    activation: str = "elu"
    ngf: int | None = None
    size: tuple[int, int] | None = None

    def work(self) -> list[Work]:
        """What the step gives the GPU, in order."""
        with _meta():
            net = _built(self._config)
            if self.last:
                net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            run = self._trained(net) if self.training else self._sampled(net)
            return recording.work(run)

    @property
    def first_stage(self) -> tuple[int, ...]:
        """(channels, height, width) of its images."""
        config = self._config
        size = config["image_size"]
        return (config["ngf"], *(size if isinstance(size, tuple) else (size, size)))

    @property
    def _config(self) -> dict[str, Any]:
        preset = PRESETS[self.preset]
        return {
            "network": preset.network,
            "channels": preset.channels,
            "image_size": self.size or preset.image_size,
            "ngf": self.ngf or preset.ngf,
            "activation": self.activation,
        }

    def launches(self) -> list[Launch]:
        """Those of our kernels among it."""
        return [one for one in self.work() if isinstance(one, Launch)]

    def _sampled(self, net: ScoreNetwork) -> Callable[[], None]:
        """A row of a chain of annealed Langevin dynamics, as it is captured."""
        fn = net.normalized
        if self.last:
            fn = prepare.PreparedNetwork(net.eval(), self.precision).normalized
        chain = Chain(
            score=nf.Score(fn, "normalized", "label", sigmas=torch.tensor(_SIGMAS)),
            table=Table.of(_SIGMAS, b=0.1, d=0.1, level=[0, 1]),
            shape=net.shape,
            device=_META,
            seed=0,
            n=self.batch,
            backend="triton",
            precision=self.precision,
            prepared=self.last,
        )
        x = torch.zeros(self.batch, *net.shape, device=_META)
        chunk = chain.chunk(torch.arange(self.batch, device=_META), slice(None))
        steps: list[Callable[[], None]] = []
        with mock.patch.object(capture, "capture", lambda step, *_, **__: steps.append(step)):
            CapturedLoop(chain, StepResult(x, None, x), chunk)

        def run() -> None:
            with torch.no_grad(), _autocast("meta", network_dtype(self.precision), not self.last):
                steps[0]()

        return run

    def _trained(self, net: ScoreNetwork) -> Callable[[], None]:
        """A training step with Adam and an average of the weights."""
        config = nf.TrainConfig(batch_size=self.batch, precision=self.precision)
        return TrainingStep(net, _built(net.config), LossSums(len(_SIGMAS), _META), config)


def _built(config: dict[str, Any]) -> ScoreNetwork:
    with _META:
        return build(config, _SIGMAS).to(_META)


@contextlib.contextmanager
def _meta() -> Iterator[None]:
    """Inside, the engine takes "meta" for a GPU."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(as_on_a_gpu())
        for owner, name, stand_in in (
            (prepare, "obstacle", lambda net, precision: None),
            (_UPDATE, "overlap", lambda a, b: False),  # all lie at address 0
            (torch, "autocast", _autocast),
            (torch, "is_autocast_enabled", lambda kind: _casting() is not None),
            (torch, "get_autocast_dtype", lambda kind: _casting()),
            (torch.optim, "Adam", _Adam),
        ):
            stack.enter_context(mock.patch.object(owner, name, stand_in))
        yield


# The regions of autocast that are open, which PyTorch does not have on "meta".
_regions: list[torch.dtype | None] = []


def _casting() -> torch.dtype | None:
    return _regions[-1] if _regions else None


class _autocast(TorchFunctionMode):
    """Autocast as our networks see it: convolutions are in 16 bits."""

    def __init__(
        self,
        kind: str,
        dtype: torch.dtype | None = None,
        enabled: bool = True,
        cache_enabled: bool = True,
    ) -> None:
        super().__init__()
        self._dtype = dtype if enabled and dtype != torch.float32 else None

    def __enter__(self) -> Any:
        _regions.append(self._dtype)
        return super().__enter__()

    def __exit__(self, *failure: Any) -> None:
        _regions.pop()
        super().__exit__(*failure)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.conv2d and (dtype := _casting()) is not None:
            args = tuple(one.to(dtype) if isinstance(one, Tensor) else one for one in args)
        return func(*args, **kwargs or {})


class _Adam:
    """Gives the device what Adam does; PyTorch's own asks for values on the way."""

    _step_supports_amp_scaling = True  # as a fused one says: a GradScaler does not wait for it

    def __init__(self, parameters: list[Tensor], lr: Tensor, **settings: Any) -> None:
        self.param_groups: list[dict[str, Any]] = [{"params": parameters, "lr": lr}]
        self.state: dict[Tensor, Any] = {}
        self._first = [torch.zeros_like(one) for one in parameters]
        self._second = [torch.zeros_like(one) for one in parameters]
        self._steps = [torch.zeros((), device=one.device) for one in parameters]

    def step(self) -> None:
        parameters = self.param_groups[0]["params"]
        gradients = [one.grad for one in parameters]
        with torch.no_grad():
            torch._fused_adam_(
                parameters, gradients, self._first, self._second, [], self._steps,
                lr=1e-4, beta1=0.9, beta2=0.999, weight_decay=0.0, eps=1e-8,
                amsgrad=False, maximize=False,
                grad_scale=getattr(self, "grad_scale", None),
                found_inf=getattr(self, "found_inf", None),
            )  # fmt: skip

    def zero_grad(self, set_to_none: bool) -> None:
        for one in self.param_groups[0]["params"]:
            one.grad = None


__all__ = ["Step"]
