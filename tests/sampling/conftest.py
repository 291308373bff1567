"""What the tests of the engine share."""

import pytest
import torch
from engine_cases import SIGMAS

import ncsn_fast as nf


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    net = nf.NCSNv2(channels=1, image_size=8, ngf=8, sigmas=SIGMAS).eval()
    net.sampling = {
        "method": "annealed_langevin",
        "step_size": 2e-5,
        "steps_per_level": 3,
        "denoise": True,
    }
    return net
