"""Pickles read without running them: every name that a pickle asks for is looked up in a list.

A pickle is a program whose only way out is the names it imports. Here a name gives one of our own
stand-ins, an inert object that keeps its arguments, or an error: nothing is ever imported.
"""

import pickle
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from hetpure.errors import InputError

NUMBERS = frozenset(
    ("b1", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8")  # of numpy arrays
)


class Inert:
    """Stands for an object of a class that is not ours: keeps arguments and state, does nothing."""

    dump_patches = False  # torch's readers of old files ask a class for it
    arguments: tuple[Any, ...]
    state: Any

    def __new__(cls, *arguments: Any, **named: Any) -> "Inert":
        stand_in = super().__new__(cls)
        stand_in.arguments, stand_in.state = arguments, {}
        return stand_in

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:  # of a class that is a dict
        self.state[key] = value

    def __call__(self, *arguments: Any) -> "Inert":  # of a function that another one gives
        return Inert(*arguments)

    def append(self, value: Any) -> None:
        """Of a class that is a list: its values are nothing that is read."""

    def extend(self, values: Any) -> None:
        """As `append`."""


class Dtype(Inert):
    """Stands for `numpy.dtype`: a number format."""

    def read(self, data: bytes) -> "np.ndarray[Any, Any]":
        """The values (N,) in a piece of memory; only plain numbers are read."""
        code = self.arguments[0] if self.arguments else None
        code = code.decode() if isinstance(code, bytes) else code
        if code not in NUMBERS or not isinstance(data, bytes):
            raise InputError(f"the pickle holds an array of {code!r}: only numbers are read")
        state = self.state if isinstance(self.state, tuple) else ()
        order = state[1] if len(state) > 1 else "|"
        order = order.decode() if isinstance(order, bytes) else order
        if order not in ("<", ">", "|", "="):
            raise InputError(f"the pickle holds an array of byte order {order!r}")
        return np.frombuffer(data, np.dtype(f"{order}{code}"))


class Array(Inert):
    """Stands for `numpy.ndarray`."""

    def read(self) -> "np.ndarray[Any, Any]":
        """The array, of the shape that the pickle says."""
        try:
            _, shape, dtype, fortran, data = self.state
            values = dtype.read(data)
            array: np.ndarray[Any, Any] = values.reshape(shape, order="F" if fortran else "C")
            return array
        except (TypeError, ValueError, AttributeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"the pickle holds an array that is none: {error}") from None


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> Array:
    """Stands for the function by which numpy writes arrays since protocol 5."""
    array = Array()
    array.state = (1, shape, dtype, order == "F", bytes(data))
    return array


def _scalar(dtype: Any, data: Any) -> Any:
    """Stands for numpy's `scalar`."""
    if not isinstance(dtype, Dtype):
        raise InputError("the pickle holds a number without a format")
    return dtype.read(data)[0].item()


def _encode(text: Any, *encoding: Any) -> bytes:
    """Stands for `codecs.encode`: how Python 3 writes bytes into an old pickle."""
    if not isinstance(text, str):
        raise InputError("the pickle holds bytes that are none")
    return text.encode("latin1")


# numpy's names before and since its version 2.
NUMPY: dict[str, Callable[..., Any]] = {
    "_codecs.encode": _encode,
    "numpy.dtype": Dtype,
    "numpy.ndarray": Array,
    "numpy.core.multiarray._reconstruct": lambda *arguments: Array(),
    "numpy._core.multiarray._reconstruct": lambda *arguments: Array(),
    "numpy.core.numeric._frombuffer": _from_buffer,
    "numpy._core.numeric._frombuffer": _from_buffer,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray.scalar": _scalar,
}


class Reader(pickle.Unpickler):
    """An unpickler that knows `names` only.

    Another name is an InputError, or, where `inert` says so, a class whose objects do nothing.
    """

    names: Mapping[str, Callable[..., Any]] = NUMPY
    inert = False

    def find_class(self, module: str, name: str, /) -> Any:
        stand_in = self.names.get(f"{module}.{name}")
        if stand_in is None:
            if not self.inert:
                raise InputError(f"it asks for {module}.{name}, which is not read")
            stand_in = type(name.rpartition(".")[2] or "Inert", (Inert,), {})
        if isinstance(stand_in, type):
            # A pickle can set attributes of what it is given: of a fresh class, never of ours.
            return type(stand_in.__name__, (stand_in,), {})
        return lambda *arguments: stand_in(*arguments)
