"""Networks, samplers and chains for the tests of captured sampling."""

import torch
from engine_cases import SIGMAS
from torch import nn

import ncsn_fast as nf
from ncsn_fast.methods.tables import annealed_langevin
from ncsn_fast.sampling.chain import Chain

TABLE = annealed_langevin(SIGMAS, 2e-5, 2)


class Gaussian(nn.Module):
    """The score of N(mean, I) blurred by the level's σ."""

    def __init__(self):
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(3))
        self.register_buffer("sigmas", SIGMAS.clone())

    def forward(self, x, labels):
        sigma = self.sigmas[labels].view(-1, 1)
        return (self.mean - x) / (1 + sigma**2)


def network(kind):
    torch.manual_seed(0)
    if kind == "MLPScore":
        net = nf.MLPScore(sigmas=SIGMAS, hidden=8)
        nn.init.normal_(net.head.weight)
        return net.eval()
    made = getattr(nf, kind)(channels=1, image_size=8, ngf=4, sigmas=SIGMAS)
    return made.eval()


def simple(**settings):
    return nf.Sampler(Gaussian(), (3,), SIGMAS, TABLE, **{"graph": True, **settings})


class Module(nn.Module):
    def __init__(self, fn):
        super().__init__()
        self.fn = fn

    def forward(self, *arguments, **keywords):
        return self.fn(*arguments, **keywords)


def chain(table, **settings):
    given = {"shape": (3,), "device": torch.device("cpu"), "seed": 1, "n": 2, **settings}
    return Chain(score=SCORE, table=table, **given)


SCORE = nf.Score(Gaussian(), "score", "label", SIGMAS)
