"""What the tests of the commands share."""

import pytest
from helpers.networks import network

import ncsn_fast as nf


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    net = network(channels=1, ngf=4, sigmas=nf.geometric_sigmas(5, 0.01, 6))
    net.sampling = {
        "method": "annealed_langevin",
        "step_size": 2e-5,
        "steps_per_level": 2,
        "denoise": True,
    }
    return nf.save_checkpoint(net, tmp_path_factory.mktemp("net") / "model.safetensors")
