"""A scheduler for diffusers that runs this package's methods: ``NCSNScheduler``.

from ncsn_fast.compat.diffusers import NCSNScheduler

A method is a table with one row per network evaluation, so the loop is the usual one:

    scheduler.set_timesteps(steps, device=device)
    x = torch.randn(shape) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        output = unet(scheduler.scale_model_input(x, t), t).sample
        x = scheduler.step(output, t, x, generator=generator).prev_sample
"""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ncsn_fast import noise, ops
from ncsn_fast.methods.by_name import ANNEALED_LANGEVIN, METHODS, make_table, table_for
from ncsn_fast.methods.levels import check_sigmas, geometric_sigmas
from ncsn_fast.methods.spacings import AUTO
from ncsn_fast.models.score import Score
from ncsn_fast.reference import per_sample
from ncsn_fast.support import checks
from ncsn_fast.table import Table

try:
    from diffusers import DDPMScheduler
    from diffusers.configuration_utils import ConfigMixin, register_to_config
    from diffusers.schedulers.scheduling_utils import (
        SCHEDULER_CONFIG_NAME,
        SchedulerMixin,
        SchedulerOutput,
    )
    from diffusers.utils.torch_utils import randn_tensor
except ImportError as error:
    raise ImportError(
        "ncsn_fast.compat.diffusers needs diffusers: pip install diffusers"
    ) from error

# diffusers' names of what a network predicts.
PREDICTIONS = {
    "epsilon": "epsilon",
    "sample": "denoiser",
    "v_prediction": "v",
    "score": "score",
    "normalized_score": "normalized",
}
TIMESTEPS = ("timestep", "label", "sigma", "log_sigma", "c_noise")


class NCSNScheduler(SchedulerMixin, ConfigMixin):
    """Annealed Langevin dynamics, or any other method of this package, on x = x₀ + σz.

    Args:
        num_train_timesteps: L, number of noise levels that the network was trained on.
        sigma_max, sigma_min: σ₁ and σ_L of L geometric levels.
        sigmas: the levels themselves, (L,) descending, in place of these three. Those of a network
            trained on ᾱ_t are √((1-ᾱ)/ᾱ) from the last t to the first, with sigma_data = 1.
        prediction_type: what the network returns, "epsilon", "sample" (the clean one),
            "v_prediction" (with sigma_data = 1), "score", or "normalized_score" (σ·score).
        timestep_type: how it is told the noise level: "timestep", the index counted from the
            smallest level (int64), "label", that from the largest (NCSN), "sigma", "log_sigma" or
            "c_noise" (ln σ / 4).
        sigma_data: where given the network sees x/√(σ² + σ_data²), by ``scale_model_input``.
        scaled_state: whether the loop's state is that input itself, of unit variance, as it is for
            DDPM and DDIM: ``scale_model_input`` has nothing to do, and pipelines that do not call
            it (DDPMPipeline) are right too. The last step returns x.
        method: a name of ``ncsn_fast.methods.METHODS``.
        step_size: ε of annealed Langevin dynamics; None computes it from the ratio of the two
            smallest levels that are visited (Technique 4 of Song & Ermon 2020).
        steps_per_level: T of annealed Langevin dynamics, k of consistent annealed sampling.
        denoise: whether a last step of theirs removes the noise of the smallest level.
        spacing, rho: which levels are visited where ``num_inference_steps`` is not for all, see
            :func:`ncsn_fast.methods.spacings.noise_levels`. A level between two trained ones is
            told as the nearer "timestep" or "label".
        settings: others of the method, such as {"snr": 0.16} of predictor-corrector.
        seed: of the noise where ``step`` is given no generator; None draws one from torch's default
            generator at set_timesteps.

    Raises:
        ValueError: for settings out of range; the message says which.
    """

    config_name: Any = SCHEDULER_CONFIG_NAME
    order = 1
    _rows: Tensor
    _history: Tensor | None
    _begin_index: int | None
    _step_index: int | None

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 232,
        sigma_max: float = 50.0,
        sigma_min: float = 0.01,
        sigmas: list[float] | None = None,
        prediction_type: str = "epsilon",
        timestep_type: str = "timestep",
        sigma_data: float | None = None,
        scaled_state: bool = False,
        method: str = ANNEALED_LANGEVIN,
        step_size: float | None = None,
        steps_per_level: int = 5,
        denoise: bool = True,
        spacing: str = AUTO,
        rho: float = 7.0,
        settings: dict[str, Any] | None = None,
        seed: int | None = None,
    ) -> None:
        checks.choice("prediction_type", prediction_type, tuple(PREDICTIONS), "what it returns")
        checks.choice("timestep_type", timestep_type, TIMESTEPS, "how it is told the noise level")
        checks.choice("method", method, tuple(METHODS), "the methods with a name")
        if scaled_state and sigma_data is None:
            raise ValueError("scaled_state needs the scale: give sigma_data, 1 for VP / DDPM")
        if seed is not None:
            noise.check_seed(seed)
        self._ladder = (
            geometric_sigmas(sigma_max, sigma_min, num_train_timesteps)
            if sigmas is None
            else check_sigmas(sigmas)
        )
        self._score = Score(
            _no_network,
            PREDICTIONS[prediction_type],
            timestep_type,
            self._ladder,
            sigma_data=sigma_data,
            quantize=timestep_type in ("timestep", "label"),
        )
        self.seed: int | None = None
        self.num_inference_steps: int | None = None
        # Before set_timesteps these are the levels that the network was trained on.
        self._use(Table.of(self._ladder.double().numpy()), "cpu")

    @classmethod
    def from_config(
        cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any
    ) -> Any:
        """As in diffusers: NCSNScheduler.from_config(pipeline.scheduler.config, method="heun").

        The betas of a scheduler of DDPM's kind become noise levels, with sigma_data = 1 and
        scaled_state, so that every pipeline of such networks takes it. Of a scheduler without betas
        nothing is taken over.

        Raises:
            ValueError: for the configuration of a scheduler that has no betas, without sigmas.
        """
        own = set(inspect.signature(cls.__init__).parameters)
        others = {name for name in config or () if not name.startswith("_")} - own
        if others:
            config, kwargs = {}, {**_from_betas(config, others, "sigmas" in kwargs), **kwargs}
        return super().from_config(config, return_unused_kwargs, **kwargs)

    def __len__(self) -> int:
        return len(self._ladder)

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the initial state: σ₁, or 1 for a scaled one."""
        return 1.0 if self.config["scaled_state"] else float(self.sigmas[0])

    @property
    def step_index(self) -> int | None:
        """The row of the next ``step``; None before the first."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """The row at which the chain begins, where a pipeline has said so."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Say at which row the chain begins."""
        self._begin_index = begin_index

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: torch.device | str | None = None
    ) -> None:
        """Make the table, ``timesteps`` and ``sigmas`` of a new chain.

        Args:
            num_inference_steps: network evaluations, at most: the method visits as many noise
                levels as they pay for, and a number that pays for more than there are in the ladder
                means all of them. None: all of them.
            device: where ``timesteps`` are wanted.

        Raises:
            ValueError: for too few steps, and for settings that the method refuses.
        """
        if num_inference_steps is not None:
            checks.count("num_inference_steps", num_inference_steps)
        given = ("step_size", "steps_per_level", "denoise", "spacing", "rho", "settings")
        table = table_for(
            self.config["method"],
            self._ladder,
            num_inference_steps,
            **{name: self.config[name] for name in given},
            only_levels=self._score.only_levels,
            name="num_inference_steps",
        )
        self._use(table, "cpu" if device is None else device)
        self.num_inference_steps = len(self._table)
        self.seed = noise.chosen_seed(self.config["seed"])

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor | None = None) -> Tensor:
        """What the network is shown of a state (B, *shape): c_in·x."""
        factor = self._folded.c_in[self._row(timestep)]
        return sample if factor == 1 else factor * sample

    @torch.no_grad()
    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor]:
        """The next row of the table.

        Args:
            model_output: (B, *shape), the network's output at ``scale_model_input(sample)``.
            timestep: of ``timesteps``. It counts in the first step only, which may begin anywhere;
                after that the rows follow each other.
            sample: (B, *shape), the state.
            generator: of torch's noise, or one per sample. None: this package's noise, by the seed
                (attribute ``seed``), the place in the batch, and the row.
            return_dict: whether to return a SchedulerOutput or a tuple.

        Returns:
            The new state as ``prev_sample``, computed in float32 and returned in the dtype of
            ``model_output``. (float16 is coarse at the small noise levels: keep the network
            in float32 and use autocast.)

        Raises:
            ValueError: before set_timesteps, and after the last row.
        """
        if self.seed is None:
            raise ValueError("no timesteps: call set_timesteps() before step()")
        index = self._row(timestep)
        if index >= len(self._table):
            raise ValueError(
                f"all {len(self._table)} steps are done: call set_timesteps() before the next chain"
            )
        x = sample.float()
        if self._rows.device != x.device:
            self._rows = self._rows.to(x.device)
        if self._table.has_history and self._history is None:
            self._history = torch.zeros_like(x)
        z = None
        if generator is not None and self._table.d[index]:
            z = randn_tensor(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        new = ops.sampler_update(
            x,
            model_output,
            self._rows[index],
            seed=self.seed,
            step=index,
            sample_ids=torch.arange(len(x), device=x.device),
            add_noise=z is None and self._table.d[index] != 0,
            z=z,
            history=self._history,
        )
        self._history, self._step_index = new.history, index + 1
        state = new.x.to(model_output.dtype)
        return SchedulerOutput(prev_sample=state) if return_dict else (state,)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x₀ + σz for training, or to begin a chain at a later timestep; scaled, where states are.

        Args:
            original_samples, noise: (B, *shape), x₀ and z.
            timesteps: (B,) or (), what the network is told, of ``timesteps`` or of its training.
                It does not count once a pipeline has said where the chain begins or has made a
                step: σ is that of the next row.
        """
        row = self._begin_index if self._step_index is None else self._step_index
        if self._begin_index is None or row is None:
            sigma = self._sigma_of(timesteps.to(original_samples.device))
        else:
            sigma = self.sigmas[row].to(original_samples.device)
        scale = torch.ones_like(sigma)
        if self.config["scaled_state"]:
            scale = torch.as_tensor(self._score.c_in(sigma)).where(sigma > 0, scale)
        x, z = (
            per_sample(factor, part).to(original_samples.dtype) * part
            for factor, part in ((scale, original_samples), (scale * sigma, noise))
        )
        return x + z

    def _sigma_of(self, told: Tensor) -> Tensor:
        """The noise level that the network is told so."""
        ladder = self._ladder.to(told.device)
        kind = self.config["timestep_type"]
        if kind == "label":
            return ladder[told.long()]
        if kind == "timestep":
            return ladder.flip(0)[told.long()]
        return {"sigma": told, "log_sigma": told.exp(), "c_noise": (4 * told).exp()}[kind]

    def _row(self, timestep: float | Tensor | None) -> int:
        """The row of the table that comes next; a timestep counts at the beginning only."""
        if self._step_index is None:
            row = self._begin_index
            if row is None:
                row = 0 if timestep is None else self._find(timestep)
            self._forget_before(row)
            self._step_index = row
        return self._step_index

    def _forget_before(self, row: int) -> None:
        """Make a table that needs no history of the rows before this one, where it does."""
        if row >= len(self._table) or self._table.c[row] == 0:
            return
        rest = self._table.sigma[row:]
        levels = torch.tensor(sorted(set(rest), reverse=True), dtype=torch.float64)
        settings = dict(self.config["settings"] or {})
        fresh = make_table(self.config["method"], levels, settings, {})
        kept = self._table[:row]
        # Heun's second row of a step has no place in them: the state stays what it is.
        if idle := len(rest) - len(fresh):
            kept += Table.of(rest[:idle])
        self._fold(kept + fresh, self._rows.device)

    def _find(self, timestep: float | Tensor) -> int:
        """The first row with this timestep."""
        wanted = torch.as_tensor(timestep, device=self.timesteps.device)
        rows = (self.timesteps == wanted.to(self.timesteps.dtype)).nonzero()
        if not len(rows):
            raise ValueError(
                f"timestep = {float(wanted):g} is none of this chain: give one of "
                "scheduler.timesteps, after set_timesteps()"
            )
        return int(rows[0])

    def _use(self, table: Table, device: torch.device | str) -> None:
        """Begin at the top of a table."""
        told = self._score.conditions(table, device)
        assert told is not None  # every timestep_type tells something
        self.timesteps = told
        self.sigmas = torch.tensor((*table.sigma, 0.0))
        self._fold(table, device)
        self._history = None
        self._begin_index = None
        self._step_index = None

    def _fold(self, table: Table, device: torch.device | str) -> None:
        self._table, self._folded = table, self._score.fold(table)
        if self.config["scaled_state"]:
            self._folded = _scaled(self._folded)
        self._rows = self._folded.rows(device)


def _scaled(table: Table) -> Table:
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


def _from_betas(config: Any, others: set[str], levels_given: bool) -> dict[str, Any]:
    """Settings from those of another project's scheduler, ``others`` being names that say so."""
    if "beta_schedule" not in others:
        if levels_given:
            return {}
        raise ValueError(
            f"the configuration of another scheduler, with {sorted(others)}, names no betas from "
            "which noise levels would follow: give sigmas=, and prediction_type=, timestep_type= "
            "and sigma_data= as the network needs them"
        )
    alphas = DDPMScheduler.from_config(_known(config)).alphas_cumprod.double()
    # With no signal left at the last timestep σ would be infinite; twice the one before will do.
    alphas = alphas.where(alphas > 0, alphas[alphas > 0].min() / 4)
    continuous = config.get("timestep_type") == "continuous"
    prediction = config.get("prediction_type", "epsilon")
    return {
        "num_train_timesteps": len(alphas),
        "sigmas": ((1 - alphas) / alphas).sqrt().flip(0).tolist(),
        "sigma_data": 1.0,
        "scaled_state": True,
        "prediction_type": prediction,
        "timestep_type": "c_noise" if continuous and prediction == "v_prediction" else "timestep",
    }


def _known(config: Any) -> dict[str, Any]:
    """What DDPMScheduler knows of a configuration; the rest would be warned of."""
    takes = inspect.signature(DDPMScheduler.__init__).parameters
    return {name: value for name, value in config.items() if name in takes}


def _no_network(*_: Any) -> Tensor:
    raise RuntimeError("a scheduler is given the network's output, it does not call it")


__all__ = ["NCSNScheduler"]
