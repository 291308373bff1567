"""What NCSNScheduler is called with and computes with: checked, compared, limited, scaled; and what
pipelines of diffusers call beside set_timesteps and step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ncsn_fast.compat.diffusers_settings import LEARNED
from ncsn_fast.methods.levels import check_sigmas
from ncsn_fast.models.score import Score
from ncsn_fast.reference import per_sample
from ncsn_fast.support import checks
from ncsn_fast.table import Table

try:
    from diffusers.schedulers.scheduling_sde_ve import SdeVeOutput
except ImportError as error:
    raise ImportError(
        "ncsn_fast.compat.diffusers needs diffusers: pip install diffusers"
    ) from error

Generator = torch.Generator | list[torch.Generator] | None


def visited(levels: Sequence[float] | Tensor, name: str) -> Tensor:
    """Noise levels (K,) to visit, descending, without a 0 at the end.

    Raises:
        ValueError: for others; ``name`` is what they were given as.
    """
    try:
        return check_sigmas(levels[:-1] if len(levels) > 1 and levels[-1] == 0 else levels)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def same(told: Tensor, timestep: float | Tensor) -> Tensor:
    """Where what the network is told is a timestep, or each of several.

    Args:
        told: (...) on the CPU.
        timestep: a number, or a tensor of any shape and dtype with K of them.

    Returns:
        (..., K) by broadcasting, as far as the dtype of the timestep tells.
    """
    if not isinstance(timestep, Tensor):
        timestep = torch.tensor(checks.number("timestep", timestep), dtype=torch.float32)
    given = timestep.detach().flatten().cpu()
    if not len(given):
        raise ValueError("timestep is an empty tensor: give one of scheduler.timesteps")
    given = given if given.is_floating_point() else given.double()
    return told.to(given.dtype) == given


def text(timestep: float | Tensor) -> str:
    """A timestep, or several, in a message."""
    values = timestep.flatten().tolist() if isinstance(timestep, Tensor) else [timestep]
    return f"{values[0]:g}" if len(set(values)) == 1 else f"{values!s:.60}"


def check_counted(told: Tensor, number: int) -> None:
    """Refuse timesteps or labels that are not whole numbers from 0 to ``number`` - 1, on a CPU.

    Raises:
        ValueError: for these.
    """
    if told.device.type != "cpu":  # it would have to be waited for
        return
    wrong = (told < 0) | (told >= number) | (told != told.long())
    if bool(wrong.any()):
        raise ValueError(
            f"timestep = {float(told[wrong].flatten()[0]):g}: the network was trained on the whole "
            f"numbers from 0 to {number - 1}"
        )


def check_state(x: Tensor, shape: torch.Size | None) -> None:
    """Refuse a state that is not of the shape that the chain's had so far.

    Raises:
        ValueError: for that.
    """
    if shape is not None and x.shape != shape:
        raise ValueError(
            f"sample has shape {tuple(x.shape)}, that of this chain {tuple(shape)}: call "
            "set_timesteps() before the next chain"
        )


def network_output(output: Tensor, sample: Tensor, variance_type: str | None) -> Tensor:
    """The network's output, without a second half that predicts the variance.

    Raises:
        ValueError: unless it and the state are floating-point tensors of one shape on one device.
    """
    for name, value in (("model_output", output), ("sample", sample)):
        if not isinstance(value, Tensor) or not value.is_floating_point() or not value.ndim:
            raise ValueError(f"{name} has to be a floating-point tensor (B, *shape)")
    doubled = (*sample.shape[:1], *(2 * size for size in sample.shape[1:2]), *sample.shape[2:])
    has_more = output.shape == doubled != sample.shape
    if has_more and variance_type in LEARNED:
        output = output[:, : sample.shape[1]]
    if output.shape != sample.shape or output.device != sample.device:
        raise ValueError(
            f"model_output is {tuple(output.shape)} on {output.device}, sample "
            f"{tuple(sample.shape)} on {sample.device}: they have one shape, on one device"
            + ('; where its second half is a variance give variance_type="learned"' * has_more)
        )
    return output


def limited(
    x: Tensor, output: Tensor, sigma: float, score: Score, config: Mapping[str, Any]
) -> Tensor:
    """x₀ (B, *shape) as the network predicts it, limited as DDPMScheduler does.

    Args:
        x: (B, *shape) float32, the state, scaled where the settings say so.
        output: (B, *shape) of the network there.
        sigma: the noise level.
        score: what the network is.
        config: the scheduler's settings.
    """
    level = torch.tensor(sigma, dtype=torch.float64)
    p, q = (float(one) for one in score.coefficients(level))
    scale = float(score.c_in(level)) if config["scaled_state"] else 1.0
    clean = (1 + sigma * p) / scale * x + sigma * q * output.float()  # x + σ·n
    if not config["thresholding"]:
        most = config["clip_sample_range"]
        return clean.clamp(-most, most)
    ratio, most = config["dynamic_thresholding_ratio"], config["sample_max_value"]
    bound = clean.flatten(1).abs().quantile(ratio, dim=1).clamp(min=1).clamp(max=most)
    bound = per_sample(bound, clean)
    return clean.clamp(-bound, bound) / bound


def scaled(table: Table) -> Table:
    """The table of c_in·x in place of x; of x itself after the last row."""
    old = np.array(table.c_in)
    new = np.append(old[1:], 1.0)
    columns = {
        "a": np.array(table.a) * new / old,
        "b": np.array(table.b) * new,
        "c": np.array(table.c) * new,
        "d": np.array(table.d) * new,
        "e": np.array(table.e) / old,
        "c_in": np.ones_like(old),
    }
    return replace(table, **{name: tuple(column.tolist()) for name, column in columns.items()})


def check_generators(generator: object, number: int) -> None:
    """Refuse what are no generators, and another number of them.

    Raises:
        ValueError: for these.
    """
    several = isinstance(generator, (list, tuple))
    each = list(generator) if isinstance(generator, (list, tuple)) else [generator]
    if not all(isinstance(one, torch.Generator) for one in each):
        raise ValueError("generator has to be a torch.Generator, or a list with one per sample")
    if several and len(each) != number:
        raise ValueError(
            f"generator is a list of {len(each)}, the samples are {number}: give one for each"
        )


class CorrectsAndPredicts:
    """The methods that ScoreSdeVePipeline calls, of tables with as many rows at each level."""

    timesteps: Tensor
    sigmas: Tensor
    _table: Table
    if TYPE_CHECKING:  # NCSNScheduler has them
        config: Any

        def set_timesteps(self, num_inference_steps: int | None = None) -> None: ...

        def step(self, *_: Any, **__: Any) -> Any: ...

    def set_sigmas(self, num_inference_steps: int) -> None:
        """One timestep and σ for each noise level, of so many, where set_timesteps has one a row.

        Raises:
            ValueError: where the method does not go through ``correct_steps`` rows, the
                corrector's, and one more at each level.
        """
        group = 1 + int(getattr(self.config, "correct_steps", 0))
        self.set_timesteps(num_inference_steps * group)
        levels = self._table.sigma[::group]
        if group == 1 or self._table.sigma != tuple(one for one in levels for _ in range(group)):
            raise ValueError(
                f"method = {self.config.method!r}: ScoreSdeVePipeline corrects before it predicts, "
                "as predictor_corrector does of NCSNScheduler.from_config(its scheduler.config); "
                "other methods run in DDPMPipeline's loop, set_timesteps and step"
            )
        self.timesteps, self.sigmas = self.timesteps[::group], self.sigmas[:-1][::group]

    def step_correct(
        self,
        model_output: Tensor,
        sample: Tensor,
        generator: Generator = None,
        return_dict: bool = True,
    ) -> Any:
        """The next row, one of the corrector; arguments and result as of ``step``."""
        return self.step(model_output, None, sample, generator, return_dict)

    def step_pred(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: Generator = None,
        return_dict: bool = True,
    ) -> Any:
        """The next row, the predictor's; arguments as of ``step``.

        Returns:
            The new state as ``prev_sample`` and as ``prev_sample_mean``, which is looked at after
            the last row alone, where both are one: that adds no noise.
        """
        (new,) = self.step(model_output, timestep, sample, generator, return_dict=False)
        return SdeVeOutput(prev_sample=new, prev_sample_mean=new) if return_dict else (new, new)


def refuse_of_ddim(given: Mapping[str, object]) -> None:
    """Refuse what DDIMPipeline may pass to step, but for what has no effect.

    Raises:
        ValueError: for noise and clipping as DDIM has them.
        TypeError: for another name.
    """
    for name, value in given.items():
        if name not in ("eta", "use_clipped_model_output"):
            raise TypeError(f"step() got an unexpected keyword argument {name!r}")
        if not isinstance(value, (bool, int, float, type(None))) or value:
            raise ValueError(
                f"{name} = {value!r:.80}: that is DDIM's; how much noise is added, and how x0 is "
                "limited, say method and clip_sample of the scheduler"
            )


__all__ = [
    "CorrectsAndPredicts",
    "check_counted",
    "check_generators",
    "check_state",
    "limited",
    "network_output",
    "refuse_of_ddim",
    "same",
    "scaled",
    "text",
    "visited",
]
