"""Tables: the published formulas, folding, printing, refusals."""

import math
from dataclasses import FrozenInstanceError

import pytest
import torch

import ncsn_fast as nf
from ncsn_fast.methods.tables import annealed_langevin, langevin
from ncsn_fast.reference import ROW
from ncsn_fast.table import Table

SIGMAS = [1.0, 0.5, 0.1]


def test_annealed_langevin_has_the_published_step_sizes():
    table = annealed_langevin(SIGMAS, 1e-3, 2, denoise=False)
    assert len(table) == 6
    assert table.level == (0, 0, 1, 1, 2, 2)
    for row in range(6):
        sigma = SIGMAS[row // 2]
        alpha = 1e-3 * sigma**2 / 0.1**2
        assert table.sigma[row] == pytest.approx(sigma)
        assert table.b[row] == pytest.approx(alpha / sigma)
        assert table.d[row] == pytest.approx(math.sqrt(2 * alpha))
        assert table.w[row] == pytest.approx(alpha)
        assert (table.a[row], table.c[row], table.c_in[row]) == (1, 0, 1)


def test_the_denoising_row_follows_the_last_level_and_adds_no_noise():
    table = annealed_langevin(SIGMAS, 1e-3, 2)
    assert table[:-1] == annealed_langevin(SIGMAS, 1e-3, 2, denoise=False)
    last = table[-1:]
    assert last.b[0] == last.sigma[0] == pytest.approx(0.1)
    assert (last.d[0], last.level[0]) == (0, 2)


def test_plain_langevin_weighs_the_score_by_the_step_size():
    table = langevin(0.3, 4)
    assert table.b == (0.3,) * 4
    assert table.d == pytest.approx((math.sqrt(0.6),) * 4)
    assert table.sigma == (1.0,) * 4


def test_tables_are_frozen_comparable_hashable_and_sliceable():
    table = langevin(0.3, 4)
    assert table == langevin(0.3, 2) + langevin(0.3, 2) == table[0:4]
    assert table != langevin(0.31, 4)
    assert hash(table) == hash(langevin(0.3, 4))
    with pytest.raises(FrozenInstanceError):
        table.a = ()


def test_a_long_table_prints_its_head_and_tail():
    lines = str(annealed_langevin(SIGMAS, 1e-3, 100)).splitlines()
    assert lines[0].split() == ["row", "sigma", "a", "b", "c", "d", "e", "f", "w", "c_in", "level"]
    assert len(lines) == 13
    assert "…" in lines[7]
    assert lines[-1].split()[0] == "300"


def test_rows_carry_the_coefficients_of_the_next_network_input():
    table = Table.of([2.0, 1.0], b=0.5, d=0.1, c_in=[0.25, 0.5])
    rows = table.rows("cpu", torch.float64)
    assert rows.shape == (2, len(ROW))
    by_name = dict(zip(ROW, rows.T.tolist(), strict=True))
    assert by_name["next_c_in"] == [0.5, 1.0]
    assert by_name["next_sigma"] == [1.0, 0.0]
    assert by_name["b"] == [0.5, 0.5]
    assert by_name["w"] == [1.0, 0.5]


def test_temperature_scales_the_variance_of_the_noise():
    table = annealed_langevin(SIGMAS, 1e-3, 1)
    cold = table.with_temperature(0.25)
    assert cold.d == pytest.approx([0.5 * d for d in table.d])
    assert cold.b == table.b
    assert not any(table.with_temperature(0).d)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: annealed_langevin(SIGMAS, 0.0, 5), "0 < ε < 2σ_L²"),
        (lambda: annealed_langevin(SIGMAS, 0.021, 5), "every chain diverges"),
        (lambda: annealed_langevin(SIGMAS, 1e-3, 0), "steps_per_level = 0"),
        (lambda: annealed_langevin(SIGMAS[::-1], 1e-3, 5), "noise levels descend"),
        (lambda: langevin(-1, 5), "finite α > 0"),
        (lambda: langevin(0.1, 0), "steps = 0"),
        (lambda: langevin(0.1, 1).with_temperature(-1), "temperature = -1"),
        (lambda: Table.of([]), "at least one row"),
        (lambda: Table.of([-1.0]), "noise levels are positive"),
        (lambda: Table.of([1.0], b=float("nan")), "column b"),
        (lambda: Table((1.0,), (1.0,), *((0.0, 0.0),) * 8), "one length"),
    ],
)
def test_tables_that_make_no_sense_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("kind", ["score", "normalized", "epsilon", "denoiser"])
def test_folding_a_parametrisation_leaves_the_step_what_it_was(kind):
    generator = torch.Generator().manual_seed(0)
    x, n, h = torch.randn(3, 5, dtype=torch.float64, generator=generator)
    table = Table.of([0.7, 0.2], a=0.9, b=0.4, c=0.3, e=0.2, f=0.6)
    folded = nf.Score(lambda x: x, kind, "none").fold(table)
    for row, sigma in enumerate(table.sigma):
        output = {
            "score": n / sigma,
            "normalized": n,
            "epsilon": -n,
            "denoiser": x + sigma * n,
        }[kind]
        plain = table.a[row] * x + table.b[row] * n + table.c[row] * h
        assert torch.allclose(
            folded.a[row] * x + folded.b[row] * output + folded.c[row] * h, plain, atol=1e-14
        )
        assert torch.allclose(
            folded.e[row] * x + folded.f[row] * output,
            table.e[row] * x + table.f[row] * n,
            atol=1e-14,
        )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Table.of("ab"), "sigma of a table is no list of numbers"),
        (lambda: Table.of([1.0, None], b=[1, 2]), "column sigma|sigma of a table"),
        (lambda: Table.of([[1.0, 2.0]]), r"sigma of shape \(1, 2\)"),
        (lambda: Table.of([1.0, 2.0], b=[1, 2, 3]), r"b of shape \(3,\) for 2 rows"),
        (lambda: Table.of([1.0, 2.0], d=[[1], [2]]), r"d of shape \(2, 1\) for 2 rows"),
        (lambda: Table.of([1.0], w="x"), "w of a table is no list of numbers"),
        (lambda: Table.of([1.0], level=[0, 1]), r"level of shape \(2,\) for 1 rows"),
        (lambda: Table.of([1.0], d=1.0).with_temperature("1"), "temperature = '1'"),
        (lambda: Table.of([1.0], d=1.0).with_temperature(None), "temperature = None"),
        (lambda: Table.of([1.0], d=1.0).with_temperature(float("nan")), "temperature = nan"),
        (lambda: Table.of([1.0], d=1.0).with_temperature(-1), "temperature = -1"),
        (lambda: Table.of([1.0]).start_row("0"), "start_level = '0'"),
        (lambda: Table.of([1.0]).start_row(True), "start_level = True"),
        (lambda: Table.of([1.0]).start_row([0]), r"start_level = \[0\]"),
        (lambda: Table.of([1.0]).start_row(-1), "start_level = -1"),
    ],
)
def test_what_is_no_part_of_a_table_is_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_chain_begins_where_no_history_is_needed_before_it_makes_one_up():
    """So that one that was interrupted is taken up at the row at which it was."""
    sigma = [2.0, 1.0, 1.0, 0.5]
    table = Table.of(sigma, c=[0, 0.1, 0, 0.2], e=1.0, f=sigma, level=[0, 1, 1, 2])
    assert table.resumptions == {0: 0, 1: 2}
    assert table.begun(1) == (2, table)
    row, begun = table.begun(2)
    assert (row, begun.c) == (3, (0.0, 0.1, 0.0, 0.0))
    assert (begun.a[3], begun.b[3], begun.w[3]) == (1.2, 0.1, 0.05)
    assert begun[:3] == table[:3]


LADDER = torch.tensor([2.0, 1.0, 0.4, 0.1], dtype=torch.float64).numpy()


@pytest.mark.parametrize(
    ("columns", "begin"),
    [
        ({"e": 1.0, "f": LADDER}, "the levels 0 to 3"),  # the denoised state
        ({"f": 1.0}, "the levels 0 to 3"),  # the score
        ({"e": 0.5, "f": 0.5 * LADDER + 0.25}, "the levels 0 to 3"),  # some of both
        ({"f": [1, 0.6, 0.3, 0.1]}, "the levels 0 to 0"),  # the score times each row's own step
        ({"e": 1.0}, "the levels 0 to 0"),  # the state, whose noise is of another level
        ({"e": [1.0, 0.0, 1.0, 0.0]}, "the levels 0 to 0"),  # a second stage's is of the first
        ({}, "the levels 0 to 0"),  # nothing
    ],
)
def test_a_row_begins_by_its_own_history_where_that_is_of_the_same_kind(columns, begin):
    table = Table.of(LADDER, c=[0, 0.1, 0.1, 0.1], level=range(4), **columns)
    with pytest.raises(ValueError, match=f"can begin at {begin}. Elsewhere"):
        table.start_row(4)
