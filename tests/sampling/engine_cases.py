"""Networks and samplers for the tests of the engine."""

import ncsn_fast as nf
from ncsn_fast.methods.tables import annealed_langevin

SIGMAS = nf.geometric_sigmas(5, 0.01, 10)


TABLE = annealed_langevin(SIGMAS, 2e-5, 3)


def gaussian(x, labels):
    """The score of N(0, I) blurred by the level's σ."""
    return -x / (1 + SIGMAS[labels].view(-1, *[1] * (x.ndim - 1)) ** 2)


def sampler(score=gaussian, shape=(3,), table=TABLE):
    return nf.Sampler(score, shape, SIGMAS, method=table)
