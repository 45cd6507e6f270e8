"""The mutator: small damage to bytes, to the numbers of a text, and to what lies inside of a container."""

from __future__ import annotations

import io
import random
import re
import struct
import zipfile
import zlib
from collections.abc import Sequence

_NUMBERS = (
    b"0",
    b"-1",
    b"1e999",
    b"nan",
    b"99999999999999999999",
    b"2147483648",
    b"1e9",
    b"null",
    b'"x"',
    b"[]",
    b"{}",
)
_TOKENS = (
    b"..", b"../../x", b"/etc/passwd", b"\x00", b"\xff\xfe", b"\n", b",", b"[" * 3000, b"{", b"}", b"&a ", b"*a", b"\r",
    b"!!python/object:os.x ", b"!!timestamp x", b"<!DOCTYPE x [<!ENTITY a 'b'>]>", b"&a;", b"<object>", b'"', b"true",
    b"-" * 50, b"9" * 5000,
)  # fmt: skip


def mutate(data: bytes, rng: random.Random, *, suffix: str, others: Sequence[bytes]) -> bytes:
    """Return a damaged copy.

    Args:
        data: A valid file.
        rng: Decides.
        suffix: Of the file's name; tells containers.
        others: Other files, to splice in.
    """
    if suffix in (".npz", ".pt", ".pth") and data[:2] == b"PK" and rng.random() < 0.7:
        return _inside_zip(data, rng, others)
    if suffix == ".png" and rng.random() < 0.4:
        return _inside_png(data, rng)
    if suffix == ".safetensors" and rng.random() < 0.6:
        (size,) = struct.unpack("<Q", data[:8])
        head = mutate(data[8 : 8 + size], rng, suffix=".json", others=others)
        return struct.pack("<Q", len(head)) + head + data[8 + size :]
    for _ in range(rng.choice((1, 1, 1, 2, 4, 8))):
        data = _STEPS[rng.randrange(len(_STEPS))](data, rng, others)
    return data


def _flip(data: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    if not data:
        return data
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]


def _set(data: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    at, size = rng.randrange(len(data) + 1), rng.choice((1, 2, 4, 8))
    return data[:at] + rng.choice((b"\x00", b"\xff", b"\x7f", b"\x80")) * size + data[at + size :]


def _cut(data: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _drop(data: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + data[at + rng.randrange(1, 64) :]


def _repeat(data: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + data[at : at + rng.randrange(1, 200)] * rng.randrange(1, 50) + data[at:]


def _splice(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    other = rng.choice(others) if others else data
    at, start = rng.randrange(len(data) + 1), rng.randrange(len(other) + 1)
    return data[:at] + other[start : start + rng.randrange(1, 200)] + data[at:]


def _token(data: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.choice(_TOKENS) + data[at:]


def _number(data: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    places = list(re.finditer(rb"-?\d+(\.\d+)?", data[:20000]))
    if not places:
        return data
    place = rng.choice(places)
    return data[: place.start()] + rng.choice(_NUMBERS) + data[place.end() :]


def _value(data: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    places = list(re.finditer(rb'"[^"\n]{0,40}"|\[[^\[\]]*\]|\{[^{}]*\}', data[:20000]))
    if not places:
        return data
    place = rng.choice(places)
    return data[: place.start()] + rng.choice(_NUMBERS) + data[place.end() :]


_STEPS = (_flip, _flip, _set, _cut, _drop, _repeat, _splice, _token, _number, _number, _value)


def _inside_zip(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old:
        victim = rng.choice(old.namelist())
        packed = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
        with zipfile.ZipFile(target, "w", packed) as new:
            for name in old.namelist():
                inner = old.read(name)
                if name == victim:
                    choice = rng.random()
                    if choice < 0.1:
                        continue
                    inner = (
                        bytes(rng.choice((10**5, 10**7, 3 * 10**8))) if choice < 0.102 else _member(inner, rng, others)
                    )
                new.writestr(zipfile.ZipInfo(name), inner, packed)
    return target.getvalue()


def _member(inner: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    if inner.startswith(b"\x93NUMPY") and rng.random() < 0.5:  # keep the length of the header right
        (size,) = struct.unpack("<H", inner[8:10])
        head = mutate(inner[10 : 10 + size].rstrip(), rng, suffix="", others=others)
        head = head.ljust(size - 1)[: 2**15] + b"\n"
        return inner[:8] + struct.pack("<H", len(head)) + head + inner[10 + size :]
    return mutate(inner, rng, suffix="", others=others)


def _inside_png(data: bytes, rng: random.Random) -> bytes:
    """Change a chunk and mend its checksum, so that the damage reaches what is behind it."""
    at, chunks = 8, []
    while at + 12 <= len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    index = rng.randrange(len(chunks))
    kind, body = chunks[index]
    if kind == b"IHDR" and rng.random() < 0.5:
        sides = [rng.choice((0, 1, 7, 9000, 12000, 65535, 2**31 - 1)) for _ in range(2)]
        body = struct.pack(">II", *sides) + body[8:]
    else:
        body = mutate(body, rng, suffix="", others=())
    chunks[index] = (kind, body)
    parts = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    ]
    return data[:8] + b"".join(parts)
