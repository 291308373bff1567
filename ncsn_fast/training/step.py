"""What one optimiser step computes, on tensors that stay where they are.

Nothing in it waits for the device or depends on what the host knows about the step: its number,
the learning rate and the rate of the average are tensors. So it can be captured as a graph.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ncsn_fast import noise, ops
from ncsn_fast.device import profiling
from ncsn_fast.device.precision import autocast
from ncsn_fast.distributed.gradients import GradientSum
from ncsn_fast.distributed.group import Group
from ncsn_fast.losses.common import NoiseKey, draw_levels
from ncsn_fast.losses.denoising import loss_weight
from ncsn_fast.models.base import ScoreNetwork, changing_weights
from ncsn_fast.models.score import as_score
from ncsn_fast.training.config import TrainConfig
from ncsn_fast.training.log import LossSums
from ncsn_fast.training.state import CHECKPOINT


class TrainingError(RuntimeError):
    """The loss is no longer finite, or processes that train together have drifted apart."""


def check_trainable(net: ScoreNetwork, config: TrainConfig) -> None:
    """Refuse now a network that could not be trained with these settings.

    Raises:
        ValueError: for another kind of network or of settings, for weights of other types, made in
            inference mode or all frozen, or a network that takes no σ between its levels where
            that is asked for.
    """
    if not isinstance(net, ScoreNetwork):
        raise ValueError(f"a Trainer takes a network of ncsn_fast, got {type(net).__name__}")
    if not isinstance(config, TrainConfig):
        raise ValueError(f"config is a {type(config).__name__}: give nf.TrainConfig(...)")
    for name, parameter in net.named_parameters():
        narrow = parameter.dtype not in (torch.float32, torch.float64)
        if narrow or (parameter.dtype == torch.float64 and config.precision != "fp32"):
            raise ValueError(
                f"the weights are {parameter.dtype} ({name}): training keeps them in float32, "
                "whatever the precision; call net.float()"
            )
        if parameter.is_inference():
            raise ValueError(
                f"the weights ({name}) were made under torch.inference_mode(), so nothing can "
                "change them: build or load the network outside of it"
            )
    if not any(parameter.requires_grad for parameter in net.parameters()):
        raise ValueError("all parameters are frozen: call net.requires_grad_(True)")
    if config.continuous and net.sees_sigma:
        raise ValueError(
            f"continuous = True, but {type(net).__name__} is told the noise level as a "
            "label of its ladder: train it on the ladder, or take NCSNv2, which takes any σ"
        )


@contextlib.contextmanager
def usual_modes() -> Iterator[None]:
    """Whatever the caller has set: gradients, and tensors on the CPU where no device is named."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield


class Piece(NamedTuple):
    """A piece of a step, and whether it can be captured as a graph."""

    run: Callable[[], None]
    captured: bool


class TrainingStep:
    """Loss, gradient, Adam, moving average and sums of the losses of a batch.

    Of several processes each takes its share of the batch, neighbours by their place in it, which
    noise and levels are functions of. The gradients are added up before anything looks at them, so
    that all of them do the same step on the same weights.

    Args:
        net: the network, trained in place.
        average: the network with the averaged weights, or ``net`` itself for none.
        sums: where the losses are added up.
        config: the settings.
        group: the processes that train together.

    Attributes:
        share: the places in the batch that are this process's.
        pieces: what a call does, in order: all of it, or where a sum over processes lies between
            them, the gradients and the update.
        optimizer: Adam, fused, so that the GradScaler of fp16 skips a step without the host.
        scaler: that GradScaler, not enabled in other precisions.
        weights: all tensors that a step changes and a sampler reads.
    """

    def __init__(
        self,
        net: ScoreNetwork,
        average: ScoreNetwork,
        sums: LossSums,
        config: TrainConfig,
        group: Group | None = None,
    ) -> None:
        self._group = group = Group() if group is None else group
        device = net.sigmas.device
        self._net, self._average, self._config, self._sums = net, average, config, sums
        self._score = as_score(net)
        self.optimizer = torch.optim.Adam(
            [parameter for parameter in net.parameters() if parameter.requires_grad],
            lr=torch.tensor(config.learning_rate, dtype=torch.float32, device=device),
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            fused=True,
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
        self._weights: list[Tensor] = list(net.parameters())
        self._averages: list[Tensor] = [] if average is net else list(average.parameters())
        self.weights: list[Tensor] = [*self._weights, *self._averages]
        self._rate: Tensor = self.optimizer.param_groups[0]["lr"]
        floats: Any = {"dtype": torch.float32, "device": device}
        self._share = torch.zeros((), **floats)  # of the new weights in the average
        self.share = group.ranks.share(config.batch_size)
        self._x = torch.zeros(len(self.share), *net.shape, **floats)
        self._ids = torch.arange(self.share.start, self.share.stop, device=device)
        knows = bool(getattr(net, "classes", ()))
        self._classes = torch.zeros_like(self._ids) if knows else None
        self._seed = noise.seed_tensor(config.seed, device)
        self._number = noise.step_tensor(0, device)
        size = min(config.batch_size // config.accumulate, len(self.share))
        self._parts = [slice(i, i + size) for i in range(0, len(self.share), size)]
        self._upstream = torch.full((size,), 1 / config.batch_size, **floats)
        self._losses: tuple[Tensor, Tensor] | None = None  # of the gradients, and their levels
        self.pieces = [Piece(self, True)]
        self._gradients = None
        if not group.is_alone:
            self._gradients = GradientSum(self.optimizer.param_groups[0]["params"], group)
            self.pieces = [
                Piece(self.backward, True),
                Piece(self._gradients.add_up, False),
                Piece(self.update, True),
            ]

    def load(self, x: Tensor, step: int, classes: Tensor | None = None) -> None:
        """Say which step comes: this process's share of its batch, (n, *shape) in model space, and
        its number, from 0; where the network knows classes also those of the share, (n,) int64.

        Everything is filled by kernels, for which the host does not wait.
        """
        config = self._config
        self._x.copy_(x)
        if self._classes is not None and classes is not None:
            self._classes.copy_(classes)
        self._number.fill_(step)
        rising = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
        falling = min(1.0, (config.steps - step) / config.cooldown) if config.cooldown else 1.0
        self._rate.fill_(config.learning_rate * min(rising, falling))
        kept = min(config.ema, (1 + step) / (10 + step)) if config.ema_warmup else config.ema
        self._share.fill_(1 - kept)

    def __call__(self) -> None:
        """Do the step that was loaded. Where it raises, it can be done again."""
        self.backward()
        if self._gradients is not None:
            self._gradients.add_up()
        self.update()

    def backward(self) -> None:
        """The gradients of the mean loss of the batch, as far as they come from this process."""
        self._clear()  # what a step that failed has left
        key: NoiseKey = {"seed": self._seed, "step": self._number, "sample_ids": self._ids}
        sigma, labels = draw_levels(self._net.sigmas, key, continuous=self._config.continuous)
        losses = [self._backward(part, sigma[part], labels[part]) for part in self._parts]
        self._losses = torch.cat(losses), labels
        if self._gradients is not None:
            self._gradients.gather()

    def update(self) -> None:
        """Change weights and average by these gradients, and count the losses."""
        assert self._losses is not None, "backward() comes first"
        try:
            with changing_weights(self._net):
                self._update_weights()
        finally:
            self._clear()
        with changing_weights(self._average):
            self._update_average()
        self._sums.add(*self._losses, self._config.batch_size)
        self._losses = None

    def _clear(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        if self.scaler.is_enabled():  # else it takes the next gradients for unscaled ones
            self.scaler._per_optimizer_states.clear()

    def check_loss(self, step: int) -> None:
        """Look whether the network still learns, by the losses up to a step.

        Raises:
            TrainingError: where it does not.
        """
        loss = float(self._sums.sum)
        if not math.isfinite(loss):
            raise self._diverged(f"the loss is {loss} between steps {self._sums.since} and {step}")
        if self.scaler.is_enabled() and self.scaler.get_scale() < 1:
            # Every step overflowed, was skipped and halved it: nothing is being learned.
            raise self._diverged(
                f"fp16 overflows: its scale is down to {self.scaler.get_scale():g}"
            )

    def check_weights(self, step: int) -> None:
        """Look whether all weights are finite.

        Raises:
            TrainingError: where they are not.
        """
        if not bool(torch.isfinite(torch.stack(torch._foreach_norm(self.weights))).all()):
            raise self._diverged(f"the weights are no longer finite at step {step}")

    def check_same_weights(self, step: int) -> None:
        """Look whether all processes have the same weights, by the sums of their bits.

        Raises:
            TrainingError: where they have not.
        """
        if self._group.is_alone:
            return
        whole = {4: torch.int32, 8: torch.int64}
        bits = [w.detach().view(whole[w.element_size()]).sum() for w in self.weights]
        if not all(self._group.are_same(torch.stack(bits).tolist())):
            raise TrainingError(
                f"the processes have other weights at step {step}, though they did the same: a "
                "network that changes itself, or a device that computes wrongly; what was saved "
                "before stays"
            )

    def _diverged(self, what: str) -> TrainingError:
        kept, out = "", self._config.out
        if out is not None and (Path(out) / CHECKPOINT).exists():
            kept = f". The checkpoint in {out} is from before: resume it with a lower rate"
        return TrainingError(
            f"{what}: lower learning_rate (now {self._config.learning_rate:g}), or look for NaN in "
            f"the network{kept}"
        )

    def moments(self) -> dict[str, dict[str, Tensor]]:
        """Adam's state of each parameter that it has changed, by name: its own tensors."""
        states = {name: self.optimizer.state.get(p) for name, p in self._net.named_parameters()}
        return {name: state for name, state in states.items() if state}

    def take_moments(self, moments: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Go on with such a state of a run before, whose tensors are on any device."""
        for name, parameter in self._net.named_parameters():
            if name in moments:
                state = self.optimizer.state[parameter] = {}
                for key, value in moments[name].items():
                    if key == "step":
                        state[key] = value.to(parameter.device)
                    else:  # in the parameter's memory format, which the file does not keep
                        state[key] = torch.empty_like(parameter, requires_grad=False).copy_(value)

    def _backward(self, part: slice, sigma: Tensor, labels: Tensor) -> Tensor:
        """Add the gradients of a part of the share; return its losses, one each."""
        config, x = self._config, self._x[part]
        told = {} if self._classes is None else {"classes": self._classes[part]}
        key: NoiseKey = {"seed": self._seed, "step": self._number, "sample_ids": self._ids[part]}
        with profiling.mark("forward"):
            perturbed = ops.perturb(x, sigma, **key)
            with autocast(config.precision, x.device):
                n = self._score.normalized(perturbed, sigma, labels, **told)
            losses, gradient = ops.dsm_loss_and_gradient(
                n,
                loss_weight(config.anneal_power, sigma),
                upstream=self.scaler.scale(self._upstream[: len(x)]),
                **key,
            )
        with profiling.mark("backward"):
            n.backward(gradient)
        return losses

    @profiling.mark("optimizer")
    def _update_weights(self) -> None:
        for group in self.optimizer.param_groups:
            # Adam refuses a capture without it, and outside of one warns about it.
            group["capturable"] = self._x.is_cuda and torch.cuda.is_current_stream_capturing()
        if self._config.clip_gradient is not None:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self._weights, self._config.clip_gradient)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    @torch.no_grad()
    def _update_average(self) -> None:
        if not self._averages:
            return
        if self._share.device.type == "cpu":  # one pass, where it is memory that takes the time
            shares = [self._share] * len(self._weights)
            torch._foreach_lerp_(self._averages, self._weights, shares)
        else:
            # lerp with a weight on the device would be a kernel for each parameter.
            gaps = torch._foreach_sub(self._weights, self._averages)
            torch._foreach_mul_(gaps, self._share)
            torch._foreach_add_(self._averages, gaps)


__all__ = ["Piece", "TrainingError", "TrainingStep", "check_trainable", "usual_modes"]
