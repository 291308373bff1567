"""The scripts of docs/scaling.md: a shell and Kubernetes can read them, and the commands exist."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from ncsn_fast.cli import main

PAGE = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text(encoding="utf-8")
SCRIPTS = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
(JOB,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)


def commands(text):
    """The command lines of this package in it, as lists of words."""
    text = re.sub(r"\\\n\s*", " ", text)
    found = re.findall(r"(?:ncsn-fast|-m ncsn_fast) ([^\n`]+)", text)
    return [shlex.split(one) for one in found]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_batch_script_is_one_that_a_shell_reads(script):
    assert script.startswith("#!/bin/bash\n#SBATCH --")
    assert len(re.sub(r"\\\n", "", script).splitlines()) <= 5
    if bash := shutil.which("bash"):
        assert subprocess.run([bash, "-n"], input=script, text=True).returncode == 0


def test_the_job_is_indexed_and_its_parts_are_all_there():
    job = yaml.safe_load(JOB)
    spec = job["spec"]
    assert (job["apiVersion"], job["kind"], spec["completionMode"]) == (
        "batch/v1",
        "Job",
        "Indexed",
    )
    (container,) = spec["template"]["spec"]["containers"]
    (words,) = commands(container["args"][0])
    part = words[words.index("--shard") + 1]
    assert part == f"$JOB_COMPLETION_INDEX/{spec['completions']}"
    assert spec["parallelism"] == spec["completions"]
    mounts = {one["name"] for one in container["volumeMounts"]}
    assert mounts == {one["name"] for one in spec["template"]["spec"]["volumes"]}


def test_every_command_has_the_options_it_is_given():
    container = yaml.safe_load(JOB)["spec"]["template"]["spec"]["containers"][0]
    found = [*commands(PAGE.replace(JOB, "")), *commands(container["args"][0])]
    names = {words[0] for words in found}
    assert {"sample", "train", "verify"} <= names
    for name, *words in found:
        command = main.get_command(None, name)
        assert command is not None, name
        options = {option for one in command.params for option in one.opts}
        given = {word for word in words if re.match(r"-{1,2}[a-z]", word)}
        assert given <= options, (name, given - options)
