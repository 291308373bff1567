"""Checkpoints between the official layouts and ours, and back."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from helpers.checkpoints import (
    CONFIG,
    SAMPLING,
    assert_same_weights,
    average_of,
    network,
    weights_of,
)
from helpers.command import invoke, succeed
from helpers.golden import GOLDEN, load_golden

import ncsn_fast as nf
from ncsn_fast.checkpoints.load_save import BUNDLED
from ncsn_fast.checkpoints.official_yaml import (
    noise_levels,
    read_official_yaml,
)
from ncsn_fast.checkpoints.tensor_file import CheckpointError, read_tensors
from ncsn_fast.runs.convert import convert, official_config


def official(path, *states):
    torch.save(list(states), path)
    return path


def config_file(path, values=CONFIG):
    path.write_text(yaml.safe_dump(values))
    return path


def states_of(path):
    return torch.load(path, weights_only=True)


def assert_equal(one, other):
    assert list(one) == list(other)
    for key, value in one.items():
        assert torch.equal(value, other[key]), key
        assert value.dtype == other[key].dtype


@pytest.fixture
def trained(tmp_path):
    """A training checkpoint of ours with weights and other, averaged ones."""
    net = network(channels=1)
    net.sampling = SAMPLING
    config = nf.TrainConfig(steps=2, batch_size=2, ema=0.5, out=tmp_path / "run")
    nf.Trainer(net, torch.rand(4, 1, 8, 8), config).fit()
    return tmp_path / "run" / "checkpoint.safetensors"


FIRST_VERSION = {
    "data": {"channels": 2, "image_size": 28, "dataset": "MNIST"},
    "model": {"sigma_begin": 20, "sigma_end": 0.01, "num_classes": 7, "ngf": 4},
}
ADVERSARIAL = {**CONFIG, "sampling": {"step_lr": 6e-6, "nsigma": 2, "noise_first": True}}
CONSISTENT = {**CONFIG, "sampling": {"step_lr": 6e-5, "nsigma": 2, "consistent": True}}


@pytest.mark.parametrize(
    ("net", "config", "rest"),
    [
        (network("NCSN", image_size=28), FIRST_VERSION, []),
        (network(seed=2), CONFIG, [3, 7, average_of(network(seed=2))]),
        (network(divided=False), CONSISTENT, [3, 7, average_of(network(divided=False))]),
        (network(divided=False), ADVERSARIAL, [3, 7, average_of(network(divided=False))]),
    ],
    ids=["first version", "second version", "undivided", "noise first"],
)
def test_an_official_checkpoint_comes_back_bit_for_bit(tmp_path, net, config, rest):
    path = official(tmp_path / "in.pth", weights_of(net), {"state": {}}, *rest)
    convert(path, tmp_path / "ours.safetensors", config=config_file(tmp_path / "in.yml", config))
    convert(tmp_path / "ours.safetensors", tmp_path / "out.pth")
    states = states_of(tmp_path / "out.pth")
    assert len(states) == 2 + len(rest)
    assert_equal(states[0], weights_of(net))
    if rest:
        assert_equal(states[4], average_of(net))
    loaded = nf.load_checkpoint(tmp_path / "out.pth", tmp_path / "out.yml")
    assert_same_weights(loaded, net)
    assert torch.equal(loaded.sigmas, net.sigmas)
    assert loaded.config.get("divided") == net.config.get("divided")
    before = nf.load_checkpoint(path, config)
    assert (loaded.config, loaded.sampling) == (before.config, before.sampling)


@pytest.mark.parametrize("name", GOLDEN)
def test_tensors_are_those_of_the_official_networks(tmp_path, name):
    golden = load_golden(name)
    path = nf.save_checkpoint(golden.network(), tmp_path / "ours.safetensors")
    convert(path, tmp_path / "out.pth")
    states = states_of(tmp_path / "out.pth")
    assert_equal(states[0], {f"module.{k}": v for k, v in golden.state_dict().items()})
    if name != "ncsn_28":
        assert set(states[4]) == set(golden.settings["param_order"])
    config = read_official_yaml(tmp_path / "out.yml")
    assert torch.equal(noise_levels(config), torch.from_numpy(golden.sigmas))


@pytest.mark.parametrize("weights", ["ema", "model"])
def test_a_training_run_becomes_weights_and_averages(tmp_path, trained, weights):
    convert(trained, tmp_path / "out.pth", ema=weights == "ema")
    states = states_of(tmp_path / "out.pth")
    model = nf.load_checkpoint(trained, ema=False)
    assert_equal(states[0], weights_of(model))
    config = read_official_yaml(tmp_path / "out.yml")
    assert config["model"]["ema"] == (weights == "ema")
    if weights == "ema":
        average = nf.load_checkpoint(trained)
        assert not torch.equal(average.begin_conv.weight, model.begin_conv.weight)
        assert_equal(states[4], average_of(average))
    else:
        assert len(states) == 4


def test_official_weights_as_trained_or_averaged(tmp_path):
    net, average = network(seed=1), network(seed=2)
    path = official(tmp_path / "in.pth", weights_of(net), {}, 3, 7, average_of(average))
    convert(path, tmp_path / "a.safetensors", config=config_file(tmp_path / "in.yml"))
    convert(path, tmp_path / "b.safetensors", config=config_file(tmp_path / "in.yml"), ema=False)
    assert_same_weights(nf.load_checkpoint(tmp_path / "a.safetensors"), average)
    assert_same_weights(nf.load_checkpoint(tmp_path / "b.safetensors"), net)


def test_the_optimiser_state_fits_the_official_optimiser(tmp_path, trained):
    convert(trained, tmp_path / "out.pth")
    net = network(channels=1)
    adam = torch.optim.Adam(torch.nn.DataParallel(net).parameters(), lr=1.0)
    adam.load_state_dict(states_of(tmp_path / "out.pth")[1])
    assert adam.param_groups[0]["lr"] == 1e-4


def test_first_version_is_told_as_its_code_saves_it(tmp_path):
    nf.save_checkpoint(network("NCSN"), tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", tmp_path / "out.pth")

    class Loader(yaml.SafeLoader):
        pass

    def namespace(loader, node):
        return type("Namespace", (), loader.construct_mapping(node))

    # As the official code does.
    Loader.add_constructor("tag:yaml.org,2002:python/object:argparse.Namespace", namespace)
    config = yaml.load((tmp_path / "out.yml").read_text(), Loader=Loader)
    assert (config.data.image_size, config.model.ngf, config.training.algo) == (8, 4, "dsm")


def test_evenly_spaced_levels_are_told(tmp_path):
    net = network()
    net.sigmas = torch.linspace(5, 0.01, 7)
    assert official_config(net)["model"]["sigma_dist"] == "uniform"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nf.MLPScore(sigmas=[2.0, 1.0]), "has no MLPScore: it has NCSN,"),
        (lambda: network(image_size=(8, 12)), "square images.* 8×12"),
        (lambda: network(classes=3), "the official code has no classes"),
        (lambda: network("NCSN", activation="relu"), "in NCSN only ELU.* relu"),
        (lambda: network("NCSN", rescaled=True), "rescaled: True"),
        (lambda: nf.NCSNv2(channels=2, image_size=8, ngf=4, sigmas=[9, 8, 1]), "not geometric"),
    ],
)
def test_what_the_official_code_does_not_have_is_refused(tmp_path, make, message):
    path = nf.save_checkpoint(make(), tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=message):
        convert(path, tmp_path / "out.pth")
    assert not (tmp_path / "out.pth").exists()


def test_half_the_size_and_loaded_as_float32(tmp_path):
    net = network()
    path = nf.save_checkpoint(net, tmp_path / "full")
    convert(path, tmp_path / "half.safetensors", dtype="float16")
    stored, _ = read_tensors(tmp_path / "half.safetensors")
    assert stored["begin_conv.weight"].dtype == torch.float16
    assert stored["sigmas"].dtype == torch.float32
    loaded = nf.load_checkpoint(tmp_path / "half.safetensors")
    assert torch.equal(loaded.sigmas, net.sigmas)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    for key, value in net.named_parameters():
        assert torch.equal(loaded.get_parameter(key), value.half().float()), key
    # Once rounded nothing more is lost.
    nf.save_checkpoint(loaded, tmp_path / "again", dtype=torch.float16)
    assert_same_weights(nf.load_checkpoint(tmp_path / "again.safetensors"), loaded)


def test_weights_too_large_for_sixteen_bits_are_refused(tmp_path):
    net = network()
    with torch.no_grad():
        net.begin_conv.bias[0] = 1e5
    with pytest.raises(ValueError, match=r"begin_conv\.bias has values that torch\.float16 cannot"):
        nf.save_checkpoint(net, tmp_path / "a", dtype=torch.float16)
    assert list(tmp_path.iterdir()) == []
    nf.save_checkpoint(net, tmp_path / "a", dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"dtype = torch\.int8"):
        nf.save_checkpoint(net, tmp_path / "b", dtype=torch.int8)


def test_files_are_replaced_only_by_force(tmp_path):
    path = nf.save_checkpoint(network(), tmp_path / "a.safetensors")
    (tmp_path / "b.json").write_text("mine")
    with pytest.raises(ValueError, match=r"b\.json is there already.*--force"):
        convert(path, tmp_path / "b.safetensors")
    assert not (tmp_path / "b.safetensors").exists()
    convert(path, tmp_path / "b.safetensors", force=True)
    assert json.loads((tmp_path / "b.json").read_text())["kind"] == "network"
    (tmp_path / "link.safetensors").symlink_to(path)
    for target in ("a.safetensors", "link.safetensors"):
        with pytest.raises(ValueError, match="would replace what is converted"):
            convert(path, tmp_path / target, force=True)


def test_an_unknown_image_size_is_refused(tmp_path):
    net = network()
    path = official(tmp_path / "in.pth", weights_of(net), {}, 3, 7)
    with pytest.raises(ValueError, match="does not tell for images of which size"):
        convert(path, tmp_path / "out.safetensors")
    convert(path, tmp_path / "out.safetensors", image_size=8)
    assert nf.load_checkpoint(tmp_path / "out.safetensors").shape == (2, 8, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a.safetensors", "b.bin"), "b.bin ends in .bin: give a name ending in .safetensors"),
        (("a.safetensors", "b"), "ends in nothing"),
        (("a.safetensors", "b.pth", "--dtype", "float16"), "the official code reads float32"),
        (("none.pth", "b.safetensors"), "there is no checkpoint none.pth: give a file"),
        (("a.safetensors", "no/b.pth"), "the folder no does not exist"),
    ],
)
def test_refusals_on_the_command_line(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    nf.save_checkpoint(network(), "a.safetensors")
    result = invoke("convert", *arguments)
    assert result.exit_code == 1
    assert message in result.output
    assert len(list(tmp_path.iterdir())) == 2


def test_the_command_says_what_it_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    official(Path("in.pth"), weights_of(network()), {}, 3, 7, average_of(network()))
    config_file(Path("in.yml"))
    output = succeed("convert", "in.pth", "out.safetensors", "--config", "in.yml")
    assert "in.pth: list of 5, averaged (EMA) weights" in output
    assert "NCSNv2 2×8×8, 7 noise levels" in output
    assert "Now: ncsn-fast sample out.safetensors" in output


def test_a_bundled_network_has_a_name(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(BUNDLED, "digits", tmp_path / "absent.safetensors")
        with pytest.raises(
            CheckpointError, match=r"comes with ncsn_fast is missing.*--preset digits"
        ):
            nf.load_checkpoint("digits")
    net = network()
    path = nf.save_checkpoint(net, tmp_path / "asset", dtype=torch.float16)
    monkeypatch.setitem(BUNDLED, "digits", path)
    assert nf.load_checkpoint("digits").source.startswith("asset.safetensors: ncsn_fast network")
    assert nf.load_checkpoint(Path("digits")).shape == net.shape


def test_averaged_weights_that_are_asked_for_have_to_be_there(tmp_path, trained):
    config = config_file(tmp_path / "in.yml")
    path = official(tmp_path / "in.pth", weights_of(network()), {}, 3, 7)
    with pytest.raises(ValueError, match="holds no averaged weights"):
        convert(path, tmp_path / "a.safetensors", config=config, ema=True)
    assert not (tmp_path / "a.safetensors").exists()
    result = invoke("convert", path, tmp_path / "a.pth", "--config", config, "--weights", "ema")
    assert result.exit_code == 1
    assert "holds no averaged weights" in result.output
    convert(trained, tmp_path / "a.safetensors", ema=True)
    # Where nothing is asked for, what is there is taken, and nothing is called an average.
    convert(path, tmp_path / "b.pth", config=config)
    assert len(states_of(tmp_path / "b.pth")) == 4
    assert read_official_yaml(tmp_path / "b.yml")["model"]["ema"] is False


def test_averaged_weights_alone_are_the_model(tmp_path):
    net = network()
    torch.save({"params_ema": net.state_dict()}, tmp_path / "in.pth")
    convert(tmp_path / "in.pth", tmp_path / "out.pth", config=config_file(tmp_path / "in.yml"))
    states = states_of(tmp_path / "out.pth")
    assert_equal(states[0], weights_of(net))
    assert len(states) == 4


def test_shadow_parameters_are_converted(tmp_path):
    net, average = network(seed=1), network(seed=2)
    ema = {"decay": 0.9, "num_updates": 3, "shadow_params": list(average.parameters())}
    torch.save({"model": net.state_dict(), "ema": ema, "step": 3}, tmp_path / "in.pth")
    config = config_file(tmp_path / "in.yml")
    succeed("convert", tmp_path / "in.pth", tmp_path / "out.pth", "--config", config)
    states = states_of(tmp_path / "out.pth")
    assert_equal(states[0], weights_of(net))
    assert_equal(states[4], average_of(average))


def test_which_weights_were_converted_stays_known(tmp_path, trained):
    ours = tmp_path / "a.safetensors"
    for source, option, words in (
        (trained, "ema", "averaged (EMA) weights"),
        (trained.with_name("model.safetensors"), "ema", "averaged (EMA) weights"),
        (trained, "model", "weights as trained"),
    ):
        succeed("convert", source, ours, "--weights", option, "--force")
        output = succeed("convert", ours, tmp_path / "b.pth", "--force")
        assert f"a.safetensors: ncsn_fast network checkpoint, {words}" in output
        assert str(nf.load_checkpoint(tmp_path / "b.pth", image_size=8).source).endswith(words)
    result = invoke("convert", ours, tmp_path / "c.safetensors", "--weights", "ema")
    assert result.exit_code == 1
    assert "holds no averaged weights" in result.output


def test_an_average_of_some_tensors_stays_one(tmp_path):
    average = average_of(network(seed=2))
    del average["begin_conv.weight"]
    path = official(tmp_path / "in.pth", weights_of(network()), {}, 3, 7, average)
    convert(path, tmp_path / "a.safetensors", config=config_file(tmp_path / "in.yml"))
    convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    words = "averaged (EMA) weights, but some tensors, which have no average, as trained"
    assert str(nf.load_checkpoint(tmp_path / "b.safetensors").source).endswith(words)
