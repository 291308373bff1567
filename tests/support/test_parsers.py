"""Files of strangers: what is read, and what is refused in bounded time, memory and words."""

import io
import json
import os
import struct
import zipfile

import numpy as np
import pytest
import yaml

from ncsn_fast.support.parsers import (
    FileError,
    open_npy,
    open_npz,
    parse_json,
    parse_yaml,
    read_json,
    read_text,
    shown,
)

ARRAYS = {
    "images": np.arange(48, dtype=np.float32).reshape(2, 1, 4, 6),
    "fortran": np.asfortranarray(np.arange(12, dtype=">i2").reshape(3, 4)),
    "empty": np.empty((0, 3), np.uint8),
    "one": np.array(7, np.int64),
    "text": np.array("σ and ε"),
    "complex": np.array([1 + 2j], np.complex64),
    "flags": np.array([True, False]),
}


def refused(message, function, *arguments):
    with pytest.raises(FileError, match=message) as raised:
        function(*arguments)
    assert len(str(raised.value)) < 1000
    return str(raised.value)


def npz(path, members, compression=zipfile.ZIP_STORED):
    """An .npz of raw members, by name."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


def npy(array=None, header=None, version=1, data=b""):
    """The bytes of a .npy, or of one with a header of the test's own."""
    if header is None:
        file = io.BytesIO()
        np.save(file, array)
        return file.getvalue()
    text = header.encode() + b"\n"
    length = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + length + text + data


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


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_come_back_as_they_were(tmp_path, save):
    save(tmp_path / "a.npz", **ARRAYS)
    with open_npz(tmp_path / "a.npz") as archive:
        assert archive.names == list(ARRAYS)
        for name, array in ARRAYS.items():
            assert archive[name].dtype == array.dtype
            np.testing.assert_array_equal(archive[name], array)
        archive["images"][:] = 0  # their own memory, to be written to
        assert archive["images"].max() == 47


@pytest.mark.parametrize("name", ARRAYS)
def test_a_mapped_array_is_the_one_saved(tmp_path, name):
    np.save(tmp_path / "a.npy", ARRAYS[name])
    found = open_npy(tmp_path / "a.npy")
    assert found.dtype == ARRAYS[name].dtype
    np.testing.assert_array_equal(found, ARRAYS[name])


def test_headers_of_old_and_odd_writers_are_read(tmp_path):
    header = "{ 'shape': (2L, 3L) , 'fortran_order':False,'descr':'|u1'}"
    for version in (1, 2, 3):
        (tmp_path / "a.npy").write_bytes(npy(header=header, version=version, data=b"abcdef"))
        assert open_npy(tmp_path / "a.npy").tolist() == [[97, 98, 99], [100, 101, 102]]


@pytest.mark.parametrize(
    ("descr", "shape"),
    [
        ("'|u1'", "(70368744177664,)"),
        ("'<f8'", "(99999999999999999999, 99999999999999999999)"),
        ("'<f8'", "(0, 99999999999999999999)"),
        ("'<f8'", f"({'1, ' * 100})"),
        ("'<U999999999'", "(99,)"),
        ("'<f8'", "__import__('os').getcwd()"),
        ("'<f8'", "(-1,)"),
        ("'<f8'", "-" * 3000),
        ("'<f8'", "(" * 3000),
        ("'<q9'", "(1,)"),
        ("'f8,f8'", "(1,)"),
        ("[('a', '<f4')]", "(1,)"),
        ("'|V8'", "(2,)"),
        ("'<M8[ns]'", "(9,)"),
    ],
)
@pytest.mark.parametrize("inside", [False, True])
def test_a_header_that_is_no_array_s_is_refused(tmp_path, descr, shape, inside):
    data = npy(header=f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}")
    path = tmp_path / ("a.npz" if inside else "a.npy")
    if inside:
        with open_npz(npz(path, [("images.npy", data)])) as archive:
            refused(r"a\.npz", archive.__getitem__, "images")
    else:
        path.write_bytes(data)
        refused(r"a\.npy", open_npy, path)


@pytest.mark.parametrize("change", [b"", b"x", None])
def test_an_array_longer_or_shorter_than_its_header_says_is_refused(tmp_path, change):
    data = npy(np.arange(9))
    data = data[:-1] if change is None else data + (change or data)
    (tmp_path / "a.npy").write_bytes(data)
    refused("its header .* asks for", open_npy, tmp_path / "a.npy")
    with open_npz(npz(tmp_path / "a.npz", [("a.npy", data)])) as archive:
        refused("its header .* asks for", archive.__getitem__, "a")


@pytest.mark.parametrize("descr", ["'|O'", "'O'", "[('a', '<f4'), ('b', '|O')]"])
def test_python_objects_are_never_loaded(tmp_path, descr):
    data = npy(header=f"{{'descr': {descr}, 'fortran_order': False, 'shape': (1,), }}", data=b"x")
    (tmp_path / "a.npy").write_bytes(data)
    refused("holds Python objects", open_npy, tmp_path / "a.npy")
    with open_npz(npz(tmp_path / "a.npz", [("a.npy", data)])) as archive:
        refused("holds Python objects", archive.__getitem__, "a")


def test_a_zip_that_would_unpack_to_gigabytes_is_refused(tmp_path):
    beginning = npy(header="{'descr': '|u1', 'fortran_order': False, 'shape': (104857600,), }")
    zeros = beginning + bytes(100 << 20)
    bomb = npz(tmp_path / "a.npz", [("images.npy", zeros)], zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 1 << 20
    refused(r"a\.npz is refused: 9\d KiB of it would become 100 MiB", open_npz, bomb)
    whole = npz(tmp_path / "b.npz", [("images.npy", zeros)])
    with open_npz(whole) as archive:
        assert archive["images"].nbytes == 100 << 20


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compression_that_numpy_does_not_write_is_refused(tmp_path, method):
    path = npz(tmp_path / "a.npz", [("a.npy", npy(np.arange(3)))], method)
    refused("compressed in another way", open_npz, path)


def test_a_name_that_is_there_twice_is_refused(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate"):
        path = npz(tmp_path / "a.npz", [("a.npy", npy(np.arange(3)))] * 2)
    refused("two members called 'a.npy'", open_npz, path)


def test_a_missing_array_is_told_with_those_that_are_there(tmp_path):
    np.savez(tmp_path / "a.npz", x=1, y=2)
    with open_npz(tmp_path / "a.npz") as archive:
        refused(r"a\.npz has no array 'images', only x, y", archive.__getitem__, "images")


def test_every_damaged_byte_of_an_npz_is_found_or_harmless(tmp_path):
    """Encryption, unknown compression, damaged tables of contents, wrong sizes, all of it."""
    np.savez_compressed(tmp_path / "a.npz", a=ARRAYS["images"], b=ARRAYS["one"])
    whole = (tmp_path / "a.npz").read_bytes()
    path = tmp_path / "damaged.npz"
    found = 0
    for place in range(len(whole)):
        for bits in (0x01, 0x80, 0xFF):
            data = bytearray(whole)
            data[place] ^= bits
            path.write_bytes(data)
            found += refusal(path) is not None
    assert found > len(whole)


def refusal(path):
    """What the reader says of a damaged copy, None where it is read as if it were whole."""
    try:
        with open_npz(path) as archive:
            arrays = {name: archive[name] for name in ("a", "b")}
    except FileError as error:
        return str(error) if str(path) in str(error) else pytest.fail(f"without its path: {error}")
    np.testing.assert_array_equal(arrays["a"], ARRAYS["images"])
    np.testing.assert_array_equal(arrays["b"], ARRAYS["one"])
    return None


def test_a_value_in_a_message_is_short_and_never_written_out():
    bomb = "x"
    for _ in range(60):
        bomb = [bomb, bomb]
    assert len(shown(bomb)) < 400
    assert len(shown("x" * 10**7)) < 400
    assert shown({"ngf": 64}) == "{'ngf': 64}"
