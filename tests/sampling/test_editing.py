"""Interpolation between chains, and chains that begin at an image."""

import pytest
import torch

import ncsn_fast as nf
from ncsn_fast import noise
from ncsn_fast.methods.tables import dpmpp_2m
from ncsn_fast.sampling.editing import edit, interpolate

SIGMAS = nf.geometric_sigmas(2.0, 0.01, 8)
MEAN = torch.tensor([0.5, -1.0, 0.2])


def score(x, sigma):
    return (MEAN - x) / (0.3**2 + sigma[:, None] ** 2)


def sampler(**settings):
    settings = {"step_size": 2e-5, "steps_per_level": 4, **settings}
    return nf.Sampler(nf.Score(score, "score", "sigma"), (3,), SIGMAS, graph=False, **settings)


def second(n, ids=None):
    ids = range(n) if ids is None else ids
    return lambda row: noise.normal((3,), seed=1, stream=noise.SECOND, sample_ids=ids, step=row)


@pytest.mark.parametrize("start_level", [0, 3])
def test_the_ends_of_an_interpolation_are_plain_chains(start_level):
    call = {"seed": 1, "start_level": start_level}
    x = interpolate(sampler(), 4, 5, **call)
    assert x.shape == (4, 5, 3)
    torch.testing.assert_close(x[:, 0], sampler()(4, **call), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        x[:, -1], sampler()(4, noise=second(4), **call), atol=1e-5, rtol=1e-5
    )


def test_between_the_ends_the_noise_turns():
    first = torch.zeros(2, 3)
    x = interpolate(sampler(), 2, 3, seed=1, initial=first)

    def half_way(row):
        p = noise.normal((3,), seed=1, stream=noise.SAMPLER, sample_ids=range(2), step=row)
        return (p + second(2)(row)) / 2**0.5

    expected = sampler()(2, seed=1, initial=first, noise=half_way)
    torch.testing.assert_close(x[:, 1], expected, atol=1e-5, rtol=1e-5)


def test_neighbours_in_an_interpolation_are_alike():
    x = interpolate(sampler(), 1, 33, seed=1)[0]
    steps = x.diff(dim=0).norm(dim=1)
    assert float(steps.max()) < 0.1 * float((x[0] - x[-1]).norm()) + 0.02


def test_a_pair_does_not_depend_on_the_others_or_on_chunks():
    whole = interpolate(sampler(), 3, 4, seed=1)
    one = interpolate(sampler(), 1, 4, seed=1, sample_ids=[2])
    torch.testing.assert_close(one[0], whole[2])
    torch.testing.assert_close(interpolate(sampler(), 3, 4, seed=1, batch_size=5), whole)


def test_an_interpolation_takes_what_a_call_takes():
    mask, known = torch.tensor([1, 0, 0]), torch.full((3,), 0.25)
    x = interpolate(sampler(), 2, 3, seed=1, mask=mask, known=known, clip=5.0, temperature=0.5)
    assert torch.equal(x[..., 0], torch.full((2, 3), 0.25))
    plain = sampler()(2, seed=1, mask=mask, known=known, clip=5.0, temperature=0.5)
    torch.testing.assert_close(x[:, 0, 1:].std(), plain[:, 1:].std(), atol=0.3, rtol=1.0)


def test_an_interpolation_draws_a_seed_that_is_reported():
    one = sampler()
    torch.manual_seed(3)
    x = interpolate(one, 2, 3)
    assert torch.equal(interpolate(sampler(), 2, 3, seed=one.seed), x)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: interpolate(sampler(), 2, 1), "n_interpolations = 1: a pair has two ends"),
        (lambda: interpolate(sampler(), 0, 3), "pairs = 0"),
        (lambda: interpolate(sampler(), 2, 3, initial=torch.zeros(3, 3)), "initial has shape"),
        (lambda: interpolate(sampler(), 2, 3, noise=second(2)), "takes no .'noise'.: it makes"),
        (
            lambda: interpolate(
                nf.Sampler(nf.Score(score, "score", "sigma"), (3,), SIGMAS, "euler"), 2, 3
            ),
            "adds no noise that could be interpolated",
        ),
    ],
)
def test_interpolations_without_a_meaning_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def images(n=4):
    return torch.rand(n, 3, generator=torch.Generator().manual_seed(0))


def test_an_edit_at_the_smallest_level_returns_the_image():
    x = edit(sampler(), images(), len(SIGMAS) - 1, seed=1)
    assert float((x - images()).abs().max()) < 5 * 0.01


def test_an_edit_begins_at_the_image_with_the_noise_of_its_level():
    for call in ({"start_level": 3}, {"sigma": float(SIGMAS[3]) * 1.05}):
        _, states = edit(sampler(), images(2000), seed=1, every=100, **call)
        z = (states[0] - images(2000)) / SIGMAS[3]
        assert float(z.mean()) == pytest.approx(0, abs=0.05)
        assert float(z.std()) == pytest.approx(1, abs=0.03)


def test_an_edit_from_far_above_forgets_the_image():
    x = edit(sampler(steps_per_level=100), torch.full((500, 3), 4.0), 0, seed=1)
    assert torch.allclose(x.mean(0), MEAN, atol=0.1)


def test_an_edit_is_a_chain_from_that_level():
    start = images() + SIGMAS[2] * noise.normal(
        (3,), seed=1, stream=noise.INITIAL, sample_ids=range(4), step=1
    )
    expected = sampler()(4, seed=1, initial=start, start_level=2)
    torch.testing.assert_close(edit(sampler(), images(), 2, seed=1), expected)


def test_an_edited_image_does_not_depend_on_the_others():
    whole = edit(sampler(), images(), 2, seed=1)
    one = edit(sampler(), images()[2:3], 2, seed=1, sample_ids=[2])
    torch.testing.assert_close(one, whole[2:3])


def test_an_edit_of_the_unknown_region_holds_the_known_one():
    mask = torch.tensor([0, 1, 0])
    x = edit(sampler(), images(), 2, seed=1, mask=mask, known=images(), clip=3.0)
    assert torch.equal(x[:, 1], images()[:, 1])
    assert not torch.equal(x[:, 0], images()[:, 0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: edit(sampler(), images()), "start_level= or by sigma=, one of them"),
        (lambda: edit(sampler(), images(), 1, sigma=0.5), "one of them"),
        (lambda: edit(sampler(), images(), 8), "start_level = 8: this method can begin at"),
        (lambda: edit(sampler(), images(), sigma=3.0), "levels of this sampler are from 0.01 to 2"),
        (lambda: edit(sampler(), images(), sigma=-1.0), "levels of this sampler"),
        (lambda: edit(sampler(), images()[0], 1), r"give \(n, \*\(3,\)\)"),
        (lambda: edit(sampler(), torch.rand(2, 4), 1), "images has shape"),
    ],
)
def test_edits_without_a_meaning_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_method_with_a_history_is_edited_as_on_the_levels_that_are_left():
    made = nf.Score(score, "score", "sigma"), (3,)
    one = nf.Sampler(*made, SIGMAS, dpmpp_2m(SIGMAS, eta=0.5))
    rest = nf.Sampler(*made, SIGMAS[3:], dpmpp_2m(SIGMAS[3:], eta=0.5))
    begun = {"initial": images() + SIGMAS[3] * one.first_noise(1, torch.arange(4)), "seed": 1}
    rows = {"noise": lambda row: noise_of[row % 4]}
    noise_of = torch.randn(4, 4, 3, generator=torch.Generator().manual_seed(0))
    expected = rest(4, **begun, noise=lambda row: noise_of[(row + 3) % 4])
    torch.testing.assert_close(edit(one, images(), 3, seed=1, **rows), expected)


def test_levels_off_the_ladder_are_edited_only_from_their_beginning():
    table = nf.Table.of([0.5, 0.2], b=[0.3, 0.2])
    one = nf.Sampler(nf.Score(score, "score", "sigma"), (3,), SIGMAS, table, graph=False)
    with pytest.raises(ValueError, match=r"begins only at its first noise level, 0\.5"):
        edit(one, images(), sigma=0.2)
    assert edit(one, images(), 0, seed=1).shape == (4, 3)
