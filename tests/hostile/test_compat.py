"""Wrong arguments of the functions that have other projects' signatures are refused by name."""

import math

import numpy as np
import pytest
import torch

from ncsn_fast.compat import k_diffusion, ncsn, ncsnv2

try:
    from ncsn_fast.compat.diffusers import NCSNScheduler
except ImportError:
    NCSNScheduler = None

SIGMAS = [2.0, 1.0, 0.5]


def score(x, labels):
    return -x


def denoiser(x, sigma):
    return 0 * x


NO_NUMBER = ["a", None, [1.0], math.nan, True, 1j, object(), np.ones(2)]
BAD = {
    "states": [
        *("x", None, 3.0, [[0.0]], np.ones((2, 3)), torch.ones(2, 3, dtype=torch.int64)),
        *(torch.ones(3), torch.tensor(1.0), torch.ones(0, 3), torch.full((2, 3), math.nan)),
        torch.ones(2, 3, dtype=torch.complex64),
    ],
    "network": [None, 5, "net", torch.ones(2)],
    "levels": [
        *(None, "abc", {}, {1.0: 2}, {3, 2}, 7, object(), [], [[1.0]], [1.0, "a"], ["2.0", "1.0"]),
        *([1.0, 2.0], [2.0, 1.0, 1.0], [2.0, -1.0], [math.inf, 1.0], [math.nan], [2.0, 0.0, 0.0]),
        *(torch.tensor(3.0), torch.ones(2, 2), np.array([2 + 1j, 1]), [1e-60, 1e-61, 0]),
    ],
    "count": ["2", 2.5, 0, -1, None, True, [3], math.nan, np.ones(2), 1j],
    "step": [*NO_NUMBER, 0, -1e-3, math.inf, 0.5],
    "churn": [*NO_NUMBER, -1.0],
    "number": NO_NUMBER,
    "factor": [*NO_NUMBER, -0.5, math.inf],
    "flag": ["False", "no", None, 2, [True], 0.5, torch.ones(2), np.ones(2)],
    "noise": ["numpy", None, 3, np.ones(2), ["philox"]],
    "seed": ["0", -1, 1 << 64, 1.5, True, [1], np.ones(2)],
    "mapping": ["shift", [1], 3, torch.ones(2)],
    "function": ["print", 3, {}, torch.ones(2)],
}

COMMON = {"scorenet": "network", "sigmas": "levels", "step_lr": "step", "n_steps_each": "count"}
COMMON |= {"noise": "noise", "seed": "seed", "x_mod": "states"}
LIST = {"final_only": "flag", "verbose": "flag"}
CHURN = {"s_churn": "churn", "s_tmin": "number", "s_tmax": "number", "s_noise": "factor"}
STEPS = {"model": "network", "x": "states", "sigmas": "levels", "extra_args": "mapping"}
STEPS |= {"callback": "function", "disable": "flag"}
OWN = {"noise": "noise", "seed": "seed"}
STOCHASTIC = {"eta": "factor", "s_noise": "factor", "noise_sampler": "function"}
# Every function: what a right call has, and what kind each argument is of.
X, PICTURES = torch.zeros(2, 3), torch.zeros(1, 2, 1, 4, 4)
THEIRS = {"model": denoiser, "x": X, "sigmas": [*SIGMAS, 0.0], "disable": True}
OFFICIAL = {"x_mod": X, "scorenet": score, "sigmas": SIGMAS, "n_steps_each": 1, "step_lr": 1e-2}
FUNCTIONS = {
    ncsnv2.anneal_Langevin_dynamics: (OFFICIAL, {**COMMON, **LIST, "denoise": "flag"}),
    ncsnv2.anneal_Langevin_dynamics_interpolation: (
        {**OFFICIAL, "n_interpolations": 2},
        {**COMMON, **LIST, "n_interpolations": "count"},
    ),
    ncsnv2.anneal_Langevin_dynamics_inpainting: (
        {**OFFICIAL, "x_mod": PICTURES, "refer_image": PICTURES[:, 0], "image_size": 4},
        {**COMMON, "refer_image": "states", "image_size": "count", "order": "noise"},
    ),
    ncsn.anneal_Langevin_dynamics: (OFFICIAL, {**COMMON, "verbose": "flag"}),
    ncsn.anneal_Langevin_dynamics_inpainting: (
        {**OFFICIAL, "x_mod": PICTURES, "refer_image": PICTURES[:, 0]},
        {**COMMON, "refer_image": "states"},
    ),
    k_diffusion.sample_annealed_langevin: (
        {**THEIRS, "step_size": 1e-2, "steps_per_level": 1},
        {**STEPS, **OWN, "steps_per_level": "count", "step_size": "step"},
    ),
    k_diffusion.sample_euler: (THEIRS, {**STEPS, **CHURN, **OWN}),
    k_diffusion.sample_heun: (THEIRS, {**STEPS, **CHURN, **OWN}),
    k_diffusion.sample_dpm_2: (THEIRS, {**STEPS, **CHURN, **OWN}),
    k_diffusion.sample_dpmpp_2m: (THEIRS, STEPS),
    k_diffusion.sample_lms: (THEIRS, {**STEPS, "order": "count"}),
    k_diffusion.sample_euler_ancestral: (THEIRS, {**STEPS, **OWN, **STOCHASTIC}),
    k_diffusion.sample_dpmpp_2m_sde: (
        THEIRS,
        {**STEPS, **OWN, **STOCHASTIC, "solver_type": "noise"},
    ),
}
# What stands for a default where an argument may be left out.
LEFT_OUT = {"seed", "step_size", "extra_args", "callback", "disable", "noise_sampler"}
CASES = [
    pytest.param(function, name, value, id=f"{function.__name__}-{name}-{i}")
    for function, (_, kinds) in FUNCTIONS.items()
    for name, kind in kinds.items()
    for i, value in enumerate(BAD[kind])
    if not (value is None and name in LEFT_OUT)
]


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_the_right_call_runs(function):
    right, kinds = FUNCTIONS[function]
    result = function(**right)
    last = result[-1] if isinstance(result, list) else result
    assert torch.isfinite(last).all()
    assert set(right) <= set(kinds)


@pytest.mark.parametrize(("function", "name", "value"), CASES)
def test_a_wrong_argument_is_refused_by_name(function, name, value):
    with pytest.raises(ValueError, match=rf"\b{name}\b") as caught:
        function(**{**FUNCTIONS[function][0], name: value})
    assert len(str(caught.value)) < 600


def test_what_a_function_returns_wrong_is_refused():
    kinds = (lambda *_: None, lambda x, *_: x[:1], lambda x, *_: x.long(), lambda x, *_: x.tolist())
    for wrong in kinds:
        with pytest.raises(ValueError, match=r"the network returned .*needed"):
            ncsnv2.anneal_Langevin_dynamics(**{**OFFICIAL, "scorenet": wrong})
        with pytest.raises(ValueError, match=r"the network returned .*needed"):
            k_diffusion.sample_heun(**{**THEIRS, "model": wrong})
        with pytest.raises(ValueError, match=r"noise_sampler\(\) returned .*needed"):
            k_diffusion.sample_euler_ancestral(**THEIRS, noise_sampler=lambda *_, w=wrong: w(X))


WORDS = [3, None, [], {}, "magic", ["euler"], 1.5, True, np.ones(2)]
FLAGS = ["False", None, 2, [True], 0.5, {}, np.ones(2)]
POSITIVE = ["1", [1.0], {}, -1.0, 0.0, math.nan, math.inf, True, np.ones(2), 1j]
WHOLE = ["5", 2.5, -1, None, [5], {}, math.nan, 10**15, True]
LISTS = ["abc", 3, {}, [], [[1.0]], [None], ["a"], [math.nan], {"a": 1}, [1j], [0.5] * 3, [True]]
KINDS = {
    "prediction_type timestep_type method spacing beta_schedule": WORDS,
    "sigma_schedule variance_type": [one for one in WORDS if one is not None],
    "scaled_state denoise rescale_betas_zero_snr clip_sample thresholding": FLAGS,
    "sigma_max sigma_min sigma_data step_size": POSITIVE,
    "rho clip_sample_range sample_max_value": [*POSITIVE, None],
    "beta_start beta_end dynamic_thresholding_ratio": ["1", None, -1, 2],
    "num_train_timesteps steps_per_level": WHOLE,
    "sigmas trained_betas": LISTS,
    "settings": ["snr", 3, [], {1: 2}, {"snr": [1]}, {"snr": {}}, {"magic": 1}, {"snr": "a"}],
    "seed": ["0", -1, 1 << 64, 1.5, True, [1], {}],
}
SETTINGS = {name: values for names, values in KINDS.items() for name in names.split()}


@pytest.mark.skipif(NCSNScheduler is None, reason="diffusers is not installed")
@pytest.mark.parametrize("name", SETTINGS)
def test_a_wrong_entry_of_a_configuration_is_refused_by_name(name):
    own = dict(NCSNScheduler(num_train_timesteps=5, method="predictor_corrector").config)
    vp = {"beta_schedule": "linear", "num_train_timesteps": 20, "beta_start": 0.1, "beta_end": 0.2}
    for value in SETTINGS[name]:
        for config in (own, vp, {**vp, "use_karras_sigmas": True, "_use_default_values": 5}):
            # What is wrong inside of the settings is named itself.
            match = rf"\b{name}\b" if name != "settings" else "settings|snr|magic"
            with pytest.raises(ValueError, match=match) as caught:
                NCSNScheduler.from_config({**config, name: value}).set_timesteps()
            assert len(str(caught.value)) < 700


@pytest.mark.skipif(NCSNScheduler is None, reason="diffusers is not installed")
@pytest.mark.parametrize(
    ("config", "message"),
    [
        *[(value, "needed is a dict") for value in (None, 3, [], "folder", {1: 2})],
        ({"sigma_schedule": [1], "sigma_max": 2.0}, "sigma_schedule"),
        ({"correct_steps": "a", "sigma_max": 2.0}, "correct_steps"),
        ({"correct_steps": 1, "snr": "a"}, "snr"),
        ({"correct_steps": 1, "sampling_eps": None}, "sampling_eps"),
        ({"beta_schedule": "linear", "use_flow_sigmas": [1]}, "use_flow_sigmas"),
        ({"beta_schedule": "linear", "use_karras_sigmas": "no"}, "use_karras_sigmas"),
        ({"beta_schedule": "linear", "beta_start": 0.0, "beta_end": 0.0}, "beta_start"),
        ({"beta_schedule": "linear", "sigma_max": np.ones(2)}, "sigma_max"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_a_wrong_configuration_of_another_scheduler_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        NCSNScheduler.from_config(config)


@pytest.mark.skipif(NCSNScheduler is None, reason="diffusers is not installed")
def test_a_setting_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="no setting methd"):
        NCSNScheduler.from_config(NCSNScheduler().config, methd="heun")
