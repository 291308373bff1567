"""benchmarks.studies.few_steps: what it measures, and how it is shown."""

import sys

import pytest
import torch

import ncsn_fast as nf
from ncsn_fast.benchmarks.studies import few_steps
from ncsn_fast.data.digits import digits
from ncsn_fast.models.space import Space


def test_every_method_is_measured_with_its_noise_held_and_without(monkeypatch):
    made = []

    class Sampler(nf.Sampler):
        def __call__(self, n, **call):
            made.append((n, self.hold_noise, len(self.table)))
            return digits("test").images[:n]

    monkeypatch.setattr(nf, "Sampler", Sampler)
    net, chain = nf.load_checkpoint("digits"), {"method": "annealed_langevin", "steps_per_level": 2}
    report = few_steps.measure(net, digits("test").images, 6, [5], chain=chain)
    held = [(6, hold, 5) for _ in (*few_steps.METHODS, "even") for hold in (False, True)]
    assert made == [*held, (6, False, 43)]
    rest = ["ancestral", "dpmpp_2m (eta 1)", "dpmpp_2m, even starts", "the full chain"]
    assert [point.method for point in report.points][3:] == rest
    assert {point.loose.noisy for point in report.points} == {0}
    assert report.points[0].held.frechet == report.points[0].loose.frechet
    # With noise of a level that is known the states say that level, where there are enough.
    assert report.levels[0].by_stein[0] == pytest.approx(1.0, abs=0.1)
    assert report.levels[0].gain == pytest.approx(report.levels[0].ideal, abs=0.15)
    assert report.levels[-1].believed[0] == pytest.approx(1.0, abs=0.05)


def test_the_tables_show_both():
    held = few_steps.Drawn(0, 0.5, [2.0, 0.1], [1.0, 1.02])
    loose = few_steps.Drawn(9, 1.25, [2.0, 0.1], [1.0, 3.5])
    report = few_steps.Report(
        {"precision": "fp32"},
        64,
        0.7,
        [
            few_steps.Point("euler", 10, held, loose),
            few_steps.Point("dpmpp_2m", 5, held, loose),
            few_steps.Point("dpmpp_2m", 10, held, loose),
            few_steps.Point("the full chain", 43, None, few_steps.Drawn(1, 0.6, [1.0], [1.0])),
        ],
        [few_steps.Level(0.01, (2.0, 0.5), (1.1, 0.4), (1.0, 0.01), 0.25, 0.75)],
    )
    lines = few_steps.as_markdown(report).splitlines()
    assert lines[0].startswith("precision fp32. 64 samples; as many images of the data have")
    assert "| euler | 10 | 0 | 9 | 0.50 | 1.25 |" in lines
    assert "| the full chain | 43 |  | 1 |  | 0.60 |" in lines
    assert lines.count("| σ of dpmpp_2m, 10 evaluations | t̂/σ, held | not held |") == 1
    assert "| 0.1 | 1.02 | 3.50 |" in lines
    assert "| 0.01 | 2.00 ± 0.50 | 1.10 ± 0.40 | 1.00 ± 0.01 | 0.25 | 0.75 |" in lines


def test_the_network_of_the_digits_ends_less_noisy_where_its_noise_is_held():
    net, images = nf.load_checkpoint("digits"), digits("test").images
    settings = {"method": "dpmpp_2m", "steps": 10, "precision": "fp32"}
    held, loose = (
        Space.of(net).beyond(nf.Sampler(net, hold_noise=hold, **settings)(32, seed=0))
        for hold in (True, False)
    )
    assert float(held.max()) < float(loose.max())
    assert torch.isfinite(held).all()
    followed = few_steps.drawn(net, 32, 0, images, hold_noise=True, **settings)
    assert followed.noisy == 0
    assert followed.levels[:4] == pytest.approx([1.0] * 4, abs=0.1)


def test_even_starts_have_the_brightness_of_the_data(monkeypatch):
    begun = []

    class Sampler(nf.Sampler):
        def __call__(self, n, **call):
            begun.append(call["initial"])
            return digits("test").images[:n]

    monkeypatch.setattr(nf, "Sampler", Sampler)
    net, images = nf.load_checkpoint("digits"), digits("test").images
    for even in (True, False):
        few_steps.drawn(net, 4, 0, images, even, method="euler", steps=3)
    assert begun[0].mean((1, 2, 3)).tolist() == pytest.approx([float(images.mean())] * 4, abs=1e-5)
    assert begun[1] is None


def test_the_pictures_are_of_the_same_samples_held_and_not():
    net, images = nf.load_checkpoint("digits"), digits("test").images
    shown = few_steps.panels(net, images, 4, precision="fp32")
    assert list(shown) == [f"dpmpp_2m, 4 evaluations, {word}" for word in ("not held", "held")] + [
        "the data"
    ]
    loose, held, data = shown.values()
    assert torch.equal(data, images[:36])
    assert loose.shape == held.shape == data.shape
    assert 0 < float((loose - held).square().mean()) < float((data - held).square().mean())


@pytest.mark.parametrize("told", [["--step-size", "0"], ["--steps-per-level", "2"]])
def test_settings_of_a_chain_that_is_not_asked_for_are_refused(monkeypatch, capsys, told):
    monkeypatch.setattr(sys, "argv", ["few_steps", "digits", *told])
    with pytest.raises(SystemExit):
        few_steps.main()
    assert "give --full too" in capsys.readouterr().err


def test_the_ode_is_without_fresh_noise_though_the_network_draws_with_it(monkeypatch):
    net = nf.load_checkpoint("digits")
    net.sampling = {"method": "dpmpp_2m", "eta": 1.0, "steps": 3}
    images = digits("test").images
    made = []

    class Sampler(nf.Sampler):
        def __call__(self, n, **call):
            made.append((self.table.adds_noise, self.hold_noise))
            return images[:n]

    monkeypatch.setattr(nf, "Sampler", Sampler)
    few_steps.measure(net, images, 6, [2])
    ode, fresh = ([(adds, False), (adds, True)] for adds in (False, True))
    assert made == ode * 3 + fresh * 2 + ode
    monkeypatch.undo()
    monkeypatch.setattr(few_steps, "_SHOWN", 2)
    shown = few_steps.panels(net, images, 2)
    ode = {"method": "dpmpp_2m", "eta": 0.0, "steps": 2, "spacing": "geometric"}
    for title, hold in (("not held", False), ("held", True)):
        expected = nf.sample(net, 2, seed=0, hold_noise=hold, **ode)
        assert torch.equal(shown[f"dpmpp_2m, 2 evaluations, {title}"], expected)
