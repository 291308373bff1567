"""Where files keep a network and its averaged weights: every form is found, paired, or refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.checkpoints import LEVELS, assert_same_weights, average_of, network
from torch import Tensor, nn

from ncsn_fast.checkpoints.copies import looks_averaged
from ncsn_fast.checkpoints.load_save import load_checkpoint
from ncsn_fast.checkpoints.tensor_file import CheckpointError, write_tensors
from ncsn_fast.models.base import ScoreNetwork

NET, AVERAGE = network(seed=1), network(seed=2)
RAW, EMA = NET.state_dict(), AVERAGE.state_dict()
NAMES = average_of(AVERAGE)  # no buffers
IN_ORDER = list(NAMES.values())
ADAM = {"state": {0: {"step": 1, "exp_avg": torch.ones(3), "exp_avg_sq": torch.ones(3)}}}
ADAM |= {"param_groups": [{"lr": 1e-3}]}


def under(prefix: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value.clone() for name, value in weights.items()}


def squashed(weights: Mapping[str, Tensor], before: str = "") -> dict[str, Tensor]:
    return {before + name.replace(".", ""): value for name, value in weights.items()}


def swa(net: ScoreNetwork, averaged: int = 3) -> dict[str, Tensor]:
    state = torch.optim.swa_utils.AveragedModel(net).state_dict()
    return {**state, "n_averaged": torch.tensor(averaged)}


def saved(tmp_path: Path, data: Any, name: str = "c.pth") -> Path:
    torch.save(data, tmp_path / name)
    return tmp_path / name


# Weights as trained beside averaged ones, and where the averaged ones lie, in words.
FORMS: dict[str, tuple[Any, str]] = {
    "score_sde_pytorch": (
        {
            "optimizer": ADAM,
            "model": under("module.", RAW),
            "ema": {"decay": 0.999, "num_updates": 7, "shadow_params": IN_ORDER},
            "step": 7,
        },
        "dict (model, ema.shadow_params)",
    ),
    "torch_ema": (
        {
            "model": RAW,
            "ema": {
                "decay": 0.9,
                "num_updates": None,
                "shadow_params": IN_ORDER,
                "collected_params": [value.clone() for value in NET.parameters()],
            },
        },
        "dict (model, ema.shadow_params)",
    ),
    "state_dict": ({"state_dict": RAW, "ema": EMA}, "dict (state_dict, ema)"),
    "module": ({"model": RAW, "ema": {"module": EMA, "decay": 0.9}}, "dict (model, ema.module)"),
    "module prefix": ({"model": RAW, "ema": under("module.", EMA)}, "dict (model, ema)"),
    "shadow": ({"net": RAW, "ema": {"mu": 0.9, "shadow": NAMES}}, "dict (net, ema.shadow)"),
    "shadow and backup": (
        {"net": RAW, "ema": {"shadow": NAMES, "backup": average_of(NET)}},
        "dict (net, ema.shadow)",
    ),
    "timm": ({"state_dict": RAW, "state_dict_ema": EMA}, "dict (state_dict, state_dict_ema)"),
    "model_ema": ({"model": RAW, "model_ema": EMA}, "dict (model, model_ema)"),
    "ema_state_dict": ({"model_state": RAW, "ema_state_dict": EMA}, "(model_state, ema_state_dict"),
    "BasicSR": ({"params": RAW, "params_ema": EMA}, "dict (params, params_ema)"),
    "ema_model": ({"network": RAW, "ema_model": EMA}, "dict (network, ema_model)"),
    "camel": ({"netG": RAW, "netEMA": EMA}, "dict (netG, netEMA)"),
    "glued": ({"score": RAW, "modelema": NAMES}, "dict (score, modelema)"),
    "nested": ({"states": {"model": RAW, "ema": NAMES}, "step": 3}, "(states.model, states.ema)"),
    "swa": ({"model": RAW, "swa_model": swa(AVERAGE)}, "dict (model, swa_model)"),
    "polyak": ({"model": RAW, "polyak": IN_ORDER}, "dict (model, polyak)"),
    "rates": ({"model": RAW, "ema_0.999": NAMES}, "dict (model, ema_0.999)"),
    "ema_pytorch": (
        {
            "model": RAW,
            "ema": {
                "initted": torch.tensor(True),
                "step": torch.tensor([9]),
                **under("online_model.", RAW),
                **under("ema_model.", EMA),
            },
        },
        "dict (model, ema: ema_model.)",
    ),
    "EMAHelper alone in a list": ([RAW, ADAM, 3, 7, NAMES], "list of 5"),
    "EMAHelper that holds its decay": ([RAW, ADAM, 3, 7, {"mu": 0.9, "shadow": NAMES}], "list of"),
    "shadow_params in a list": ([RAW, ADAM, 3, 7, {"shadow_params": IN_ORDER}], "list of 5"),
    "list with more entries": ([RAW, ADAM, 3, 7, NAMES, 0.1, {"loss": [1.0]}], "list of 7"),
    "list that begins otherwise": ([3, ADAM, RAW, {"lr": 0.1}, NAMES], "list of 5"),
    "list in a dict": ({"states": [RAW, ADAM, 0, 5, NAMES]}, "dict (states.0, states.4)"),
    "counted in tensors": (
        {
            "model": RAW,
            "ema": {**NAMES, "decay": torch.tensor(0.9), "num_updates": torch.tensor(3)},
        },
        "dict (model, ema)",
    ),
    "pair": ((RAW, NAMES), "list of 2"),
    "one state_dict": (
        {**under("model.", RAW), **under("model_ema.", EMA)},
        "dict of weights (model., model_ema.)",
    ),
    "lightning": (
        {
            "epoch": 3,
            "state_dict": {**under("net.", RAW), **under("ema.module.", NAMES)},
            "optimizer_states": [ADAM],
            "callbacks": {"ModelCheckpoint": {"best": 0.3}},
        },
        "dict (state_dict: net., state_dict: ema.)",
    ),
    "lightning's callback": (
        {"state_dict": under("net.", RAW), "callbacks": {"EMA": {"ema_weights": IN_ORDER}}},
        "callbacks.EMA.ema_weights",
    ),
    "LitEma": (
        {
            "state_dict": {
                **under("model.score.", RAW),
                **squashed(NAMES, "model_ema.score"),
                "model_ema.decay": torch.tensor(0.9),
                "model_ema.num_updates": torch.tensor(3),
            }
        },
        "dict (state_dict: model.score., state_dict.model_ema.)",
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_averaged_weights_are_taken_in_every_form(tmp_path: Path, form: str) -> None:
    data, told = FORMS[form]
    path = saved(tmp_path, data)
    net = load_checkpoint(path, image_size=8)
    assert_same_weights(net, AVERAGE)
    assert told in str(net.source)
    assert str(net.source).endswith("averaged (EMA) weights")
    raw = load_checkpoint(path, image_size=8, ema=False)
    assert_same_weights(raw, NET)
    assert str(raw.source).endswith("weights as trained")


@pytest.mark.parametrize(
    "names",
    [("model.", "model_ema."), ("net.", "ema."), ("", "ema_model."), ("model.net.", "model.ema.")],
)
def test_averaged_weights_in_a_safetensors_file(tmp_path: Path, names: tuple[str, str]) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "c.safetensors"
    save_file({**under(names[0], RAW), **under(names[1], NAMES)}, path)
    assert_same_weights(load_checkpoint(path, image_size=8), AVERAGE)
    assert_same_weights(load_checkpoint(path, image_size=8, ema=False), NET)


@pytest.mark.parametrize(
    "data",
    [
        {"params_ema": EMA},
        {"ema": {"module": EMA}},
        {"ema": under("module.", EMA), "step": 3},
        swa(AVERAGE),
        under("ema_model.", EMA),
        {"model": swa(AVERAGE)},
    ],
)
def test_averaged_weights_alone(tmp_path: Path, data: Any) -> None:
    path = saved(tmp_path, data)
    net = load_checkpoint(path, image_size=8)
    assert_same_weights(net, AVERAGE)
    assert str(net.source).endswith("averaged (EMA) weights")
    with pytest.raises(CheckpointError, match=r"averaged weights only .*ema=True"):
        load_checkpoint(path, image_size=8, ema=False)


def test_what_a_partial_average_leaves_to_the_network_is_said(tmp_path: Path) -> None:
    partial = {name: value for name, value in NAMES.items() if not name.startswith("begin_conv")}
    path = saved(tmp_path, [RAW, ADAM, 0, 5, partial])
    net = load_checkpoint(path, image_size=8)
    expected = network(seed=2)
    expected.begin_conv = NET.begin_conv
    assert_same_weights(net, expected)
    assert (
        f"but 2 of {len(NAMES)} tensors, which have no average, as trained (begin_conv.weight, "
        "begin_conv.bias)" in str(net.source)
    )


def test_what_a_partial_average_of_ours_leaves_is_said(tmp_path: Path) -> None:
    tensors = {**under("model.", RAW), **under("ema.", NAMES)}
    del tensors["ema.end_conv.bias"]
    metadata = {"kind": "training", "config": NET.config, "sampling": None}
    write_tensors(tmp_path / "c.safetensors", tensors, metadata)
    net = load_checkpoint(tmp_path / "c.safetensors")
    assert torch.equal(net.end_conv.weight, AVERAGE.end_conv.weight)
    assert torch.equal(net.end_conv.bias, NET.end_conv.bias)
    assert "1 of" in str(net.source)
    assert "as trained (end_conv.bias)" in str(net.source)


UNCLEAR: dict[str, tuple[Any, str]] = {
    "one too few": ({"model": RAW, "ema": {"shadow_params": IN_ORDER[1:]}}, "ema.shadow_params"),
    "another order": ({"model": RAW, "ema": IN_ORDER[::-1]}, "'ema'"),
    "with the buffers": ({"model": RAW, "ema": list(EMA.values())}, "'ema'"),
    "one vector": (
        {"model": RAW, "ema": {"flat": torch.cat([v.flatten() for v in IN_ORDER])}},
        "'ema'",
    ),
    "one bare vector": (
        {"model": RAW, "ema": torch.cat([v.flatten() for v in IN_ORDER])},
        "'ema'",
    ),
    "a vector among the weights": ({"model": {**RAW, "ema.flat": torch.zeros(99)}}, "ema"),
    "other names": ({"model": RAW, "ema": {f"p{i}": v for i, v in enumerate(IN_ORDER)}}, "'ema'"),
    "two of them": ({"model": RAW, "ema": {"a": NAMES, "b": NAMES}, "x": 1}, None),
    "two that differ": ({"model": RAW, "ema": NAMES, "swa": average_of(NET)}, "'ema', 'swa'"),
    "another network's": ({"model": RAW, "ema": network(ngf=6).state_dict()}, "do not fit"),
    "other levels": (
        {"model": RAW, "ema": {**EMA, "sigmas": EMA["sigmas"] * 2}},
        "noise levels beside",
    ),
    "in an optimiser": (
        {"model": RAW, "optimizer": {"state": {0: {"exp_avg": IN_ORDER[0], "ema": IN_ORDER[0]}}}},
        "optimizer.state.0",
    ),
    "not begun": ({"model": RAW, "swa_model": swa(AVERAGE, 0)}, "averaged nothing yet"),
    "an odd entry of a list": ([RAW, ADAM, 0, 5, {"a": torch.zeros(3)}], "'4'"),
}


@pytest.mark.parametrize("form", UNCLEAR)
def test_an_average_that_is_not_understood_is_refused_by_name(tmp_path: Path, form: str) -> None:
    data, message = UNCLEAR[form]
    path = saved(tmp_path, data)
    if message is None:  # equal ones, of which any will do
        assert_same_weights(load_checkpoint(path, image_size=8), AVERAGE)
        return
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(path, image_size=8)
    assert "c.pth" in str(caught.value)
    if form != "two that differ":
        assert "--weights model" in str(caught.value)
    assert_same_weights(load_checkpoint(path, image_size=8, ema=False), NET)


def test_numbers_that_are_called_averages_are_none(tmp_path: Path) -> None:
    data = {"model": RAW, "ema": None, "ema_rate": 0.999, "loss_avg": torch.tensor(0.3)}
    data |= {"losses_avg": torch.ones(40), "optimizer": ADAM, "schema": {"x": torch.ones(4)}}
    net = load_checkpoint(saved(tmp_path, data), image_size=8)
    assert_same_weights(net, NET)
    assert str(net.source).endswith("weights as trained")


@pytest.mark.parametrize(
    ("name", "average"),
    [
        ("ema", True), ("EMA", True), ("netEMA", True), ("modelEma", True), ("ema_0.9999", True),
        ("state_dict_ema", True), ("shadow_params", True), ("averaged", True), ("avg_model", True),
        ("swa_model", True), ("polyak", True), ("modelema", True), ("exp_avg", False),
        ("exp_avg_sq", False), ("max_exp_avg_sq", False), ("square_avg", False), ("schema", False),
        ("model", False), ("module", False), ("semantic", False), ("swap", False),
    ],
)  # fmt: skip
def test_what_is_called_an_average(name: str, average: bool) -> None:
    assert looks_averaged(name) is average


# Names.


class Holder(nn.Module):
    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


WRAPPED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "DDP of compiled": lambda net: Holder(module=Holder(_orig_mod=net)),
    "compiled DDP": lambda net: Holder(_orig_mod=Holder(module=net)),
    "DDP twice": lambda net: Holder(module=Holder(module=Holder(module=net))),
    "in a wrapper": lambda net: Holder(score_model=Holder(_orig_mod=Holder(module=net))),
    "DDP of a wrapper": lambda net: Holder(module=Holder(net=net)),
    "four deep": lambda net: Holder(a=Holder(module=Holder(b=Holder(_orig_mod=Holder(c=net))))),
}


@pytest.mark.parametrize("wrapped", WRAPPED)
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_prefixes_are_taken_off_in_every_order(tmp_path: Path, wrapped: str, suffix: str) -> None:
    from safetensors.torch import save_file

    state = dict(WRAPPED[wrapped](NET).state_dict())
    path = tmp_path / f"c.{suffix}"
    save_file(state, path) if suffix == "safetensors" else torch.save({"model": state}, path)
    assert_same_weights(load_checkpoint(path, image_size=8), NET)


def test_parts_that_were_compiled_alone(tmp_path: Path) -> None:
    state = {
        k.replace("res1.", "res1._orig_mod.").replace("begin_conv.", "begin_conv._orig_mod."): v
        for k, v in RAW.items()
    }
    assert_same_weights(load_checkpoint(saved(tmp_path, state), image_size=8), NET)


def test_a_prefix_that_not_all_names_have(tmp_path: Path) -> None:
    state = {f"module.{k}" if "res1" in k else k: v for k, v in RAW.items()}
    assert_same_weights(load_checkpoint(saved(tmp_path, state), image_size=8), NET)
    state["module.end_conv.bias"] = torch.zeros(2)
    with pytest.raises(CheckpointError, match=r"two tensors are called end_conv\.bias"):
        load_checkpoint(saved(tmp_path, state), image_size=8)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({**under("net.", RAW), "critic.weight": torch.ones(9)}, r"something else \(critic.weight"),
        ({"model": RAW, "best": average_of(AVERAGE)}, r"several places \('model', 'best'\)"),
        ({"model": RAW, "momentum_model": EMA}, "several places"),
        ({**under("generator.", RAW), **under("target.", EMA)}, "several places"),
    ],
)
def test_which_network_is_meant_is_not_guessed(tmp_path: Path, data: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(saved(tmp_path, data), image_size=8)


def test_a_network_behind_an_optimiser_is_no_average(tmp_path: Path) -> None:
    for data in ([ADAM, RAW], [5, ADAM, RAW], (3, RAW, ADAM)):
        net = load_checkpoint(saved(tmp_path, data), image_size=8)
        assert_same_weights(net, NET)
        assert str(net.source).endswith("weights as trained")


def test_the_same_weights_twice_are_no_question(tmp_path: Path) -> None:
    net = load_checkpoint(saved(tmp_path, {"model": RAW, "state_dict": RAW}), image_size=8)
    assert_same_weights(net, NET)


def test_first_version_pairs_its_parameters_in_order(tmp_path: Path) -> None:
    net, average = network("NCSN", seed=1), network("NCSN", seed=2)
    ema = {"decay": 0.9, "num_updates": 3, "shadow_params": list(average.parameters())}
    path = saved(tmp_path, {"model": net.state_dict(), "ema": ema})
    assert_same_weights(load_checkpoint(path, sigmas=LEVELS, image_size=8), average)
