"""A Gaussian prior and a linear measurement, whose posterior and whose chains are known."""

from functools import cache

import torch
from operator_cases import CASES, matrix_of

import ncsn_fast as nf
from ncsn_fast.guidance.posterior import gaussian_likelihood

SIGMAS = nf.geometric_sigmas(1.0, 0.4, 4)
STEP_SIZE, STEPS_PER_LEVEL, N = 1e-2, 100, 2000


def draw(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Problem:
    """A Gaussian prior, an operator's matrix and a measurement, all dense and in float64."""

    def __init__(self, operator, definition):
        self.operator = operator
        self.a = matrix_of(definition, operator.shape)
        self.size = self.a.shape[1]
        self.mean = draw(1, self.size)
        rotation = torch.linalg.qr(draw(2, self.size, self.size)).Q
        self.values = torch.linspace(0.3, 1.5, self.size, dtype=torch.float64)
        self.rotation = rotation
        self.noise_std = 0.3 * float(torch.linalg.matrix_norm(self.a, 2))
        x = self.mean + rotation @ (self.values.sqrt() * draw(3, self.size))
        y = self.a @ x + self.noise_std * draw(4, len(self.a))
        self.y = y.view(1, *operator.measured)

    def prior_precision(self, sigma):
        return self.rotation @ torch.diag(1 / (self.values + sigma**2)) @ self.rotation.T

    def precision(self, sigma):
        """Of the posterior where the prior is noised by σ and the measurement by √(s² + σ²)."""
        return self.prior_precision(sigma) + self.a.T @ self.a / (self.noise_std**2 + sigma**2)

    def posterior(self, sigma):
        """(mean, covariance) of that posterior."""
        covariance = torch.linalg.inv(self.precision(sigma))
        pull = self.a.T @ self.y.flatten() / (self.noise_std**2 + sigma**2)
        return covariance @ (self.prior_precision(sigma) @ self.mean + pull), covariance

    def score(self, x, sigma):
        """∇ log p_σ, exact."""
        rotation, mean, values = (t.float() for t in (self.rotation, self.mean, self.values))
        parts = (mean - x.flatten(1)) @ rotation / (values + sigma[:, None] ** 2)
        return (parts @ rotation.T).view(x.shape)

    def end_of_chain(self):
        """(mean, covariance) after the last row of annealed Langevin dynamics, exactly."""
        mean = torch.full((self.size,), 0.5, dtype=torch.float64)
        identity = torch.eye(self.size, dtype=torch.float64)
        covariance = identity / 12  # of U[0, 1)
        for sigma in SIGMAS.double().tolist():
            alpha = STEP_SIZE * (sigma / float(SIGMAS[-1])) ** 2
            target, _ = self.posterior(sigma)
            step = identity - alpha * self.precision(sigma)
            for _ in range(STEPS_PER_LEVEL):
                mean = target + step @ (mean - target)
                covariance = step @ covariance @ step.T + 2 * alpha * identity
        return mean, covariance

    def sampler(self, **settings):
        score = nf.Score(self.score, "score", "sigma")
        settings = {"step_size": STEP_SIZE, "steps_per_level": STEPS_PER_LEVEL, **settings}
        return nf.Sampler(score, self.operator.shape, SIGMAS, denoise=False, **settings)

    def guidance(self):
        return gaussian_likelihood(self.operator, self.y.float(), self.noise_std)


@cache
def problem(name):
    return Problem(*CASES[name])


def whitened(x, law):
    mean, covariance = law
    factor = torch.linalg.cholesky(covariance)
    return torch.linalg.solve_triangular(factor, (x - mean).T, upper=False).T


def distances(mean, covariance, count):
    """What is χ² for the mean and covariance of ``count`` standard normal samples, and its
    degrees of freedom."""
    size = len(mean)
    excess = covariance - torch.eye(size, dtype=covariance.dtype)
    return (
        (count * float(mean.square().sum()), size),
        (count / 2 * float(excess.square().sum()), size * (size + 1) / 2),
    )
