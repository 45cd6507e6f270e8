"""Writes dictionaries of arrays as `.npy` files that `np.load(path, allow_pickle=True).item()` gives back.

The bytes are put together here, opcode by opcode, and not by `pickle`: they name `numpy.core.multiarray`, which every
NumPy knows (NumPy 2 would write `numpy._core`, which versions before 1.26 cannot read), tensors need no torch, and
equal arrays give equal bytes.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsol.store.atomic import atomic_write
from wsol.store.exchange._npy_read import MAGIC, STORAGES

_NONE, _TRUE, _FALSE = b"N", b"\x88", b"\x89"
_NAMES = {np.dtype(code): name for name, code in STORAGES.items()}


def write_npy(path: Path, values: NDArray[Any] | Mapping[Any, Any], *, tensors: Collection[str] = ()) -> None:
    """Write an array, or a dictionary of arrays, whole or not at all.

    Args:
        path: The file.
        values: Keys are texts or whole numbers.
        tensors: Keys whose arrays become torch tensors.
    """
    buffer = io.BytesIO()
    if isinstance(values, np.ndarray):
        np.save(buffer, values, allow_pickle=False)
    else:
        np.lib.format.write_array_header_1_0(buffer, {"descr": "|O", "fortran_order": False, "shape": ()})
        pairs = (_value(key) + (_tensor if key in tensors else _array)(array) for key, array in values.items())
        whole = b"](" + b"}(" + b"".join(pairs) + b"u" + b"e"
        buffer.write(b"\x80\x03" + _object_array(np.dtype(object), (), whole) + b".")
    with atomic_write(path) as stream:
        stream.write(buffer.getbuffer())


def _value(value: int | str) -> bytes:
    if isinstance(value, str):
        raw = value.encode()
        return b"X" + struct.pack("<I", len(raw)) + raw
    return b"J" + struct.pack("<i", value)


def _tuple(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def _bytes(raw: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(raw)) + raw


def _array(array: NDArray[Any]) -> bytes:
    array = np.ascontiguousarray(array)
    return _object_array(array.dtype, array.shape, _bytes(array.tobytes()))


def _object_array(dtype: np.dtype[Any], shape: tuple[int, ...], data: bytes) -> bytes:
    """Return the opcodes that build an array from its raw contents."""
    code, order = ("O8", "|") if dtype.hasobject else (dtype.str[1:], dtype.str[0])
    made = b"cnumpy\ndtype\n" + _tuple(_value(code), _FALSE, _TRUE) + b"R"
    facts = (_value(3), _value(order), _NONE, _NONE, _NONE, _value(-1), _value(-1), _value(63 if code == "O8" else 0))
    blank = (
        b"cnumpy.core.multiarray\n_reconstruct\n" + _tuple(b"cnumpy\nndarray\n", _tuple(_value(0)), b"C\x01b") + b"R"
    )
    state = _tuple(_value(1), _tuple(*map(_value, shape)), made + _tuple(*facts) + b"b", _FALSE, data)
    return blank + state + b"b"


def _tensor(array: NDArray[Any]) -> bytes:
    """Return the opcodes that build a torch tensor: a storage in torch's format before the zip files, and a view."""
    array = np.ascontiguousarray(array)
    module, name = _NAMES[array.dtype].split(".")
    start = b"\x80\x02"
    sizes = b"}(" + b"".join(_value(key) + _value(size) for key, size in (("short", 2), ("int", 4), ("long", 4))) + b"u"
    system = (
        b"}("
        + _value("protocol_version")
        + _value(1001)
        + _value("little_endian")
        + _TRUE
        + _value("type_sizes")
        + sizes
    )
    kind = f"c{module}\n{name}\n".encode()
    parts = [
        start + b"\x8a\x0a" + MAGIC.to_bytes(10, "little") + b".",
        start + _value(1001) + b".",
        start + system + b"u.",
        start + _tuple(_value("storage"), kind, _value("0"), _value("cpu"), _value(array.size), _NONE) + b"Q.",
        start + b"](" + _value("0") + b"e.",
        struct.pack("<q", array.size) + array.tobytes(),
    ]
    storage = b"ctorch.storage\n_load_from_bytes\n" + _tuple(_bytes(b"".join(parts))) + b"R"
    strides = tuple(step // array.itemsize for step in array.strides)
    hooks = b"ccollections\nOrderedDict\n)R"
    view = (storage, _value(0), _tuple(*map(_value, array.shape)), _tuple(*map(_value, strides)), _FALSE, hooks)
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + _tuple(*view) + b"R"
