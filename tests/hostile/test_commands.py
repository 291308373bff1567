"""Nonsense in every option of every command is refused in one line, before the work."""

import os
from pathlib import Path

import click
import pytest
from helpers.command import invoke
from helpers.networks import network

import ncsn_fast as nf
from ncsn_fast.cli import main
from ncsn_fast.cli.common import Command

# What each command needs besides.
NEEDED = {"convert": ("CHECKPOINT", "new.safetensors"), "profile": ("sample",)}
NEEDED |= {"evaluate": ("CHECKPOINT", "--reference", "digits")}
NEEDED |= {"train": ("--out", "out", "--steps", "1")}
NO_NUMBER = ["x", "", " ", "1,5", "0x10", "--", "nan", "inf", "-inf", "1e999", "²"]
NO_COUNT = [*NO_NUMBER, "1.5", "9" * 40, "-1", "1e3"]
NO_FOLDER = ["FILE", "FILE/below", "/proc/none/below", "", "n" * 300]
NO_FILE = ["nowhere", "FOLDER", "", "n" * 300, "FILE/below"]
# Of words that name something: which, where it is not anything that is not there.
NO_NAME = ["no such thing", "", " ", "\x1b[31mred", "\udcff", "n" * 5000, "--quiet"]
# Those that compute.
WORKING = ["sample", "train", "schedule", "evaluate", "demo", "profile", "bench"]
FOLDERS = {"out"}
FILES = {"config", "checkpoint", "source", "target", "model", "report", "data"}


def parameters():
    for name, command in main.commands.items():
        for parameter in command.params:
            if not (isinstance(parameter, click.Option) and parameter.is_flag):
                yield name, parameter


def bad_values(parameter):
    kind = parameter.type
    if isinstance(kind, click.types.IntParamType):
        low = getattr(kind, "min", None)
        return NO_COUNT if low is None or low == 0 else [*NO_COUNT, "0"]
    if isinstance(kind, click.types.FloatParamType):
        return NO_NUMBER
    if isinstance(kind, click.Choice):
        return [*NO_NAME, kind.choices[0].upper() + "!"]
    if parameter.name in FOLDERS:
        return NO_FOLDER
    names = NO_NAME if isinstance(parameter, click.Option) else NO_NAME[:-1]
    return [*NO_FILE, *names] if parameter.name in FILES else names


CASES = [
    pytest.param(name, parameter, id=f"{name} {parameter.opts[-1]}")
    for name, parameter in parameters()
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    net = network(channels=1, ngf=4, sigmas=nf.geometric_sigmas(5, 0.01, 6))
    net.sampling = {"method": "annealed_langevin", "step_size": 2e-5, "steps_per_level": 2}
    return nf.save_checkpoint(net, tmp_path_factory.mktemp("net") / "model.safetensors")


@pytest.fixture
def place(tmp_path, monkeypatch, model):
    """A folder to be in, and what the words in capitals stand for."""
    (tmp_path / "FOLDER").mkdir()
    (tmp_path / "FILE").write_text("neither a picture nor a network")
    monkeypatch.chdir(tmp_path)
    return {"CHECKPOINT": str(model)}


def line(name, parameter, value):
    """A command line that is right but for this value."""
    needed = list(NEEDED.get(name, ()))
    if isinstance(parameter, click.Option):
        flag = parameter.opts[-1]
        if flag in needed:
            del needed[needed.index(flag) :][:2]
            needed = [word for word in needed if word != flag]
        return [name, *needed, flag, value]
    places = [p.name for p in main.commands[name].params if isinstance(p, click.Argument)]
    number = places.index(parameter.name)
    return [name, *needed[:number], value, *needed[number + 1 :]]


def refused(*words):
    """What a command says that refuses these words."""
    result = invoke(*words)
    assert result.exit_code in (1, 2), (words, result.output, result.exception)
    assert isinstance(result.exception, SystemExit), (words, result.exception)
    told = [text for text in result.output.splitlines() if text.startswith("Error: ")]
    assert len(told) == 1, result.output
    assert "Traceback" not in result.output
    return result.output


@pytest.mark.parametrize(("name", "parameter"), CASES)
def test_nonsense_is_refused_in_one_line(place, name, parameter):
    for value in bad_values(parameter):
        words = [place.get(word, word) for word in line(name, parameter, value)]
        before = sorted(os.listdir())
        refused(*words)
        assert sorted(os.listdir()) == before, words


@pytest.mark.parametrize(("name", "parameter"), CASES)
def test_what_would_be_a_guess_is_refused(place, name, parameter):
    if not isinstance(parameter, click.Option):
        assert "is empty" in refused(*line(name, parameter, ""))
        return
    flag = parameter.opts[-1]
    assert f"{flag} is empty" in refused(*line(name, parameter, ""))
    assert "given more than once" in refused(*line(name, parameter, "1"), flag, "1")
    assert "is an option itself" in refused(*line(name, parameter, "--quiet"))
    if len(flag) > 4 and not any(o != flag and o.startswith(flag[:-1]) for o in flags(name)):
        assert "No such option" in refused(*line(name, parameter, "1")[:-2], flag[:-1], "1")


def flags(name):
    return [flag for option in main.commands[name].params for flag in option.opts]


def test_all_commands_are_of_one_kind():
    assert all(isinstance(command, Command) for command in main.commands.values())


@pytest.mark.parametrize("words", [("sampel",), ("--json", "-", "sample"), ("",), ("--stepz",)])
def test_what_is_no_command_is_refused(words):
    assert "No such" in refused(*words)


@pytest.mark.parametrize("name", WORKING)
@pytest.mark.parametrize("wish", ["foo", "TORCH", " "])
def test_a_wish_of_the_environment_that_cannot_be_met_is_refused_first(
    place, monkeypatch, name, wish
):
    monkeypatch.setenv("NCSN_FAST_BACKEND", wish)
    assert "NCSN_FAST_BACKEND: backend" in refused(name, *NEEDED.get(name, ()))
    assert sorted(os.listdir()) == ["FILE", "FOLDER"]


@pytest.mark.parametrize("name", WORKING)
@pytest.mark.parametrize("device", ["meta", "cpu:7", "cuda:99", "0", "CPU", "cpu:", "xla"])
def test_a_device_that_cannot_compute_is_refused_first(place, name, device):
    told = refused(name, *NEEDED.get(name, ()), "--device", device)
    assert f"--device {device} cannot be used here: " in told
    assert sorted(os.listdir()) == ["FILE", "FOLDER"]


def test_the_words_of_a_file_are_held_to_the_same(place):
    for text in ("steps: -1", "ngf: many", "seed: [1]", "steps: 1e999", "quiet: true", "out: x"):
        Path("run.yml").write_text(text)
        assert "run.yml" in refused("train", "--out", "out", "--config", "run.yml")
    assert not Path("out").exists()
