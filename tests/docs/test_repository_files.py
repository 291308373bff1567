"""What the repository says of itself in files for others' programs agrees with the package."""

import re
from importlib.metadata import metadata

import yaml
from markdown_pages import ROOT
from shell_commands import parse


def _yaml(name):
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def _setup(name):
    """A line of setup.py, whose facts an editable installation of before does not have."""
    text = (ROOT / "setup.py").read_text(encoding="utf-8")
    return re.findall(rf"^ *{name} ?= ?(.+)$", text, re.MULTILINE)[0]


def _pythons():
    return re.findall(r"3\.\d+", _setup("PYTHONS"))


def test_others_run_the_same_checks_on_every_python_that_setup_names():
    job = _yaml(".github/workflows/ci.yml")["jobs"]["run"]
    assert job["strategy"]["matrix"]["python"] == _pythons()
    assert job["steps"][-1] == {"run": ".ci/run"}


def test_pages_name_these_pythons():
    told = f"Python {_pythons()[0]} to {_pythons()[-1]}"
    for page in ("README.md", "docs/get_started.md"):
        assert told in (ROOT / page).read_text(encoding="utf-8"), page


def test_the_citation_is_of_this_version_and_its_licences():
    citation = _yaml("CITATION.cff")
    assert citation["version"] == metadata("ncsn_fast")["Version"]
    assert f'"{" AND ".join(citation["license"])}"' in _setup("license")
    assert [one["year"] for one in citation["references"]] == [2019, 2020]


def test_the_changelog_names_this_version():
    log = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    version = metadata("ncsn_fast")["Version"]
    assert re.search(rf"^## \[{re.escape(version)}\]|^## \[Unreleased\]", log, re.MULTILINE)
    assert version in log


def test_who_reports_something_is_asked_for_what_helps():
    forms = [path.name for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("[0-9]*.yml")]
    assert len(forms) == 4
    for form in forms:
        fields = _yaml(f".github/ISSUE_TEMPLATE/{form}")["body"]
        assert len({field["id"] for field in fields}) == len(fields)
        asked = str(fields)
        assert "doctor --json -" in asked or "feature" in form
        for command in re.findall(r"`(ncsn-fast [^`]+)`", asked):
            parse(command.split())


def test_the_readme_fits_three_screens():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 130
