"""Files of strangers: what is read, and what is refused in bounded time, memory and words."""

import json
import os

import pytest
import yaml

from ncsn_fast.support.array_parsers import open_npz
from ncsn_fast.support.parsers import (
    FileError,
    parse_json,
    parse_yaml,
    read_json,
    read_text,
    shortened,
    shown,
)


def refused(message, function, *arguments):
    with pytest.raises(FileError, match=message) as raised:
        function(*arguments)
    assert len(str(raised.value)) < 1000
    return str(raised.value)


def test_json_is_read(tmp_path):
    value = {"a": [1, 2.5, None, True, "[[[{"], "σ": {"b": -1e300, 'q"\\': []}}
    path = tmp_path / "run.json"
    path.write_text("\ufeff" + json.dumps(value, ensure_ascii=False), encoding="utf-8")
    assert read_json(path) == value
    assert parse_json("[" * 100 + "]" * 100, "it") is not None
    assert parse_json(json.dumps(["[" * 1000, "\\", '"', "{"] * 100), "it")[0] == "[" * 1000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "it is damaged or no JSON"),
        ("[" * 10_000, "nested more than 100 levels"),
        ("[" * 100_000, "more than 20,000 lists and objects"),
        ('{"a":' * 10_000, "nested more than 100 levels"),
        ("[" + "{}," * 20_001, "more than 20,000 lists and objects"),
        ('["\\"", ' + "[" * 101, "nested more than 100 levels"),
        ('["\\\\", ' + "[" * 101, "nested more than 100 levels"),
        ("1" * 10**6, "a number of 1,000,000 digits"),
        ("-" + "1" * 401, "a number of 402 digits"),
        ("1." + "1" * 10**6, "beyond what a float64 holds"),
        ("1e999", "1e999' is beyond"),
        ("[NaN]", "NaN is no number"),
        ("-Infinity", "no number of JSON"),
        ('{"a": 1, "b": {"a": 1, "a": 1}}', "'a' is given twice"),
        ('{"' + "x" * 10**6 + '": 1, "' + "x" * 10**6 + '": 2}', "is given twice"),
        (b'"\xff"', "it is no text in UTF-8"),
        (b"\xff\xfe1\x00", "it is no text in UTF-8"),
        ('"' + "x" * (4 << 20) + '"', "it is longer than 4 MiB"),
    ],
)
def test_json_that_says_nothing_or_two_things_is_refused(text, message):
    refused(message, parse_json, text, "it")


def test_a_file_is_named_and_read_no_further_than_its_limit(tmp_path):
    path = tmp_path / "run.json"
    path.write_text("[1, 2", encoding="utf-8")
    refused(r"run\.json is damaged or no JSON", read_json, path)
    refused(r"run\.json is larger than 4 bytes", read_json, path, 4)
    refused(r"is no file but a folder", read_text, tmp_path)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "absent")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes in folders are POSIX's")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    refused("a pipe", read_text, tmp_path / "pipe")
    refused("a pipe", open_npz, tmp_path / "pipe")


def test_yaml_is_read():
    text = (
        "base: &base {a: 1, b: [x, *c]}\n".replace("*c", "y")
        + "other:\n  <<: *base\n  a: 2\nagain: *base\n1: one\n'1': text\n"
        + "same: 3\nsame: 3\nlong: "
        + "word " * 300
    )
    found = parse_yaml(text, "it", yaml.SafeLoader)
    assert found["other"] == {"a": 2, "b": ["x", "y"]}
    assert found["again"] == {"a": 1, "b": ["x", "y"]}
    assert (found[1], found["1"], found["same"]) == ("one", "text", 3)


def aliases(deep, wide):
    rows = ["a0: &a0 [x, x]"] + [
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * wide)}]" for i in range(1, deep)
    ]
    return "\n".join(rows)


def merges(deep, wide):
    rows = ["a0: &a0 {k0: 0}"] + [
        f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * wide)}], k{i}: 0}}" for i in range(1, deep)
    ]
    return "\n".join(rows)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "it is damaged or cannot be read as YAML"),
        (aliases(9, 9), "more than 20,000 values, aliases written out"),
        (merges(12, 4), "more than 20,000 values, aliases written out"),
        ("a:\n" + " - 1\n" * 30_000, "more than 20,000 values"),
        ("[" * 10_000, "nested more than 100 levels"),
        ("- " * 10_000, "nested more than 100 levels"),
        ("a: &a [*a]", "stands for what it lies in"),
        ("&a {<<: *a}", "stands for what it lies in"),
        ("a: *b", "undefined alias"),
        ("a: 0x" + "f" * 5000, "a number of 5,002 digits"),
        ("a: !!int '" + "1" * 5000 + "'", "a number of 5,000 digits"),
        ("a: " + "1:" * 9000 + "1", "a number of 18,001 digits"),
        ("ngf: 64\nngf: 128", "the key 'ngf' has two values"),
        ("data: {a: 1}\ndata: {a: 1}", "the key 'data' has two values"),
        ("a: !!int ''", "IndexError"),
        ("a: !!bool perhaps", "KeyError"),
        ("a: !!timestamp never", "AttributeError"),
        ("a: 2001-99-99", "ValueError"),
        ("? {a: 1}\n: 2", "ConstructorError"),
        ("a: !!python/object/apply:os.system [ls]", "ConstructorError"),
        ("a\0b", "ReaderError"),
        (b"a: \xff", "no text in UTF-8"),
        ("a: " + "x" * (1 << 20), "larger than 1 MiB"),
    ],
)
def test_yaml_that_grows_or_says_two_things_is_refused(text, message):
    refused(message, parse_yaml, text, "it", yaml.SafeLoader)


def test_a_value_in_a_message_is_short_and_never_written_out():
    bomb = "x"
    for _ in range(60):
        bomb = [bomb, bomb]
    assert len(shown(bomb)) < 400
    assert len(shown("x" * 10**7)) < 400
    assert shown({"ngf": 64}) == "{'ngf': 64}"


def test_what_a_file_says_is_escaped_where_a_terminal_would_obey_it_or_cannot_show_it():
    assert (
        shortened("\x1b[31mred \n\n\ud800 größer \u202e") == "\\x1b[31mred \\ud800 größer \\u202e"
    )
    assert shortened(["ä", "\x00"]) == "['ä', '\\x00']"
    assert len(shortened("x" * 10_000)) < 400
