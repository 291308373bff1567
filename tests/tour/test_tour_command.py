"""ncsn-fast tour."""

import json
from dataclasses import replace

import pytest
from helpers.command import invoke, succeed

from ncsn_fast.runs.tour import tour
from ncsn_fast.tour.steps import STEPS
from ncsn_fast.tour.steps.ascent import ascent


def test_one_step_is_made_again_with_its_numbers(tmp_path):
    out = tmp_path / "new"
    said = succeed(
        "tour", "--step", "ascent", "--quick", "--out", out, "--json", tmp_path / "r.json"
    )
    assert "descent on f and ascent on log p" in said
    written = json.loads((out / "ascent.json").read_text())
    assert written["holds"]
    assert written["numbers"]["ascent"][0]["wanted"] == "6"
    text = (out / "ascent.html").read_text(encoding="utf-8")
    assert "ncsn-fast tour --step ascent --quick" in text
    assert json.loads((tmp_path / "r.json").read_text())["numbers"] == written["numbers"]
    assert sorted(path.name for path in out.iterdir()) == ["ascent.html", "ascent.json"]


def test_the_same_page_comes_out_twice(tmp_path):
    pages = []
    for name in "ab":
        tour(tmp_path / name, step="ascent", quick=True)
        pages.append((tmp_path / name / "ascent.html").read_bytes())
    assert pages[0] == pages[1]


def test_all_steps_are_made_in_their_order(tmp_path, monkeypatch):
    def second(quick, told):
        return replace(ascent(quick, told), name="second")

    monkeypatch.setattr("ncsn_fast.runs.tour.STEPS", {"ascent": ascent, "second": second})
    seen = []
    report = tour(tmp_path, quick=True, progress=lambda done, total: seen.append((done, total)))
    assert [*report["numbers"]] == ["ascent", "second"]
    assert seen == sorted(seen)
    assert (50, 100) in seen
    assert seen[-1] == (100, 100)
    assert (tmp_path / "tour.html").exists()


def test_a_number_outside_its_bounds_is_said_and_ends_with_1(tmp_path, monkeypatch):
    def wrong(quick, told):
        step = ascent(quick, told)
        bad = replace(step.numbers[0], found=7.0, low=float("-inf"))
        return replace(step, numbers=[bad, *step.numbers[1:]])

    monkeypatch.setattr("ncsn_fast.runs.tour.STEPS", {"ascent": wrong})
    result = invoke("tour", "--out", tmp_path, "--quiet")
    assert result.exit_code == 1
    assert "is not within its bounds" in result.output
    written = (tmp_path / "tour.json").read_text()
    assert not json.loads(written)["holds"]
    assert "Infinity" not in written  # which is no JSON


def test_an_unknown_step_is_refused_with_the_names_that_there_are(tmp_path):
    result = invoke("tour", "--step", "nix", "--out", tmp_path / "new")
    assert result.exit_code == 1
    assert "--step nix: there is none of that name; choose of ascent, langevin" in result.output
    assert not (tmp_path / "new").exists()


def test_files_of_others_are_not_replaced(tmp_path):
    (tmp_path / "tour.html").write_text("mine")
    result = invoke("tour", "--out", tmp_path)
    assert result.exit_code == 1
    assert "not of ncsn-fast tour" in result.output


@pytest.mark.parametrize("name", STEPS)
def test_names_of_steps_can_be_files_and_links(name):
    assert name.replace("-", "").isalpha()
    assert name not in ("tour", "yours")
