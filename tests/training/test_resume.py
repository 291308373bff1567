"""Stopped, killed or broken, a run goes on as if nothing had happened, or is refused."""

import random
import signal
import threading
import time
from dataclasses import replace

import pytest
import torch
from helpers.training import (
    SIGMAS,
    Run,
    config,
    images,
    lines,
    network,
    trained,
    trainer_of,
    weights,
)

import ncsn_fast as nf
from ncsn_fast.checkpoints.tensor_file import read_tensors, write_tensors
from ncsn_fast.device import native
from ncsn_fast.inference.automatic import Choice
from ncsn_fast.support.locks import folder_lock
from ncsn_fast.training import forms
from ncsn_fast.training import state as training_state


@pytest.mark.parametrize("stop_after", [5, 6])
def test_a_resumed_run_equals_one_that_was_not_stopped(tmp_path, stop_after):
    settings = {"log_every": 3, "checkpoint_every": 4, "flip": True, "dequantize": "uniform"}
    whole = trained(steps=12, out=tmp_path / "whole", **settings)

    settings["out"] = tmp_path / "halves"
    trained(steps=stop_after, **settings)
    second = trainer_of(steps=12, resume=True, **settings)
    assert second.step == stop_after
    second.fit()

    assert torch.equal(weights(second.net), weights(whole.net))
    assert torch.equal(weights(second.average), weights(whole.average))
    assert second.history == whole.history
    assert (tmp_path / "halves" / "log.jsonl").read_text().count("\n") == 4


def test_the_scale_of_fp16_is_resumed(tmp_path):
    settings = {"precision": "fp16", "steps": 6, "checkpoint_every": 3}
    whole = trained(out=tmp_path / "whole", **settings)
    trained(out=tmp_path / "halves", **{**settings, "steps": 3})
    resumed = trained(out=tmp_path / "halves", **settings, resume=True)
    assert resumed.scaler.state_dict() == whole.scaler.state_dict()
    assert torch.equal(weights(resumed.net), weights(whole.net))


def test_a_run_of_automatic_precision_keeps_the_one_that_it_began_in(tmp_path, monkeypatch, caplog):
    def run(name, finds, **keywords):
        monkeypatch.setattr(forms, "for_training", lambda net: Choice(finds, "so it was measured"))
        return trained(out=tmp_path / name, **keywords)

    named = run("named", "fp32", precision="bf16", steps=6)
    with caplog.at_level("INFO", "ncsn_fast"):
        first = run("auto", "bf16", precision="auto", steps=3)
        second = run("auto", "fp32", precision="auto", steps=6, resume=True)
    assert first.config.precision == second.config.precision == "bf16"
    assert torch.equal(weights(second.net), weights(named.net))
    told = [line for line in caplog.messages if " trains in " in line]
    assert told == [
        "NCSNv2 trains in bf16: so it was measured",
        "NCSNv2 trains in bf16: as the run began",
    ]
    with pytest.raises(ValueError, match="precision: bf16 there, fp32 here"):
        run("auto", "bf16", precision="fp32", resume=True)


def test_a_resumed_report_by_level_counts_nothing_twice(tmp_path):
    settings = {"checkpoint_every": 3, "batch_size": 32}
    trained(out=tmp_path / "whole", **settings)
    trained(out=tmp_path / "halves", **{**settings, "steps": 3})
    trained(out=tmp_path / "halves", **settings, resume=True)
    reports = [(tmp_path / name / "levels.json").read_text() for name in ("whole", "halves")]
    assert reports[0] == reports[1]


@pytest.mark.skipif(native.missing() is not None, reason="needs the native kernels")
def test_a_run_in_other_forms_of_convolutions_goes_on_and_is_told(tmp_path, monkeypatch, caplog):
    settings = {"sample_every": 2, "samples": 2, "out": tmp_path}

    def told(form, **keywords):
        monkeypatch.setenv("NCSN_FAST_CONV", form)
        caplog.clear()
        trained(**settings, **keywords)
        return [one.message for one in caplog.records if "ran otherwise" in one.message]

    assert told("direct", steps=1) == []
    assert told("direct", steps=2, resume=True) == []
    (message,) = told("F4", steps=3, resume=True)
    assert "so far (direct; from here on F(2×2) " in message
    assert "with NCSN_FAST_CONV=direct it goes on exactly" in message
    assert told("F4", steps=4, resume=True) == []
    (message,) = told("direct", steps=5, resume=True)
    assert "; from here on direct)" in message
    assert "where it was begun, with the decisions and NCSN_FAST_CONV of then" in message


@pytest.mark.skipif(native.missing() is not None, reason="needs the native kernels")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_steps_in_other_forms_are_told_where_there_are_no_samples(
    tmp_path, monkeypatch, caplog, precision
):
    """In bfloat16 steps have no other forms."""
    settings = {"precision": precision, "out": tmp_path}
    monkeypatch.setenv("NCSN_FAST_CONV", "direct")
    trained(steps=1, **settings)
    monkeypatch.setenv("NCSN_FAST_CONV", "F4")
    trained(steps=2, resume=True, **settings)
    told = "from here on direct, in training F(4×4) " in caplog.text
    assert told == (precision == "fp32")
    _, metadata = read_tensors(tmp_path / "checkpoint.safetensors")
    assert (metadata["convolutions"] == "direct") == (precision == "bf16")


@pytest.mark.skipif(native.missing() is not None, reason="needs the native kernels")
def test_a_run_of_an_earlier_version_had_direct_convolutions(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("NCSN_FAST_CONV", "direct")
    settings = {"sample_every": 2, "samples": 2, "out": tmp_path}
    trained(steps=1, **settings)
    path = tmp_path / "checkpoint.safetensors"
    tensors, metadata = read_tensors(path)
    metadata = {k: v for k, v in metadata.items() if k not in ("format", "sha256")}
    assert metadata.pop("convolutions") == "direct"
    write_tensors(path, tensors, metadata)
    trainer_of(steps=2, resume=True, **settings)
    assert not caplog.records
    monkeypatch.setenv("NCSN_FAST_CONV", "F4")
    trained(steps=2, resume=True, **settings)
    assert "so far (direct; from here on" in caplog.text
    write_tensors(path, tensors, {**metadata, "convolutions": ["F4"]})
    with pytest.raises(nf.CheckpointError, match="convolutions should be a text"):
        trainer_of(steps=2, resume=True, **settings)


def test_frozen_parameters_are_left_alone_and_resumed(tmp_path):
    def frozen():
        net = network()
        net.begin_conv.requires_grad_(False)
        return net

    before = frozen().begin_conv.weight
    trained(frozen(), steps=3, out=tmp_path)
    resumed = trained(frozen(), steps=6, out=tmp_path, resume=True)
    assert torch.equal(resumed.net.begin_conv.weight, before)
    whole = trained(frozen(), steps=6)
    assert torch.equal(weights(resumed.net), weights(whole.net))


def test_a_run_may_be_saved_before_its_first_step(tmp_path):
    trainer_of(out=tmp_path).save()
    resumed = trainer_of(out=tmp_path, resume=True)
    assert resumed.step == 0
    assert torch.equal(weights(resumed.fit()), weights(trainer_of().fit()))


def test_a_killed_run_resumes_as_if_nothing_had_happened(tmp_path):
    settings = {"checkpoint_every": 3, "out": tmp_path}
    process = Run(**settings)
    process.wait_for(lambda: len(lines(tmp_path / "log.jsonl")) >= 10)
    process.stop(signal.SIGKILL)
    resumed = trainer_of(steps=30, **settings, resume=True)
    assert resumed.step >= 9
    assert resumed.step % 3 == 0
    assert len(resumed.history) == resumed.step  # log lines after the checkpoint are gone
    steps = resumed.step + 3
    resumed = trained(steps=steps, **settings, resume=True)
    whole = trained(steps=steps, checkpoint_every=3)
    assert resumed.history == whole.history
    assert torch.equal(weights(resumed.net), weights(whole.net))


@pytest.mark.slow
def test_a_run_killed_twenty_times_is_the_run_that_was_not(tmp_path):
    """kill -9 at random moments, while computing, logging or writing; every resume is exact."""
    checkpoint, chance = tmp_path / "checkpoint.safetensors", random.Random(0)

    def saved():
        return checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0

    for _ in range(20):
        before = saved()
        process = Run(tmp_path, checkpoint_every=2)
        process.wait_for(lambda before=before: saved() != before)
        time.sleep(chance.uniform(0, 0.4))
        process.stop(signal.SIGKILL)
    resumed = trainer_of(out=tmp_path, steps=1, checkpoint_every=2, resume=True)
    assert resumed.step > 20
    whole = trained(steps=resumed.step, checkpoint_every=2)
    assert resumed.history == whole.history
    assert torch.equal(weights(resumed.net), weights(whole.net))
    assert torch.equal(weights(resumed.average), weights(whole.average))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_and_saves(tmp_path, number):
    process = Run(tmp_path, checkpoint_every=3)
    process.wait_for(lambda: len(lines(tmp_path / "log.jsonl")) >= 5)
    error = process.stop(number)
    last = len(lines(tmp_path / "log.jsonl"))
    assert f"TrainingInterrupted: {number.name} at step {last}; saved in {tmp_path}" in error
    assert nf.load_checkpoint(tmp_path / "model.safetensors").sigmas.shape == (8,)
    resumed = trainer_of(out=tmp_path, resume=True)
    assert resumed.step == last


def test_signal_handlers_are_put_back_and_other_threads_may_train():
    before = signal.getsignal(signal.SIGINT)
    trained(steps=1)
    assert signal.getsignal(signal.SIGINT) is before
    done = []

    def work():
        done.append(trainer_of(steps=1).fit())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(done) == 1


def test_a_finished_run_killed_before_its_model_was_written_is_completed(tmp_path, monkeypatch):
    def killed(*arguments, **keywords):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training_state, "save_checkpoint", killed)
        with pytest.raises(KeyboardInterrupt):
            trained(out=tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    resumed = trainer_of(out=tmp_path, resume=True)
    assert resumed.step == 6
    average = weights(resumed.fit())
    assert torch.equal(weights(nf.load_checkpoint(tmp_path / "model.safetensors")), average)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(tmp_path):
    trainer = trained(steps=4, checkpoint_every=2, out=tmp_path)
    kept = (tmp_path / "checkpoint.safetensors").read_bytes()
    trainer.config = replace(trainer.config, steps=100)
    with torch.no_grad():
        next(trainer.net.parameters())[:] = torch.nan
    with pytest.raises(nf.TrainingError, match=r"lower learning_rate \(now 0\.001\).*from before"):
        trainer.fit()
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == kept


def test_weights_that_became_nan_do_not_replace_good_ones(tmp_path):
    trainer = trained(steps=4, checkpoint_every=2, out=tmp_path)
    kept = (tmp_path / "model.safetensors").read_bytes()
    trainer.config = replace(trainer.config, steps=100, checkpoint_every=1)
    # The loss of the step is finite, its gradient is not.
    next(trainer.net.parameters()).register_hook(lambda gradient: gradient * torch.nan)
    with pytest.raises(nf.TrainingError, match="weights are no longer finite at step 5"):
        trainer.fit()
    assert (tmp_path / "model.safetensors").read_bytes() == kept
    # The remedy that the message names works.
    again = trainer_of(learning_rate=1e-5, out=tmp_path, resume=True)
    assert again.step == 4
    again.fit()


def test_without_a_checkpoint_none_is_promised(tmp_path):
    trainer = trainer_of(out=tmp_path)
    with torch.no_grad():
        next(trainer.net.parameters())[:] = torch.nan
    with pytest.raises(nf.TrainingError) as error:
        trainer.fit()
    assert "checkpoint" not in str(error.value)


def test_a_step_that_fails_loses_nothing(tmp_path):
    class Broken(torch.utils.data.Dataset):
        def __len__(self):
            return 40

        def __getitem__(self, i):
            return images()[i]

    trainer = trainer_of(data=Broken(), out=tmp_path)
    at = trainer.batches.at

    def failing(step):
        if step == 4:
            raise OSError("the file of sample 17 is cut")
        return at(step)

    trainer.batches.at = failing
    with pytest.raises(OSError, match="sample 17"):
        trainer.fit()
    assert trainer_of(data=Broken(), out=tmp_path, resume=True).step == 4


def test_a_trainer_that_only_looks_changes_nothing(tmp_path):
    trained(out=tmp_path, steps=4, checkpoint_every=2)
    before = (tmp_path / "log.jsonl").read_text() + '{"step": 99, "loss": 1.0}\n'
    (tmp_path / "log.jsonl").write_text(before)
    looking = trainer_of(out=tmp_path, resume=True)
    assert [step for step, _ in looking.history] == [1, 2, 3, 4]
    assert (tmp_path / "log.jsonl").read_text() == before


def test_levels_that_differ_in_the_last_bit_are_those_of_the_checkpoint(tmp_path):
    """Chosen from the data, they depend on the machine."""
    first = trained(out=tmp_path, steps=2)
    other = network()
    other.sigmas.copy_(torch.nextafter(other.sigmas, torch.tensor(9.0)))
    resumed = trainer_of(other, out=tmp_path, resume=True)
    assert torch.equal(resumed.net.sigmas, first.net.sigmas)
    assert torch.equal(resumed.average.sigmas, first.net.sigmas)


def test_damaged_lines_of_a_log_do_not_stop_a_resume(tmp_path):
    trained(steps=6, log_every=3, out=tmp_path)
    log = tmp_path / "log.jsonl"
    first, second = lines(log)
    damaged = ("{}", "3", "[]", '{"step": 3, "loss": 1.0}', '{"st')
    log.write_text("\n".join((first, *damaged, second)) + "\n")
    resumed = trained(steps=9, log_every=3, out=tmp_path, resume=True)
    assert [step for step, _ in resumed.history] == [3, 6, 9]


def test_a_second_process_is_kept_out_of_the_folder(tmp_path):
    trainer = trainer_of(out=tmp_path)
    with folder_lock(tmp_path), pytest.raises(ValueError, match="another process is writing to"):
        trainer.fit()


def test_what_a_killed_process_left_is_removed(tmp_path):
    leftover = tmp_path / ".checkpoint-0123abcd.safetensors"
    leftover.write_bytes(b"half")
    mine = tmp_path / ".my-notes.txt"
    mine.write_text("x")
    trained(out=tmp_path)
    assert not leftover.exists()
    assert mine.exists()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run that has ended, which refusals leave as it is."""
    return trained(out=tmp_path_factory.mktemp("run"), steps=1).config.out


def test_a_folder_that_holds_a_run_is_not_overwritten(finished):
    with pytest.raises(ValueError, match=r"holds a trained network already .* resume"):
        trainer_of(out=finished)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 5}, "seed: 0 there, 5 here"),
        ({"batch_size": 4}, "batch_size: 8 there, 4 here"),
        ({"ema": 0.5}, "ema: 0.999 there, 0.5 here"),
        ({"data": images() / 2}, r"belongs to another run \(data: "),
        ({"net": network(activation="relu")}, r"belongs to another run \(network: "),
    ],
)
def test_a_run_of_other_settings_data_or_network_is_not_resumed(finished, change, message):
    with pytest.raises(ValueError, match=message):
        trainer_of(out=finished, resume=True, **change)


def test_a_run_on_other_noise_levels_is_not_resumed(tmp_path):
    def old(sigmas):
        torch.manual_seed(0)
        return nf.NCSN(channels=1, image_size=8, ngf=4, sigmas=sigmas)

    trained(old(SIGMAS), steps=1, out=tmp_path)
    with pytest.raises(ValueError, match=r"belongs to another run .*noise levels: "):
        trainer_of(old(2 * SIGMAS), out=tmp_path, resume=True)


def test_resume_without_a_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="resume needs the folder of the run"):
        trainer_of(resume=True)
    with pytest.raises((ValueError, FileNotFoundError), match=r"checkpoint\.safetensors"):
        trainer_of(out=tmp_path, resume=True)


def classed(folder, classes=None, **settings):
    net = network(classes=["a", "b", "c"])
    classes = torch.arange(40) % 3 if classes is None else classes
    resume = (folder / "checkpoint.safetensors").exists()
    settings = config(out=folder, class_dropout=0.3, **settings)
    return nf.Trainer(net, images(), settings, classes=classes, resume=resume)


def test_a_conditional_run_goes_on_as_if_it_had_not_stopped(tmp_path):
    whole = classed(tmp_path / "whole")
    whole.fit()
    classed(tmp_path / "parts", steps=3).fit()
    parts = classed(tmp_path / "parts")
    assert parts.step == 3
    parts.fit()
    assert torch.equal(weights(parts.net), weights(whole.net))
    loaded = nf.load_checkpoint(tmp_path / "parts" / "model.safetensors")
    assert loaded.classes == ("a", "b", "c")
    assert torch.equal(weights(loaded), weights(whole.average))


def test_a_conditional_run_does_not_go_on_with_other_classes(tmp_path):
    classed(tmp_path, steps=2).fit()
    with pytest.raises(ValueError, match=r"another run \(classes: "):
        classed(tmp_path, torch.arange(40) % 2)


def test_the_share_without_classes_is_that_of_the_settings(tmp_path):
    trainer = classed(tmp_path)
    assert trainer.batches.class_dropout == 0.3
    left_out = torch.cat([trainer.batches.classes_at(step) for step in range(100)]) == 3
    assert abs(float(left_out.float().mean()) - 0.3) < 5 * (0.21 / len(left_out)) ** 0.5


def test_a_run_without_classes_is_kept_as_versions_that_knew_none_kept_it(tmp_path):
    trainer_of(network(), out=tmp_path, steps=2).fit()
    kept = read_tensors(tmp_path / "checkpoint.safetensors")[1]
    assert not any("class" in name for name in (*kept["training"], *kept["config"]))
    assert trainer_of(network(), out=tmp_path, steps=3, class_dropout=0.5, resume=True).step == 2
