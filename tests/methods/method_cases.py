"""Every named method on one ladder, and tables run by the specification."""

from __future__ import annotations

import torch

import ncsn_fast as nf
from ncsn_fast.methods.by_name import METHODS, make_table
from ncsn_fast.reference import sampler_update

SIGMAS = nf.geometric_sigmas(5, 0.01, 12)
LADDER = SIGMAS.double().tolist()
# Settings with which each named method runs on SIGMAS.
SETTINGS = {
    "annealed_langevin": {"step_size": 2e-5, "steps_per_level": 2},
    "consistent_annealed": {"step_size": 8e-5},
    "reverse_diffusion": {},
    "ancestral": {},
    "predictor_corrector": {"snr": 0.16},
    "euler": {},
    "heun": {},
    "dpmpp_2m": {},
}
FEW_STEPS = [name for name in METHODS if "annealed" not in name]
NOISELESS = ["euler", "heun", "dpmpp_2m"]


def table_of(method, sigmas=SIGMAS, **settings):
    return make_table(method, sigmas, {**SETTINGS[method], **settings}, {})


def curved(x, sigma):
    """The normalised score of ½N(-1, 0.3²) + ½N(1, 0.3²) in float64."""
    variance = 0.09 + sigma**2
    return sigma * (torch.tanh(x / variance) - x) / variance


def run(table, x, n=curved, z=None):
    """A table by the specification, in float64."""
    history = torch.zeros_like(x)
    for row, coefficients in enumerate(table.rows("cpu", torch.float64)):
        x, history, _ = sampler_update(
            x,
            n(x, table.sigma[row]),
            coefficients,
            None if z is None else z[row],
            history=history,
        )
    return x


def start():
    return torch.linspace(-4, 4, 16, dtype=torch.float64).view(4, 4)
