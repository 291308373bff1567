"""ncsn-fast train --pretrained: a run that begins with the weights of another network."""

import gc
import weakref

import pytest
import torch
from helpers.command import invoke, succeed

import ncsn_fast as nf
from ncsn_fast.distributed.group import Group
from ncsn_fast.runs.training import pretrained
from ncsn_fast.runs.training.pretrained import begin_from

TINY = ("--ngf", 4, "--batch-size", 4, "--steps", 1, "--steps-per-level", 1)


def small(sigma=1.0, **settings):
    sigmas = nf.geometric_sigmas(sigma, 0.01, 3)
    return nf.NCSNv2(channels=1, image_size=8, ngf=4, sigmas=sigmas, **settings)


def test_the_weights_are_theirs_and_the_noise_levels_its_own(tmp_path):
    theirs = small()
    path = nf.save_checkpoint(theirs, tmp_path / "theirs")
    # At such a rate a step of Adam moves no weight by more than that.
    flags = ("--pretrained", path, "--learning-rate", 1e-30, "--sigma-max", 2)
    output = succeed("train", "--out", tmp_path / "run", *flags, *TINY)
    assert f"pretrained {path}" in " ".join(output.split())
    ours = nf.load_checkpoint(tmp_path / "run" / "model.safetensors")
    assert ours.sigmas[0] == 2
    for name, weight in theirs.named_parameters():
        torch.testing.assert_close(ours.get_parameter(name), weight, rtol=0, atol=1e-29)
    path.unlink()  # whoever goes on with the run does not need it
    output = succeed("train", "--out", tmp_path / "run", "--resume", "--steps", 2)
    assert "from step 1 to 2" in output


def test_the_first_process_looks_at_them_first_and_none_keeps_them(tmp_path, monkeypatch):
    path = nf.save_checkpoint(small(), tmp_path / "theirs")
    alone, loaded, kept = [], [], []
    first_alone, fit, load = Group.first_alone, nf.Trainer.fit, pretrained.load_checkpoint

    def noticed(self, work):
        alone.append(True)
        try:
            return first_alone(self, work)
        finally:
            alone.pop()

    def watched(place):
        assert alone
        loaded.append(weakref.ref(net := load(place)))
        return net

    def looked(self, **keywords):
        gc.collect()
        kept.extend(net() is not None for net in loaded)
        return fit(self, **keywords)

    monkeypatch.setattr(Group, "first_alone", noticed)
    monkeypatch.setattr(pretrained, "load_checkpoint", watched)
    monkeypatch.setattr(nf.Trainer, "fit", looked)
    succeed("train", "--out", tmp_path / "run", "--pretrained", path, "--sigma-max", 2, *TINY)
    assert kept == [False]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("theirs", "it has ngf 4, not 8. Give the run its settings"),
        ("digits", "it has ngf 32, not 8"),
        ("nowhere.safetensors", "nowhere.safetensors"),
    ],
)
def test_another_network_is_refused_before_work_begins(tmp_path, monkeypatch, given, message):
    monkeypatch.chdir(tmp_path)
    nf.save_checkpoint(small(), "theirs.safetensors")
    given = "theirs.safetensors" if given == "theirs" else given
    monkeypatch.setattr("ncsn_fast.runs.train.auto_schedule", None)
    result = invoke("train", "--out", "run", "--ngf", 8, "--pretrained", given)
    assert result.exit_code == 1
    assert message in result.output
    assert not (tmp_path / "run").exists()


def told_and_not(net, x):
    return net.normalized(x, classes=1), net.normalized(x)


def test_classes_are_taken_over_where_they_are_the_same():
    x = torch.rand(2, 1, 8, 8)
    theirs = small(classes=("a", "b"))
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            if name.endswith("embed.weight"):
                weight[:-1].normal_()
    begin_from(same := small(classes=("a", "b")), theirs)
    torch.testing.assert_close(told_and_not(same, x), told_and_not(theirs, x))
    begin_from(other := small(classes=("c", "d", "e")), theirs)
    told, free = told_and_not(other, x)
    torch.testing.assert_close(told, free)
    torch.testing.assert_close(free, theirs.normalized(x))
    begin_from(none := small(), theirs)
    torch.testing.assert_close(none.normalized(x), theirs.normalized(x))


def test_levels_of_an_ncsn_have_to_be_as_many():
    def of(levels):
        sigmas = nf.geometric_sigmas(1.0, 0.01, levels)
        return nf.NCSN(channels=1, image_size=8, ngf=4, sigmas=sigmas)

    begin_from(of(3), of(3))
    with pytest.raises(ValueError, match="do not fit the network of this run"):
        begin_from(of(4), of(3))
