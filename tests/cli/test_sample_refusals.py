"""`ncsn-fast sample` refuses early, replaces nothing of others, loses nothing on a full disk."""

import errno
import shutil

import pytest
from helpers.command import invoke, succeed

from ncsn_fast.runs import sample as work
from ncsn_fast.runs.samples import shards, store, under_way


def refused(*arguments):
    result = invoke(*arguments)
    assert result.exit_code == 1, result.output
    return result.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--method", "magic"), "method = 'magic' is unknown"),
        (("--method", "heun", "--step-size", "1e-5"), "'heun' takes no step_size"),
        (("--method", "euler", "--spacing", "wide"), "spacing = 'wide' is unknown"),
        (("--method", "euler", "--spacing", "karras", "--rho", "-1"), "rho = -1.0: Karras"),
        (("--config", "nowhere.yml"), "nowhere.yml"),
        (("--animate", "mp4"), "chain.mp4: an MP4 takes ffmpeg, which is not on the PATH"),
    ],
)
def test_settings_are_refused_before_the_network_is_read(
    tmp_path, checkpoint, monkeypatch, options, message
):
    monkeypatch.setattr(work, "load_checkpoint", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert message in refused("sample", checkpoint, "--out", tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


def test_a_disk_without_room_is_refused_before_the_work(tmp_path, checkpoint, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2 * 4 * 64 * 3 - 1))
    told = refused("sample", checkpoint, "-n", 3, "--out", tmp_path / "out")
    assert "of disk left and the samples take up to" in told
    assert not (tmp_path / "out").exists()
    succeed("sample", checkpoint, "-n", 2, "--out", tmp_path / "out")


@pytest.mark.parametrize("name", ["grid.png", "chain.gif", "chain.mp4", "samples.npz"])
def test_files_of_others_are_not_replaced(tmp_path, checkpoint, name):
    (tmp_path / name).write_bytes(b"mine")
    assert f"{tmp_path / name} is " in refused("sample", checkpoint, "-n", 1, "--out", tmp_path)
    assert (tmp_path / name).read_bytes() == b"mine"


def test_one_animation_is_asked_for(tmp_path, checkpoint):
    given = ("sample", checkpoint, "-n", 2, "--out", tmp_path / "out")
    result = invoke(*given, "--gif", "--animate", "webp")
    assert result.exit_code == 2
    assert "--gif and --animate webp: give one of them" in result.output
    assert f"  {tmp_path / 'out' / 'chain.webp'}" in succeed(*given, "--animate", "webp")
    assert f"  {tmp_path / 'out' / 'chain.gif'}" in succeed(*given, "--gif", "--animate", "gif")


@pytest.mark.parametrize("name", ["samples.png", "metrics.json", "model.safetensors"])
def test_a_demo_replaces_no_files_of_others(tmp_path, name):
    (tmp_path / name).write_bytes(b"{}")
    told = refused("demo", "--out", tmp_path, "--seconds", 1)
    assert "is there already and not of ncsn-fast demo" in told


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_save_that_fails_on_the_way_is_a_warning(tmp_path, checkpoint, monkeypatch):
    failed = []

    def once(*arguments, **keywords):
        if not failed:
            failed.append(True)
            full()
        return write(*arguments, **keywords)

    write = under_way.write_tensors
    monkeypatch.setattr(under_way, "write_tensors", once)
    monkeypatch.setattr(store, "SAVE_SECONDS", 0.0)
    told = succeed("sample", checkpoint, "-n", 2, "--batch-size", 1, "--out", tmp_path)
    assert "warning: No space left on device. Sampling goes on, and tries again" in told
    assert "1 of 1 samples are in" in succeed("sample", checkpoint, "-n", 1, "--out", tmp_path)


def test_a_last_save_that_fails_says_what_is_lost(tmp_path, checkpoint, monkeypatch):
    monkeypatch.setattr(shards.np, "savez", full)
    told = refused("sample", checkpoint, "-n", 2, "--out", tmp_path)
    path = tmp_path / "shards" / "000000000-000000001.npz"
    assert f"cannot write {path}: No space left on device" in told
    assert "What is finished is saved; the same command goes on" in told
    monkeypatch.setattr(under_way, "write_tensors", full)
    told = refused("sample", checkpoint, "-n", 4, "--out", tmp_path / "other")
    assert "4 finished samples were in no file yet and are lost" in told


def test_a_folder_that_is_removed_meanwhile_is_told(tmp_path, checkpoint, monkeypatch):
    out = tmp_path / "out"
    write = shards.write

    def gone(*arguments):
        shutil.rmtree(out, ignore_errors=True)
        write(*arguments)

    monkeypatch.setattr(shards, "write", gone)
    told = refused("sample", checkpoint, "-n", 1, "--out", out)
    assert f"the folder {out / 'shards'} does not exist" in told


def test_what_contradicts_the_checkpoint_is_refused_by_the_name_of_the_option(tmp_path):
    arguments = ("--method", "dpmpp_2m", "--steps", 10, "--out", tmp_path / "out")
    told = refused("sample", "digits", "--image-size", 32, *arguments)
    assert "image-size" in told or "image_size" in told
    assert not (tmp_path / "out").exists()


def test_a_file_of_a_bundled_network_s_name_is_meant_by_its_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for command in (("sample", "./mnist"), ("convert", "./mnist", "out.safetensors")):
        result = invoke(*command)
        assert result.exit_code == 1
        assert f"there is no checkpoint {tmp_path / 'mnist'}" in result.output
