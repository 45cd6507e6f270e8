"""The reader of foreign `.npy` dictionaries runs nothing; the writer's files are what NumPy and torch read."""

from __future__ import annotations

import builtins
import contextlib
import copyreg
import io
import os
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays, scalar_dtypes

from wsol.errors import StoreError
from wsol.store.exchange._npy_read import read_npy
from wsol.store.exchange._npy_write import write_npy

DTYPES = [np.float16, np.float32, np.float64, np.int64, np.int32, np.uint8, np.bool_]
any_array = st.sampled_from(DTYPES).flatmap(lambda dtype: arrays(dtype, array_shapes(min_dims=0, min_side=0)))
any_dict = st.dictionaries(st.one_of(st.text(max_size=9), st.integers(-9, 300)), any_array, max_size=4)


def dump(value, protocol):
    """The file of np.save, by another protocol."""
    buffer = io.BytesIO()
    holder = np.empty((), object)
    holder[()] = value
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|O", "fortran_order": False, "shape": ()})
    pickle.dump(holder, buffer, protocol=protocol)
    return buffer.getvalue()


def same(found, expected):
    assert list(found) == list(expected)
    for key, array in expected.items():
        np.testing.assert_array_equal(found[key], np.asarray(array))
        assert np.asarray(found[key]).dtype == np.asarray(array).dtype


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@given(values=any_dict)
def test_reads_what_pickle_writes(tmp_path_factory, protocol, values):
    path = tmp_path_factory.mktemp("npy") / "x.npy"
    path.write_bytes(dump(values, protocol))
    same(read_npy(path), values)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_reads_scalars_orders_byte_orders_and_shared_arrays(tmp_path, protocol):
    shared = np.arange(6, dtype=">f4").reshape(2, 3)
    values = {
        "a": shared,
        "b": shared,
        "f": np.asfortranarray(shared),
        "s": np.float32(0.1),
        "i": 3,
        "t": "x",
        "x": 0.5,
    }
    (tmp_path / "x.npy").write_bytes(dump(values, protocol))
    found = read_npy(tmp_path / "x.npy")
    for key in "abf":
        np.testing.assert_array_equal(found[key], shared)
    assert [found[key] for key in "sitx"] == [np.float32(0.1), 3, "x", 0.5]


def test_reads_a_file_of_python_2(tmp_path):
    """PSA's code of 2018 was also run on Python 2, whose pickles hold raw strings."""
    body = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01)cnumpy\ndtype\n"
        b"U\x02O8K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK?tb\x89]}K\x07"
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x01K\x02\x86cnumpy\ndtype\n"
        b"U\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        b"U\x08\x00\x00\x80?\x00\x00\xc0\xbftbsatb."
    )
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|O", "fortran_order": False, "shape": ()})
    path = tmp_path / "x.npy"
    path.write_bytes(buffer.getvalue() + body)
    same(read_npy(path), {7: np.array([[1.0, -1.5]], np.float32)})
    old = pickle.loads(body, encoding="latin1").item()
    same(old, {7: np.array([[1.0, -1.5]], np.float32)})


def test_reads_torch_tensors_and_their_views(tmp_path):
    base = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)
    values = {
        "keys": torch.tensor([1, 19]),
        "turned": base.permute(2, 0, 1),
        "part": base[1, :, 1::2],
        "one": base[0, 0, 0],
        "none": base[:0],
        "half": base.half(),
        "yes": base > 3,
    }
    np.save(tmp_path / "x.npy", values, allow_pickle=True)
    found = read_npy(tmp_path / "x.npy")
    same(found, {key: tensor.numpy() for key, tensor in values.items()})


@given(values=any_dict)
def test_numpy_and_we_read_what_we_write(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("npy") / "x.npy"
    write_npy(path, values)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same(np.load(path, allow_pickle=True).item(), values)
    same(read_npy(path), values)
    first = path.read_bytes()
    write_npy(path, values)
    assert path.read_bytes() == first
    assert b"numpy._core" not in first


@given(array=any_array)
def test_torch_reads_our_tensors(tmp_path_factory, array):
    path = tmp_path_factory.mktemp("npy") / "x.npy"
    write_npy(path, {"cam": array, "plain": array}, tensors=("cam",))
    found = np.load(path, allow_pickle=True).item()
    assert isinstance(found["cam"], torch.Tensor)
    assert isinstance(found["plain"], np.ndarray)
    np.testing.assert_array_equal(found["cam"].numpy(), array)
    assert found["cam"].numpy().dtype == array.dtype
    found["cam"].add(1)
    same(read_npy(path), {"cam": array, "plain": array})


@given(array=arrays(scalar_dtypes(), array_shapes()))
def test_plain_arrays_are_plain_npy(tmp_path_factory, array):
    path = tmp_path_factory.mktemp("npy") / "x.npy"
    write_npy(path, array)
    np.testing.assert_array_equal(np.load(path, allow_pickle=False), array)
    np.testing.assert_array_equal(read_npy(path), array)


class Evil:
    """Calls what it is given when it is unpickled."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


class State:
    """Sets attributes of an object when it is unpickled."""

    def __init__(self):
        self.name = "x"


MARKER = "touched"
ATTACKS = {
    "system": lambda: Evil(os.system, (f"touch {MARKER}",)),
    "eval": lambda: Evil(builtins.eval, (f"open({MARKER!r}, 'w')",)),
    "exec": lambda: Evil(builtins.exec, (f"open({MARKER!r}, 'w')",)),
    "getattr": lambda: Evil(builtins.getattr, ("x", "upper")),
    "copyreg": lambda: Evil(copyreg._reconstructor, (State, object, None)),
    "loads": lambda: Evil(pickle.loads, (pickle.dumps(Evil(os.system, (f"touch {MARKER}",))),)),
    "open": lambda: Evil(builtins.open, (MARKER, "w")),
    "np_load": lambda: Evil(np.load, (MARKER,)),
    "np_save": lambda: Evil(np.save, (MARKER, np.zeros(2))),
    "object": State,
    "array of objects": lambda: np.array([Evil(os.system, (f"touch {MARKER}",)), 1], object),
    "storage": lambda: Evil(torch.storage._load_from_bytes, (pickle.dumps(Evil(os.system, (f"touch {MARKER}",))),)),
    "set": lambda: {1, 2},
    "complex": lambda: 1j,
    "path": lambda: Path("/"),
    "dtype": lambda: np.zeros(2, [("a", "f4")]),
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("where", ["value", "list", "root"])
@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_in_a_file_is_run(tmp_path, monkeypatch, attack, where, protocol):
    monkeypatch.chdir(tmp_path)
    evil = ATTACKS[attack]()
    value = {"value": lambda: {"a": evil}, "list": lambda: {"a": [1, evil]}, "root": lambda: evil}[where]()
    Path("x.npy").write_bytes(dump(value, protocol))
    with pytest.raises(StoreError, match="not a file of arrays"):
        read_npy(Path("x.npy"))
    assert not Path(MARKER).exists()
    assert sorted(item.name for item in tmp_path.iterdir()) == ["x.npy"]


def test_the_attacks_would_work(tmp_path, monkeypatch):
    """What the test above refuses does run in the real unpickler."""
    monkeypatch.chdir(tmp_path)
    Path("x.npy").write_bytes(dump(ATTACKS["system"](), 4))
    np.load("x.npy", allow_pickle=True)
    assert Path(MARKER).exists()


@pytest.mark.parametrize(
    "body",
    [
        b"cos\nsystem\n(S'touch touched'\ntR.",  # protocol 0
        b"(S'touch touched'\nios\nsystem\n.",  # INST
        b"(cos\nsystem\nS'touch touched'\no.",  # OBJ
        b"\x80\x02cos\nsystem\n)\x81.",  # NEWOBJ
        b"\x80\x02\x82\x01.",  # EXT1
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x01x\x85R.",
        b"\x80\x02cnumpy\nndarray\n)R.",  # a name that is known, but not to be called
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n)R}b.",
        b"\x80\x02cnumpy\ndtype\nX\x03\x00\x00\x00V99\x85R.",
        b"\x80\x02]K\x01s.",
        b"\x80\x02h\x07.",
        b"\x80\x02e.",
        b"\x80\x02}(K\x01u.",
        b"\x80\x02R.",
        b"\x80\x02",
        b"",
        b"\xff\xff",
    ],
)
def test_odd_opcodes_are_refused(tmp_path, monkeypatch, body):
    monkeypatch.chdir(tmp_path)
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|O", "fortran_order": False, "shape": ()})
    Path("x.npy").write_bytes(buffer.getvalue() + body)
    with pytest.raises(StoreError, match="not a file of arrays"):
        read_npy(Path("x.npy"))
    assert not Path(MARKER).exists()


@given(cut=st.integers(0, 1000), flips=st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 255)), max_size=4))
def test_torn_and_altered_files_end_in_one_kind_of_error(tmp_path_factory, cut, flips):
    path = tmp_path_factory.mktemp("npy") / "x.npy"
    write_npy(path, {"keys": np.array([3]), "cam": np.ones((1, 5, 7), np.float32)}, tensors=("cam",))
    data = bytearray(path.read_bytes())
    for at, value in flips:
        data[at % len(data)] = value
    path.write_bytes(data[: cut or None])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a header of another version warns
        with contextlib.suppress(StoreError):
            read_npy(path)


def test_a_tensor_beyond_its_storage_is_refused(tmp_path):
    path = tmp_path / "x.npy"
    write_npy(path, {"cam": np.ones((2, 3), np.float32)}, tensors=("cam",))
    data = path.read_bytes()
    at = data.index(b"_rebuild_tensor_v2")
    shape = data.index(b"(J\x02\x00\x00\x00J\x03\x00\x00\x00t", at)
    path.write_bytes(data[: shape + 2] + (2**30).to_bytes(4, "little") + data[shape + 6 :])
    with pytest.raises(StoreError, match="larger than its storage"):
        read_npy(path)
    with pytest.raises(StoreError, match="no such file"):
        read_npy(tmp_path / "y.npy")
