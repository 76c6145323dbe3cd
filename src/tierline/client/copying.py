"""Copies and checksums between buffers, with the interpreter lock given up while bytes move.

``memoryview`` assignment holds the lock for the whole copy (7 ms for 32 MiB, which stalls an engine's other threads);
``memmove`` called through ctypes does not, and XXH3 gives it up by itself. What is summed is copied in pieces, so that
the sum finds them warm in the CPU's cache; pieces below 1 MiB copy at a third of the speed where the source is cold.
"""

import ctypes
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import xxhash

SUMMED_PIECE_BYTES = 1024 * 1024


class Hasher(Protocol):
    """What the copies feed; XXH3-64 is the only one the wire knows."""

    def update(self, data: memoryview, /) -> None:
        """Add bytes."""

    def intdigest(self) -> int:
        """Return the sum of the bytes so far."""


def copy_into(destinations: Sequence[memoryview], sources: Sequence[memoryview]) -> None:
    """Copy the bytes of ``sources``, in order, into ``destinations``, in order; both hold equally many."""
    for destination, source in _pairs(destinations, sources, at_most=sys.maxsize):
        _move(destination, source)


def copy_and_sum(
    destinations: Sequence[memoryview], sources: Sequence[memoryview], *, sum_destination: bool = False
) -> int:
    """Copy as :func:`copy_into` does and return the XXH3-64 of the bytes.

    Parameters
    ----------
    sum_destination
        Sum what arrived instead of what was sent: for a reader, whose source others may write.
    """
    hasher: Hasher = xxhash.xxh3_64()
    for destination, source in _pairs(destinations, sources, at_most=SUMMED_PIECE_BYTES):
        if sum_destination:
            _move(destination, source)
            hasher.update(destination)
        else:
            hasher.update(source)
            _move(destination, source)
    return hasher.intdigest()


def checksum(views: Sequence[memoryview]) -> int:
    """Return the XXH3-64 of the bytes of ``views``, in order."""
    hasher: Hasher = xxhash.xxh3_64()
    for view in views:
        hasher.update(view)
    return hasher.intdigest()


def _pairs(
    destinations: Sequence[memoryview], sources: Sequence[memoryview], at_most: int
) -> Iterator[tuple[memoryview, memoryview]]:
    """Yield equally long pieces of at most ``at_most`` bytes, cut where either side has a boundary."""
    wanted, given = sum(view.nbytes for view in destinations), sum(view.nbytes for view in sources)
    if wanted != given:
        raise ValueError(f"cannot copy {given} bytes into {wanted}")
    remaining = iter(sources)
    source = memoryview(b"")
    for whole in destinations:
        destination = whole
        while destination.nbytes:
            if not source.nbytes:
                source = next(remaining)
                continue
            length = min(at_most, destination.nbytes, source.nbytes)
            yield destination[:length], source[:length]
            destination, source = destination[length:], source[length:]


class _PyBuffer(ctypes.Structure):
    """CPython's ``Py_buffer``: the way to the address of a read-only buffer, which ctypes itself has none for."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.py_object),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


_SIMPLE = 0
_WRITABLE = 1


@contextmanager
def _address(view: memoryview, flags: int) -> Iterator[int]:
    """Hold the buffer's address; it cannot be unmapped or resized meanwhile, whatever another thread does."""
    buffer = _PyBuffer()
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(view), ctypes.byref(buffer), ctypes.c_int(flags))
    try:
        yield buffer.buf
    finally:
        ctypes.pythonapi.PyBuffer_Release(ctypes.byref(buffer))


def _move(destination: memoryview, source: memoryview) -> None:
    with _address(destination, _WRITABLE) as to, _address(source, _SIMPLE) as origin:
        ctypes.memmove(to, origin, source.nbytes)
