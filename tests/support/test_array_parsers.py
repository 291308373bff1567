"""Files of arrays of strangers: what is read, and what is refused in bounded time and memory."""

import io
import struct
import zipfile

import numpy as np
import pytest

from ncsn_fast.support.array_parsers import open_npy, open_npz
from ncsn_fast.support.parsers import FileError

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
