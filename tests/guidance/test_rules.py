"""A guidance is a function of at most 15 lines, its formula in sight."""

import inspect
import re
from functools import partial
from pathlib import Path

import pytest
import torch

import ncsn_fast as nf
from ncsn_fast.guidance import NormAdaptive, posterior, through

PAGE = Path(__file__).parents[2] / "docs" / "posterior.md"
MOST = 15
MASK, Y = nf.operators.Mask(torch.ones(3)), torch.ones(3)
MADE = {
    "dps": through.dps(MASK, Y),
    "pgdm": through.pgdm(MASK, Y, 0.1),
    "tmpd": through.tmpd(MASK, Y, 0.1),
    "mmps": through.mmps(MASK, Y, 0.1),
    "diffpir": through.diffpir(MASK, Y, 0.1),
    "exact": through.exact(MASK, Y),
}
FORMULAS = {
    **{name: made.rule.func for name, made in MADE.items()},
    "gaussian_likelihood": posterior.GaussianLikelihood.drift,
    "score_scaled": posterior.ScoreScaled.drift,
    "NormAdaptive": NormAdaptive.ratio,
}


def lines(source):
    """How many there are, without docstrings and what is empty."""
    code = re.sub(r'""".*?"""', "", source, flags=re.DOTALL)
    return sum(bool(line.strip()) for line in code.splitlines())


@pytest.mark.parametrize("name", FORMULAS)
def test_each_is_at_most_15_lines(name):
    assert 2 <= lines(inspect.getsource(FORMULAS[name])) <= MOST


def test_these_are_all_of_them():
    """None hides a longer one: what makes a guidance takes numbers and hands its rule on."""
    written = {rule for name, rule in vars(through).items() if name.endswith("_rule")}
    assert written == {FORMULAS[name] for name in MADE}
    assert all(isinstance(made.rule, partial) for made in MADE.values())
    assert set(MADE) == set(nf.guidance.__all__) & {
        name for name, value in vars(through).items() if inspect.isfunction(value)
    }


def test_so_is_the_documented_one():
    (rule,) = re.findall(r"^def rule\(at\):\n(?:    .*\n|\n(?=    ))+", PAGE.read_text(), re.M)
    assert 2 <= lines(rule) <= MOST
