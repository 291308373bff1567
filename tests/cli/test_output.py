"""What the commands tell, and to whom: words, reports, and streams that nobody reads."""

import ast
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from helpers.command import invoke, stop_after, succeed
from PIL import Image

from ncsn_fast.cli import main
from ncsn_fast.cli.output import Output
from ncsn_fast.sampling.step import EagerStep

ROOT = Path(__file__).parents[2]
TINY = ("--ngf", 4, "--batch-size", 4, "--steps", 2, "--num-levels", 3, "--sigma-max", 5)
RUNS = {
    "sample": ("sample", "CHECKPOINT", "-n", 2, "--out", "out"),
    "train": ("train", "--out", "out", *TINY),
    "schedule": ("schedule", "--out", "out"),
    "evaluate": ("evaluate", "CHECKPOINT", "-n", 8, "--reference", "digits", "--out", "out"),
    "convert": ("convert", "CHECKPOINT", "new.safetensors"),
    "doctor": ("doctor",),
    "profile": ("profile", "sample", "CHECKPOINT", "--steps", 1, "--batch", 1, "--out", "out"),
}
# Of `demo` and `bench` the work takes long, and is not what is tested here.


@pytest.fixture
def run(tmp_path, checkpoint, monkeypatch):
    """Runs a command of RUNS with further options in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def run(name, *options):
        words = [checkpoint if word == "CHECKPOINT" else word for word in RUNS[name]]
        return CliRunner().invoke(main, [str(word) for word in (*words, *options)])

    return run


def documented_keys(command):
    """The keys that docs/use.md gives a command's report, without those inside brackets."""
    page = (ROOT / "docs" / "use.md").read_text(encoding="utf-8")
    (row,) = re.findall(rf"^\| `{command}` \| (.*) \|$", page, re.MULTILINE)
    held = re.findall(r"(?:schedule|evaluation).json holds \((.*?)(?:\)|: \[)", row)
    return set(re.findall(r"`(\w+)`", re.sub(r"\(.*?\)", "", row) + "".join(held)))


@pytest.mark.parametrize("name", RUNS)
def test_a_report_has_the_keys_that_are_documented(run, name):
    result = run(name, "--json", "report.json")
    assert result.exit_code == 0, result.output
    report = json.loads(Path("report.json").read_text())
    assert report.pop("command") == name
    assert set(report) == documented_keys(name)
    for path in report.get("files", {}).values() if name != "convert" else report["files"]:
        assert Path(path).exists()


@pytest.mark.parametrize("name", RUNS)
def test_a_report_on_stdout_is_all_that_is_there(run, name):
    result = run(name, "--json", "-")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["command"] == name
    assert result.stderr
    Path("new.safetensors").unlink(missing_ok=True)
    Path("new.json").unlink(missing_ok=True)


@pytest.mark.parametrize("name", RUNS)
def test_quiet_is_quiet(run, name):
    result = run(name, "--quiet")
    assert result.exit_code == 0, result.output
    assert result.output == ""


@pytest.fixture
def terminal(monkeypatch, capsys):
    """Makes stdout a terminal that shows 24-bit colours, or something else."""

    def terminal(*, watched=True, **variables):
        for name in ("TERM_PROGRAM", "NO_COLOR", "COLORTERM"):
            monkeypatch.delenv(name, raising=False)
        for name, value in {"TERM": "xterm", "COLORTERM": "truecolor", **variables}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys.stdout, "isatty", lambda: watched)

    return terminal


def drawn(capsys, **settings):
    Output("sample", **settings).preview(Image.new("RGB", (4, 4), "red"))
    return capsys.readouterr().out


def test_a_picture_is_drawn_in_a_terminal_that_can_show_it(terminal, capsys):
    terminal()
    assert drawn(capsys).count("▀▀▀▀") == 2
    terminal(TERM="xterm-kitty")
    assert drawn(capsys).startswith("\x1b_Ga=T,f=100")


def test_no_picture_is_drawn_for_a_pipe_a_plain_terminal_or_who_wants_none(terminal, capsys):
    terminal()
    assert drawn(capsys, previews=False) == ""
    assert drawn(capsys, quiet=True) == ""
    assert drawn(capsys, silent=True) == ""
    assert drawn(capsys, report="-") == ""
    terminal(COLORTERM="")
    assert drawn(capsys) == ""
    terminal(watched=False)
    assert drawn(capsys) == ""


def test_who_asks_for_a_picture_gets_one_anywhere(terminal, capsys):
    terminal(watched=False, COLORTERM="")
    assert drawn(capsys, previews=True).count("▀") == 8
    assert "38;2;255;0;0" in drawn(capsys, previews=True)
    assert drawn(capsys, previews=True, quiet=True) == ""


def test_sample_draws_its_grid(run, monkeypatch):
    pictures = []
    monkeypatch.setattr(Output, "preview", lambda self, picture: pictures.append(picture))
    run("sample")
    assert pictures == [Path("out/grid.png")]


@pytest.fixture
def opened(monkeypatch):
    """The files that were opened on a desktop."""
    files = []
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr("click.launch", lambda path: files.append(Path(path)) or 0)
    return files


@pytest.mark.parametrize(
    ("name", "file"),
    {
        "sample": "grid.png",
        "schedule": "schedule.png",
        "train": "training.html",
        "evaluate": "evaluation.html",
    }.items(),
)
def test_what_a_command_made_is_opened(run, opened, name, file):
    assert run(name, "--open", "--quiet").output == ""
    assert opened == [Path("out", file).absolute()]
    assert opened[0].exists()


def test_nothing_is_opened_unasked_or_by_a_process_that_is_not_the_first(run, opened, monkeypatch):
    run("sample")
    for name, value in {"RANK": 1, "WORLD_SIZE": 2, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    assert run("sample", "--open").exit_code == 0
    assert opened == []


def test_where_nothing_can_be_opened_the_file_is_named(run, opened, monkeypatch):
    monkeypatch.setattr("click.launch", lambda path: 1)
    assert "no program here shows out/grid.png" in run("sample", "--open", "--quiet").stderr
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("click.launch", lambda path: opened.append(path))
    result = run("sample", "--open", "--quiet")
    assert (result.exit_code, opened) == (0, [])
    assert "no program here shows out/grid.png" in result.stderr


def test_windows_is_asked_for_its_own_program(opened, monkeypatch, capsys):
    monkeypatch.setattr("sys.platform", "win32")
    monkeypatch.setattr("os.startfile", opened.append, raising=False)
    Output("sample", opens=True).show(Path("grid.png"))
    assert opened == [Path("grid.png").absolute()]
    monkeypatch.setattr("os.startfile", os.stat, raising=False)  # which does not find it
    Output("sample", opens=True).show(Path("no.png"))
    assert "no program here shows no.png" in capsys.readouterr().err


def test_the_report_of_samples_says_what_was_taken_from_where(run):
    run("sample", "--json", "report.json", "--method", "ancestral", "--steps", 4, "--seed", 7)
    report = json.loads(Path("report.json").read_text())
    assert report["checkpoint"]["source"].endswith("network checkpoint, weights as saved")
    assert report["checkpoint"]["shape"] == [1, 8, 8]
    assert report["checkpoint"]["levels"]["number"] == 6
    settings = report["settings"]
    assert (settings["method"], settings["given"]) == ("ancestral", {"steps": 4})
    assert settings["checkpoint"] == {}
    assert settings["network_evaluations"] == 4
    assert report["sample_ids"] == {"first": 0, "number": 2, "made_now": 2}
    # Both are rounded to three places, so a short time says the rate but roughly.
    assert 2 / report["samples_per_second"] == pytest.approx(report["seconds"], abs=0.0006)
    assert report["device"] == "cpu"
    assert report["precision"] in ("fp32", "bf16")
    assert set(report["files"]) == {"manifest", "samples", "grid"}
    assert report["layout"]["format"] == "npz"


def test_sample_and_convert_say_what_they_took(run):
    words = run("sample", "--step-size", "1e-5").output
    assert "model.safetensors: ncsn_fast network checkpoint, weights as saved" in words
    assert "NCSNv2 1×8×8, 6 noise levels from 5 to 0.01" in words
    assert (
        "Sampling by annealed_langevin; step_size 1e-05 (from the command); steps_per_level 2, "
        "denoise (from the checkpoint): 13 network evaluations an image"
    ) in words
    words = run("convert").output
    assert "NCSNv2 1×8×8, 6 noise levels from 5 to 0.01" in words
    assert "To be sampled by annealed_langevin, step_size 2e-05, steps_per_level 2" in words


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("report", "its name must end in .json"),
        ("digits", "its name must end in .json"),
        ("nowhere/report.json", "does not exist"),
        ("mine.json", "is there already and is no report of ncsn-fast"),
        ("folder.json", "it is a folder"),
    ],
)
def test_a_report_that_cannot_be_written_is_refused_before_the_work(run, file, message):
    Path("mine.json").write_text('{"mine": 1}')
    Path("folder.json").mkdir()
    result = run("sample", "--json", file)
    assert result.exit_code == 1
    assert message in result.output
    assert not Path("out").exists()
    assert Path("mine.json").read_text() == '{"mine": 1}'


@pytest.mark.parametrize("file", ["out/run.json", "out/model.json", "out/best.json"])
def test_a_report_does_not_replace_what_the_command_writes(run, file):
    Path("out").mkdir()
    result = run("train", "--json", file)
    assert (result.exit_code, "give another name" in result.output) == (1, True)
    assert list(Path("out").iterdir()) == []
    result = run("convert", "--json", "new.json")  # which lies beside new.safetensors
    assert (result.exit_code, "is no report of ncsn-fast" in result.output) == (1, True)
    assert json.loads(Path("new.json").read_text())["sampling"]


def test_a_report_replaces_a_report_and_goes_down_a_pipe(run, tmp_path):
    for _ in range(2):
        assert run("doctor", "--json", "report.json").exit_code == 0
    os.mkfifo("pipe")
    reader = os.open("pipe", os.O_RDONLY | os.O_NONBLOCK)
    assert run("doctor", "--json", "pipe").exit_code == 0
    assert json.loads(os.read(reader, 1 << 16))["command"] == "doctor"
    assert not Path("pipe").is_file()


def shell(line, folder, **variables):
    """A line of shell in which NF is the command; (exit code, stdout, stderr)."""
    done = subprocess.run(
        ["bash", "-c", line.replace("NF", f"{sys.executable} -m ncsn_fast")],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("closed", ["2>&-", ">&-", "<&- >&- 2>&-"])
def test_closed_streams_hurt_no_file(tmp_path, checkpoint, closed):
    code, out, _ = shell(f"NF sample {checkpoint} -n 1 --out {tmp_path} {closed}", tmp_path)
    assert code == 0
    assert ("samples.npz" in out) == (closed == "2>&-")
    # Had a file got the number of a stream, what is written there would lie in it.
    assert "1 of 1 samples are in" in succeed("sample", checkpoint, "-n", 1, "--out", tmp_path)


def test_a_reader_that_goes_does_not_end_the_work(tmp_path):
    words = " ".join(map(str, TINY))
    line = f"NF train {words} --out {tmp_path} | head -1; echo ${{PIPESTATUS[0]}}"
    _, out, err = shell(line, tmp_path)
    assert out.splitlines()[-1] == "0"
    assert err == ""
    assert (tmp_path / "model.safetensors").exists()


def test_a_full_disk_below_stdout_is_told(tmp_path, checkpoint):
    code, _, err = shell(f"NF sample {checkpoint} -n 1 --out {tmp_path} > /dev/full", tmp_path)
    assert (code, err.count("stdout cannot be written")) == (0, 1)
    line = f"NF convert {checkpoint} new.safetensors --json - > /dev/full"
    code, _, err = shell(line, tmp_path)
    assert code == 1
    assert "the report could not be written to stdout" in err


def test_words_come_out_in_any_encoding(tmp_path, checkpoint):
    line = f"NF sample {checkpoint} -n 1 --out $'a\\xff'; NF sample {checkpoint} -n 1 --out b"
    code, out, err = shell(line, tmp_path, PYTHONIOENCODING="ascii")
    assert code == 0, err
    assert "b/samples.npz" in out


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129), ("SIGINT", 130)])
def test_the_exit_code_says_which_signal_it_was(tmp_path, checkpoint, monkeypatch, name, code):
    step = EagerStep.run

    def signalled(self, row, *arguments):
        if row == 7:
            os.kill(os.getpid(), getattr(signal, name))
        return step(self, row, *arguments)

    monkeypatch.setattr(EagerStep, "run", signalled)
    arguments = ("sample", checkpoint, "-n", 2, "--out", tmp_path)
    result = invoke(*arguments)
    assert (result.exit_code, "stopped: interrupted after 0 samples" in result.output) == (
        code,
        True,
    )
    assert (tmp_path / "shards" / "000000000-000000001.partial.safetensors").exists()
    monkeypatch.undo()
    made = stop_after(monkeypatch, -1)
    succeed(*arguments)
    assert made == list(range(6, 13))


def test_a_signal_that_is_ignored_stays_so(tmp_path, checkpoint, monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        step = EagerStep.run

        def signalled(self, row, *arguments):
            os.kill(os.getpid(), signal.SIGHUP)
            return step(self, row, *arguments)

        monkeypatch.setattr(EagerStep, "run", signalled)
        succeed("sample", checkpoint, "-n", 1, "--out", tmp_path)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


# Flags of other programs: nsys and ncu, git, compilers, torchrun, the official code.
_OF_OTHERS = {
    "runs/profile.py",
    "device/environment.py",
    "device/native.py",
    "distributed/ranks.py",
    # variables of a style
    "pictures/chart.py",
    "pictures/page.py",
    "runs/training/page.py",
}


def test_messages_name_options_that_there_are():
    known = {
        flag
        for command in main.commands.values()
        for option in command.params
        for flag in (*option.opts, *option.secondary_opts)
    }
    strange = []
    for path in sorted((ROOT / "ncsn_fast").rglob("*.py")):
        place = str(path.relative_to(ROOT / "ncsn_fast"))
        if place in _OF_OTHERS or place.startswith("cli"):  # whose words are help, and are read
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found = re.findall(r"(?<![\w-])--[a-z][a-z0-9_-]*[a-z0-9]", node.value)
                strange += [(place, flag) for flag in found if flag not in known]
    assert [one for one in strange if one[1] not in ("--no_dilation", "--help", "--version")] == []
