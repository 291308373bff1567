"""The classifiers: their files, those that come along, and what they see."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from ncsn_fast.checkpoints.tensor_file import CheckpointError, read_tensors, write_tensors
from ncsn_fast.data.digits import digits
from ncsn_fast.data.pixels import eight_bits
from ncsn_fast.evaluation.classifier import (
    CLASSIFIERS,
    Classifier,
    load_classifier,
    save_classifier,
)
from ncsn_fast.evaluation.features import seen


def classifier(**changes: Any) -> Classifier:
    torch.manual_seed(0)
    settings = {"shape": (1, 12, 9), "classes": ["boot", "bag", "coat"], **changes}
    net = Classifier(**settings)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # as after training, not as at the start
            torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    return net.eval()


def images(number: int = 7, shape: tuple[int, ...] = (1, 12, 9)) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (number, *shape), generator=random, dtype=torch.uint8)


def test_what_is_saved_is_loaded_rounded_to_16_bits(tmp_path: Path) -> None:
    net, path = classifier(), tmp_path / "net.safetensors"
    save_classifier(path, net, {"epochs": 3})
    back = load_classifier(path)
    assert (back.shape, back.classes) == ((1, 12, 9), ("boot", "bag", "coat"))
    assert not back.training
    for name, value in back.state_dict().items():
        expected = net.state_dict()[name]
        if value.is_floating_point():
            expected = expected.half().float()
        assert torch.equal(value, expected), name
    assert read_tensors(path)[1]["facts"] == {"epochs": 3}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_those_that_come_along_are_small_and_whole(name: str) -> None:
    net = load_classifier(name)
    assert CLASSIFIERS[name].stat().st_size < 300_000
    side, number = (8, 1_400) if name == "digits" else (28, 60_000)
    assert (net.shape, len(net.classes)) == ((1, side, side), 10)
    facts = read_tensors(CLASSIFIERS[name])[1]["facts"]
    assert facts["images"] == number
    assert all(not value.requires_grad for value in net.parameters())


def test_their_classes_are_those_of_the_data() -> None:
    for name in ("digits", "mnist"):
        assert load_classifier(name).classes == tuple("0123456789")
    assert load_classifier("fashion").classes == (
        *("T-shirt", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Boot"),
    )


def test_that_of_the_digits_reads_those_it_did_not_see() -> None:
    images, labels = digits("test")
    told = seen(load_classifier("digits"), eight_bits(images.numpy())).probabilities.argmax(1)
    assert int((told != labels).sum()) == 3  # of 397


def test_that_of_mnist_reads_digits_written_by_others() -> None:
    """The bundled digits are of other writers and of 8×8 pixels."""
    found = digits("all")
    large = F.interpolate(found.images, (20, 16), mode="bicubic").clamp(0, 1)
    told = seen(load_classifier("mnist"), F.pad(large, (6, 6, 4, 4))).probabilities.argmax(1)
    assert float((told == found.labels).double().mean()) > 0.93


def test_batches_do_not_matter_and_8_bits_are_divided_by_255() -> None:
    net, pixels = classifier(), images()
    whole = seen(net, pixels)
    assert whole.features.shape == (7, net.width)
    assert whole.probabilities.shape == (7, 3)
    for other in (seen(net, pixels, batch_size=2), seen(net, pixels / 255)):
        torch.testing.assert_close(other.features, whole.features)
        torch.testing.assert_close(other.probabilities, whole.probabilities)
    expected = net(pixels / 255).softmax(1)
    torch.testing.assert_close(whole.probabilities, expected)


def test_classes_are_counted_by_the_largest_probability() -> None:
    net = classifier()
    torch.nn.init.zeros_(net.head.weight)
    with torch.no_grad():
        net.head.bias.copy_(torch.tensor([0.0, 3.0, 1.0]))  # 0.84 for the second
    found = seen(net, images())
    assert found.counts.tolist() == [0, 7, 0]
    assert found.confident == 0
    with torch.no_grad():
        net.head.bias[1] = 5
    assert seen(net, images()).confident == 1


def test_images_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"of images \(1, 12, 9\), given are \(7, 3, 12, 9\)"):
        seen(classifier(), images(shape=(3, 12, 9)))


def wrong(change: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The contents of a file with something wrong in it."""
    tensors = dict(classifier().state_dict())
    about: dict[str, Any] = {"kind": "classifier", "shape": [1, 12, 9], "classes": ["a", "b", "c"]}
    if change == "nan":
        tensors["head.bias"] = torch.full((3,), torch.nan)
    elif change == "missing":
        del tensors["head.bias"]
    elif change == "another size":
        tensors["head.bias"] = torch.zeros(4)
    else:
        about |= json.loads(change)
    return tensors, about


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ('{"kind": "network"}', "is no classifier"),
        ('{"shape": [1, 12]}', "shape .* is none of an image"),
        ('{"shape": [1, 1.5, 12]}', "shape .* is none of an image"),
        ('{"shape": [100000000, 12, 9]}', "shape .* is none of an image"),
        ('{"shape": null}', "shape .* is none of an image"),
        ('{"classes": ["a"]}', "classes .* are no names"),
        ('{"classes": [1, 2, 3]}', "classes .* are no names"),
        ('{"classes": "abc"}', "classes .* are no names"),
        ('{"classes": ["a", "b"]}', "head.* are missing or of another shape"),
        ("another size", "head.bias are missing or of another shape"),
        ("missing", "head.bias are missing or of another shape"),
        ("nan", "head.bias are not finite"),
    ],
)
def test_a_file_with_something_wrong_in_it_is_refused(
    change: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "net.safetensors"
    write_tensors(path, *wrong(change))
    with pytest.raises(CheckpointError, match=message) as refusal:
        load_classifier(path)
    assert str(path) in str(refusal.value)


def test_a_name_that_is_none_is_refused() -> None:
    with pytest.raises(
        FileNotFoundError, match="no classifier letters: give digits, mnist, fashion or a"
    ):
        load_classifier("letters")
