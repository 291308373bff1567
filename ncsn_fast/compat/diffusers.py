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

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ncsn_fast import noise as noise_source
from ncsn_fast import ops
from ncsn_fast.compat import diffusers_configs as configs
from ncsn_fast.compat import diffusers_inputs as inputs
from ncsn_fast.compat import diffusers_settings as settings_of
from ncsn_fast.compat.diffusers_settings import NO_BETAS
from ncsn_fast.methods.by_name import ANNEALED_LANGEVIN, make_table, table_for
from ncsn_fast.methods.spacings import AUTO
from ncsn_fast.reference import per_sample
from ncsn_fast.support import checks
from ncsn_fast.table import Table

try:
    from diffusers.configuration_utils import ConfigMixin, register_to_config
    from diffusers.schedulers.scheduling_utils import (
        SCHEDULER_CONFIG_NAME,
        KarrasDiffusionSchedulers,
        SchedulerMixin,
        SchedulerOutput,
    )
    from diffusers.utils.torch_utils import randn_tensor
except ImportError as error:
    raise ImportError(
        "ncsn_fast.compat.diffusers needs diffusers: pip install diffusers"
    ) from error


class NCSNScheduler(inputs.CorrectsAndPredicts, SchedulerMixin, ConfigMixin):
    """Annealed Langevin dynamics, or any other method of this package, on x = x₀ + σz.

    It keeps the state of one chain: two pipelines that run at once need one each, made by
    ``NCSNScheduler.from_config(scheduler.config)``; a step that is not the next one is refused.

    Args:
        num_train_timesteps: L, number of noise levels that the network was trained on.
        sigma_max, sigma_min: σ₁ and σ_L of L geometric levels.
        sigmas: the levels themselves, (L,) descending, in place of these three.
        prediction_type: what the network returns, "epsilon", "sample" (the clean one),
            "v_prediction" (with sigma_data = 1), "score", or "normalized_score" (σ·score).
        timestep_type: how it is told the noise level: "timestep", the index counted from the
            smallest level (int64), "label", that from the largest (NCSN), "sigma", "log_sigma" or
            "c_noise" (ln σ / 4). EulerDiscreteScheduler's "discrete" and "continuous" are
            "timestep" and, with "v_prediction", "c_noise".
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
        beta_start, beta_end, beta_schedule, trained_betas, rescale_betas_zero_snr: as DDPMScheduler
            has them, in place of noise levels: those are then √((1-ᾱ)/ᾱ) from the last timestep to
            the first, and sigma_data is 1. The schedule "no betas" has none.
        sigma_schedule: "karras" or "exponential" for a network of EDM's schedulers: the levels are
            spaced so, and prediction_type is what those mean by it.
        clip_sample, clip_sample_range, thresholding, dynamic_thresholding_ratio, sample_max_value:
            how each prediction of x₀ is limited, as by DDPMScheduler; the score follows it.
        variance_type: where it is "learned" or "learned_range" the network's output has a second
            half, which is left out.

    Raises:
        ValueError: for settings out of range; the message says which.
    """

    config_name: Any = SCHEDULER_CONFIG_NAME
    order = 1
    # Whose settings it keeps for the way back.
    _compatibles = [  # noqa: RUF012 - as diffusers has it
        *(scheduler.name for scheduler in KarrasDiffusionSchedulers),
        *("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler", "ScoreSdeVeScheduler"),
        *("LCMScheduler", "TCDScheduler", "RePaintScheduler", "DDIMInverseScheduler"),
    ]
    _rows: Tensor
    _history: Tensor | None
    _shape: torch.Size | None
    _begin_index: int | None
    _step_index: int | None
    _scaled_row: int | None  # at which scale_model_input was last asked

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
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = NO_BETAS,
        trained_betas: list[float] | None = None,
        rescale_betas_zero_snr: bool = False,
        sigma_schedule: str | None = None,
        clip_sample: bool = False,
        clip_sample_range: float = 1.0,
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0,
        variance_type: str | None = "fixed_small",
    ) -> None:
        left_out = set(self.config.get("_use_default_values", ()))
        # Nothing is a default any more: another class would put its own default in its place.
        self.register_to_config(
            **settings_of.checked(self.config, left_out), _use_default_values=[]
        )
        self._ladder = settings_of.ladder(self.config)
        self._score = settings_of.score(self.config, self._ladder, _no_network)
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
        scaled_state, so that every pipeline of such networks takes it; what EDM's schedulers and
        ScoreSdeVeScheduler say is taken likewise. The configuration keeps all of it, so that
        from_config of another class gives back what was there. What is not followed, such as
        timestep_spacing, is named in a warning, once.

        Args:
            config: a configuration, as a dict.
            return_unused_kwargs: whether to return what is no setting too, in place of refusing it.
            kwargs: settings in place of those there.

        Raises:
            ValueError: for settings that are unknown or out of range, and for the configuration of
                a scheduler from which no noise levels follow, without sigmas.
        """
        settings = {**configs.taken_over(config, kwargs, not return_unused_kwargs), **kwargs}
        # The defaults of another class say what its network is, but not how to sample elsewhere.
        left_out = configs.unchosen(config)
        hidden = left_out - settings_of.OWN - configs.ASKED_FOR | {"_use_default_values"}
        kept = {name: value for name, value in config.items() if name not in hidden}
        made: Any = super().from_config(kept, return_unused_kwargs, **settings)
        if configs.LIMIT in left_out - kwargs.keys():  # each class puts its own default there
            scheduler = made[0] if return_unused_kwargs else made
            scheduler.register_to_config(_use_default_values=[configs.LIMIT])
        return made

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
        """Say at which row the chain begins, ``begin_index``.

        Raises:
            ValueError: unless it is one of the chain's, or their number.
        """
        if checks.count("begin_index", begin_index, least=0) > len(self._table):
            raise ValueError(f"begin_index = {begin_index}: this chain has {len(self._table)} rows")
        self._begin_index = begin_index

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        timesteps: Any = None,
        sigmas: Any = None,
    ) -> None:
        """Make the table, ``timesteps`` and ``sigmas`` of a new chain.

        Args:
            num_inference_steps: network evaluations, at most: the method visits as many noise
                levels as they pay for, and a number that pays for more than there are in the ladder
                means all of them. None: all of them.
            device: where ``timesteps`` are wanted.
            timesteps: the levels to visit by what the network is told there, in place of a number.
            sigmas: the levels to visit, descending; a 0 at the end is left out, methods go there.

        Raises:
            ValueError: for too few steps, and for settings that the method refuses.
        """
        given = {"num_inference_steps": num_inference_steps, "timesteps": timesteps}
        named = [name for name, one in {**given, "sigmas": sigmas}.items() if one is not None]
        if len(named) > 1:
            raise ValueError(f"{' and '.join(named)} given: each says what is visited, give one")
        if num_inference_steps is not None:
            checks.count("num_inference_steps", num_inference_steps)
        levels = self._ladder
        if sigmas is not None:
            levels = inputs.visited(settings_of.numbers("sigmas", sigmas), "sigmas")
        elif timesteps is not None:
            told = settings_of.numbers("timesteps", timesteps)
            levels = inputs.visited(self._sigma_of(torch.tensor(told)), "timesteps")
        settings = ("step_size", "steps_per_level", "denoise", "spacing", "rho", "settings")
        try:
            table = table_for(
                self.config["method"],
                levels,
                num_inference_steps,
                **{name: self.config[name] for name in settings},
                only_levels=self._score.only_levels,
                name="num_inference_steps",
            )
        except TypeError as error:  # of a kind that the method cannot count with
            raise ValueError(f"settings = {self.config['settings']!r:.200}: {error}") from error
        self._use(table, "cpu" if device is None else device)
        self.num_inference_steps = len(self._table)
        self.seed = noise_source.chosen_seed(self.config["seed"])

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor | None = None) -> Tensor:
        """What the network is shown of a ``sample`` at ``timestep``, c_in·x, (B, *shape) both."""
        if self.seed is None and timestep is not None:  # no chain yet, but the levels of training
            row = self._find(timestep)
        else:
            row = self._scaled_row = self._row(timestep)
        factor = self._folded.c_in[row]
        return sample if factor == 1 else factor * sample

    @torch.no_grad()
    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor | None,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
        **of_ddim: object,
    ) -> SchedulerOutput | tuple[Tensor]:
        """The next row of the table.

        Args:
            model_output: (B, *shape), the network's output at ``scale_model_input(sample)``.
            timestep: of ``timesteps``, the next one. The first may be anywhere; None: the next.
            sample: (B, *shape), the state.
            generator: of torch's noise, or one per sample. None: this package's noise, by the seed
                (attribute ``seed``), the place in the batch, and the row.
            return_dict: whether to return a SchedulerOutput or a tuple.
            of_ddim: what DDIMPipeline passes besides, refused where it would have an effect.

        Returns:
            The new state as ``prev_sample``, computed in float32 and returned in the dtype of
            ``model_output``. (float16 is coarse at the small noise levels: keep the network
            in float32 and use autocast.)

        Raises:
            ValueError: before set_timesteps, after the last row, for another timestep than the
                next one, and for states and outputs that do not go together.
        """
        if self.seed is None:
            raise ValueError("no timesteps: call set_timesteps() before step()")
        inputs.refuse_of_ddim(of_ddim)
        output = inputs.network_output(model_output, sample, self.config["variance_type"])
        index = self._row(timestep)
        if self._scaled_row != index and self._folded.c_in[index] != 1:
            configs.say(configs.NOT_SCALED)
        x = sample.float()
        inputs.check_state(x, self._shape)
        if self._limits:
            sigma, config = self._table.sigma[index], self.config
            output = inputs.limited(x, output, sigma, self._score, config)
        if self._rows.device != x.device:
            self._rows = self._rows.to(x.device)
        if self._table.has_history and self._history is None:
            self._history = torch.zeros_like(x)
        z = None
        if generator is not None and self._table.d[index]:
            inputs.check_generators(generator, len(x))
            z = randn_tensor(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        new = ops.sampler_update(
            x,
            output,
            self._rows[index],
            seed=self.seed,
            step=index,
            sample_ids=torch.arange(len(x), device=x.device),
            add_noise=z is None and self._table.d[index] != 0,
            z=z,
            history=self._history,
        )
        self._history, self._step_index, self._shape = new.history, index + 1, x.shape
        state = new.x.to(model_output.dtype)
        return SchedulerOutput(prev_sample=state) if return_dict else (state,)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x₀ + σz for training, or to begin a chain at a later timestep; scaled, where states are.

        Args:
            original_samples, noise: (B, *shape), x₀ and z.
            timesteps: (B,) or (), what the network is told, of ``timesteps`` or of its training.
                Of a chain that has been begun, or told where it begins, the next one is that of the
                next row, also where it lies between two levels of the training.

        Raises:
            ValueError: for timesteps that the training does not have, on a CPU.
        """
        row = self._begin_index if self._step_index is None else self._step_index
        if row is not None and row < len(self._table) and self._tells(timesteps, row):
            sigma = self.sigmas[row].to(original_samples.device)
        else:
            sigma = self._sigma_of(timesteps.to(original_samples.device))
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
        kind = self._score.condition
        if kind in ("label", "timestep"):
            inputs.check_counted(told, len(ladder))
            return (ladder if kind == "label" else ladder.flip(0))[told.long()]
        return {"sigma": told, "log_sigma": told.exp(), "c_noise": (4 * told).exp()}[str(kind)]

    def _row(self, timestep: float | Tensor | None) -> int:
        """The row of the table that comes next, which the timestep has to be of."""
        if self._step_index is None:
            row = self._begin_index
            if row is None:
                row = 0 if timestep is None else self._find(timestep)
            self._forget_before(row)
            self._step_index = row
        row = self._step_index
        if row >= len(self._table):
            raise ValueError(
                f"all {len(self._table)} steps are done: call set_timesteps() before the next chain"
            )
        if timestep is not None and not self._tells(timestep, row):
            raise ValueError(
                f"timestep = {inputs.text(timestep)}, but the next one of this chain is "
                f"{float(self._told[row]):g}: steps follow each other, and a scheduler runs one "
                "chain at a time. Give each pipeline its own, "
                "NCSNScheduler.from_config(scheduler.config), or call set_timesteps() to begin anew"
            )
        return row

    def _tells(self, timestep: float | Tensor, row: int) -> bool:
        """Whether a row has this timestep, or all these."""
        if isinstance(timestep, Tensor) and timestep.numel() == 1:
            own = timestep.data_ptr() == self._all_timesteps[row].data_ptr()
            if own:  # a device need not be waited for
                return True
        return bool(inputs.same(self._told[row], timestep).all())

    def _find(self, timestep: float | Tensor) -> int:
        """The first row with this timestep."""
        rows = inputs.same(self._told[:, None], timestep).all(1).nonzero()
        if not len(rows):
            raise ValueError(
                f"timestep = {inputs.text(timestep)} is none of this chain: give one of "
                "scheduler.timesteps, after set_timesteps()"
            )
        return int(rows[0])

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

    def _use(self, table: Table, device: torch.device | str) -> None:
        """Begin at the top of a table."""
        told = self._score.conditions(table, "cpu")
        assert told is not None  # every timestep_type tells something
        self._told = told
        self.timesteps = self._all_timesteps = told.to(device)
        self.sigmas = torch.tensor((*table.sigma, 0.0))
        self._fold(table, device)
        self._history, self._shape = None, None
        self._begin_index = self._step_index = self._scaled_row = None

    def _fold(self, table: Table, device: torch.device | str) -> None:
        """Keep a table, and the one that takes what enters the update: x₀ where it is limited."""
        self._limits = self.config["clip_sample"] or self.config["thresholding"]
        score = replace(self._score, kind="denoiser") if self._limits else self._score
        self._table, self._folded = table, score.fold(table)
        if self.config["scaled_state"]:
            self._folded = inputs.scaled(self._folded)
        self._rows = self._folded.rows(device)


def _no_network(*_: Any) -> Tensor:
    raise RuntimeError("a scheduler is given the network's output, it does not call it")


__all__ = ["NCSNScheduler"]
