"""ncsn-fast sample with other methods: what it takes, says and resumes."""

import numpy as np
import pytest
from helpers.command import invoke, stop_after, succeed

import ncsn_fast as nf
from ncsn_fast.methods.by_name import METHODS


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "ancestral", "steps": 5, "spacing": "karras", "rho": 5.0},
        {"method": "dpmpp_2m", "steps": 5, "eta": 1.0},
    ],
)
def test_a_method_with_its_settings_is_what_nf_sample_draws(tmp_path, checkpoint, settings):
    options = [word for name, value in settings.items() for word in (f"--{name}", value)]
    succeed("sample", checkpoint, "-n", 2, "--out", tmp_path / "out", *options)
    with np.load(tmp_path / "out" / "samples.npz") as stored:
        net = nf.load_checkpoint(checkpoint)
        np.testing.assert_allclose(
            stored["images"], nf.sample(net, 2, seed=0, **settings).numpy(), atol=1e-5
        )


@pytest.mark.parametrize(
    ("options", "rows", "stop", "resumed_at"),
    [
        (("--method", "heun"), 11, 8, 6),  # amid a step: from its beginning
        (("--method", "predictor_corrector", "--snr", "0.1"), 12, 7, 6),
        (("--method", "ancestral", "--steps", "3"), 3, 2, 1),
        (("--method", "dpmpp_2m"), 6, 4, 0),  # with a history that is not kept
        (("--method", "euler", "--steps", "5", "--spacing", "linear"), 5, 3, 0),  # off the ladder
    ],
)
def test_an_interrupted_chain_ends_as_if_it_had_not_been(
    tmp_path, checkpoint, monkeypatch, options, rows, stop, resumed_at
):
    for out, interrupted in (("whole", False), ("cut", True)):
        arguments = ("sample", checkpoint, "-n", 2, "--out", tmp_path / out, *options)
        if interrupted:
            stop_after(monkeypatch, stop)
            assert invoke(*arguments).exit_code == 130
            monkeypatch.undo()
        made = stop_after(monkeypatch, -1)
        succeed(*arguments)
        monkeypatch.undo()
        assert made == list(range(resumed_at if interrupted else 0, rows))
    with (
        np.load(tmp_path / "whole" / "samples.npz") as whole,
        np.load(tmp_path / "cut" / "samples.npz") as cut,
    ):
        np.testing.assert_array_equal(cut["images"], whole["images"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--method", "magic"), "method = 'magic' is unknown; choose one of ['annealed_langevin'"),
        (("--method", "heun", "--step-size", "1e-5"), "'heun' takes no step_size; its settings"),
        (("--steps", "5"), "'annealed_langevin' takes no steps; its settings are step_size"),
        (("--method", "euler", "--steps", "7"), "take fewer steps, or, for a network"),
        (("--method", "consistent_annealed"), "step_size not given for 'consistent_annealed'"),
    ],
)
def test_what_a_method_does_not_take_is_refused_in_one_line(tmp_path, checkpoint, options, message):
    result = invoke("sample", checkpoint, "-n", 1, "--out", tmp_path / "out", *options)
    assert result.exit_code == 1
    assert message in result.output
    assert "Traceback" not in result.output


def test_the_help_names_all_methods():
    words = succeed("sample", "--help").split()
    assert set(METHODS) <= {word.strip(",.;()") for word in words}
