"""Reads `.npy` files that hold a dictionary of arrays, without unpickling.

`np.save` turns a dictionary into a pickle, and whoever unpickles a file runs what the file says. Here nothing is run:
`pickletools.genops` splits the bytes into opcodes, and `_replay` keeps numbers, texts and containers on a stack. A name
in the file is never imported or called. Those that NumPy and torch write for arrays stand for functions of this module,
which look at bytes, shapes and dtypes only; every other name, and every opcode that is not needed for arrays, ends the
reading. So the worst file gives wrong numbers or an error. Arrays are read-only views of the bytes of the file.
"""

from __future__ import annotations

import io
import math
import pickletools  # nosec B403 - splits into opcodes, runs nothing
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from wsol.errors import StoreError

MAGIC = 0x1950A86A20F9469CFC6C
"""First value of the bytes of a torch storage."""
STORAGES = {
    "torch.FloatStorage": "<f4",
    "torch.DoubleStorage": "<f8",
    "torch.HalfStorage": "<f2",
    "torch.LongStorage": "<i8",
    "torch.IntStorage": "<i4",
    "torch.ByteStorage": "|u1",
    "torch.BoolStorage": "|b1",
}
"""Name of a torch storage to its dtype."""
_PLAIN = re.compile(r"[?bhilqefdBHILQ]|[biuf]\d{1,2}|O8?")
_BYTES = {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"}
_TEXTS = {"BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE", "STRING", "BINSTRING", "SHORT_BINSTRING"}
_NUMBERS = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
_VALUES = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_MARK = object()


class _Name(str):
    """A dotted name in the file; only a text."""


class _Blank:
    """An array whose contents come with the next BUILD."""


class _Persistent(tuple[Any, ...]):
    """What torch writes in the place of a storage."""


def read_npy(path: Path) -> Any:
    """Read a `.npy` file: an array, or a dictionary of arrays, numbers and texts.

    Args:
        path: A file that `np.save` wrote, of arrays or of a dictionary whose values may be torch tensors.

    Returns:
        The array, or the dictionary; tensors become arrays. Arrays may be read-only.

    Raises:
        StoreError: When the file is missing or torn, or holds anything else.
    """
    try:
        with path.open("rb") as stream:
            version = np.lib.format.read_magic(stream)
            read_header = (
                np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            )
            shape, _, dtype = read_header(stream)
            if not dtype.hasobject:
                stream.seek(0)
                return np.lib.format.read_array(stream, allow_pickle=False)
            if shape != ():
                raise ValueError(f"an array of {shape} objects")
            return _replay(stream, _CALLS)
    except FileNotFoundError as error:
        raise StoreError("no such file", where=path) from error
    except Exception as error:  # numpy and pickletools raise whatever the bytes lead them to
        hint = "only arrays in a dictionary are read, never code; was it written by the project that you named?"
        raise StoreError(f"not a file of arrays: {error}", where=path, hint=hint) from error


def _replay(stream: BinaryIO, calls: Mapping[str, Callable[..., Any]]) -> Any:
    """Read one pickle from a stream; `calls` are the names that it may use."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    argument: Any
    for opcode, argument, _ in pickletools.genops(stream):
        name = opcode.name
        if name in ("PROTO", "FRAME"):
            continue
        if name == "STOP":
            return stack.pop()
        if name in _VALUES:
            stack.append(_VALUES[name])
        elif name in _NUMBERS or name in _TEXTS or name in _BYTES:
            stack.append(argument)
        elif name == "MARK":
            stack.append(_MARK)
        elif name in ("EMPTY_DICT", "EMPTY_LIST"):
            stack.append({} if name == "EMPTY_DICT" else [])
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            stack[-count:] = [tuple(stack[-count:])]
        elif name == "TUPLE":
            stack.append(tuple(_since_mark(stack)))
        elif name in ("APPEND", "APPENDS"):
            items = [stack.pop()] if name == "APPEND" else _since_mark(stack)
            _top(stack, list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            pairs = [stack.pop(-2), stack.pop()] if name == "SETITEM" else _since_mark(stack)
            _top(stack, dict).update(zip(pairs[::2], pairs[1::2], strict=True))
        elif name in ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"):
            memo[len(memo) if argument is None else argument] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "GLOBAL":
            stack.append(_Name(argument.replace(" ", ".").replace("numpy._core", "numpy.core")))
        elif name == "STACK_GLOBAL":
            attribute = stack.pop()
            stack.append(_Name(f"{stack.pop()}.{attribute}".replace("numpy._core", "numpy.core")))
        elif name == "REDUCE":
            arguments, target = stack.pop(), stack.pop()
            if not isinstance(target, _Name) or target not in calls:
                raise ValueError(f"it wants to call {target}")
            stack.append(calls[target](*arguments))
        elif name == "BUILD":
            state, blank = stack.pop(), stack.pop()
            stack.append(_build(blank, state))
            memo.update({at: stack[-1] for at, value in memo.items() if value is blank})
        elif name == "BINPERSID":
            stack.append(_Persistent(stack.pop()))
        else:
            raise ValueError(f"it holds the opcode {name}")
    raise ValueError("it ends early")


def _since_mark(stack: list[Any]) -> list[Any]:
    at = len(stack) - 1
    while stack[at] is not _MARK:  # below 0 this wraps around once, then is an IndexError
        at -= 1
    items = stack[at:][1:]
    del stack[at:]
    return items


def _top(stack: list[Any], kind: type[Any]) -> Any:
    if type(stack[-1]) is not kind:
        raise ValueError(f"it adds items to a {type(stack[-1]).__name__}")
    return stack[-1]


def _build(blank: Any, state: Any) -> Any:
    if isinstance(blank, np.dtype):
        return blank.newbyteorder(state[1]) if state[1] in ("<", ">") else blank
    if not isinstance(blank, _Blank):
        raise ValueError(f"it sets the state of a {type(blank).__name__}")
    _, shape, dtype, fortran, data = state
    if not dtype.hasobject:
        return _from_buffer(data, dtype, shape, "F" if fortran else "C")
    if shape != () or type(data) is not list or len(data) != 1:
        raise ValueError(f"an array of {shape} objects")
    return data[0]


def _from_buffer(data: Any, dtype: np.dtype[Any], shape: tuple[int, ...], order: Any) -> NDArray[Any]:
    raw = data.encode("latin-1") if isinstance(data, str) else data  # Python 2 had no bytes
    return np.frombuffer(raw, dtype).reshape(shape, order=order)


def _dtype(code: str, *_: Any) -> np.dtype[Any]:
    if not _PLAIN.fullmatch(code):
        raise ValueError(f"an array of dtype {code!r}")
    return np.dtype(code[:1] if code.startswith("O") else code)


def _storage(data: bytes) -> NDArray[Any]:
    """Read a torch storage: five pickles, the number of values, then the values."""
    stream = io.BytesIO(data)
    magic, _, system, (kind, name, key, _, count, *_), keys = (_replay(stream, {}) for _ in range(5))
    if magic != MAGIC or not system["little_endian"] or kind != "storage" or keys != [key] or name not in STORAGES:
        raise ValueError(f"a torch storage of kind {name}")
    if int.from_bytes(stream.read(8), "little") != count:
        raise ValueError("a torn torch storage")
    return np.frombuffer(stream.read(), STORAGES[name], count=count)


def _tensor(storage: NDArray[Any], offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any) -> Any:
    ints = [offset, *shape, *strides]
    if len(shape) != len(strides) or any(type(value) is not int or value < 0 for value in ints):
        raise ValueError(f"a tensor of shape {shape}")
    last = offset + sum((side - 1) * step for side, step in zip(shape, strides, strict=True))
    if not isinstance(storage, np.ndarray) or math.prod(shape) > storage.size or last >= max(1, storage.size):
        raise ValueError("a tensor that is larger than its storage")
    bytes_each = [step * storage.itemsize for step in strides]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, bytes_each, writeable=False)


_CALLS: dict[str, Callable[..., Any]] = {
    "numpy.core.multiarray._reconstruct": lambda *_: _Blank(),
    "numpy.core.multiarray.scalar": lambda dtype, data: _from_buffer(data, dtype, (1,), "C")[0],
    "numpy.core.numeric._frombuffer": _from_buffer,
    "numpy.dtype": _dtype,
    "__builtin__.bytes": lambda: b"",
    "_codecs.encode": lambda text, _: text.encode("latin-1"),
    "collections.OrderedDict": lambda: {},
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch.storage._load_from_bytes": _storage,
}
