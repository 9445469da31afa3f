"""Arrays that grow at the end: what postings are made of."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

_T = TypeVar("_T", bound=np.generic)


class GrowingArray(Generic[_T]):
    """An array that grows at the end, amortised."""

    __slots__ = ("_buffer", "size")

    def __init__(self, dtype: type[_T]) -> None:
        self._buffer: npt.NDArray[_T] = np.empty(0, dtype)
        self.size = 0

    def extend(self, values: npt.NDArray[Any]) -> None:
        """Append values."""
        last = self.size + len(values)
        if last > len(self._buffer):
            grown = np.empty(max(last, len(self._buffer) * 3 // 2, 16), self._buffer.dtype)
            grown[: self.size] = self._buffer[: self.size]
            self._buffer = grown
        self._buffer[self.size : last] = values
        self.size = last

    @property
    def array(self) -> npt.NDArray[_T]:
        """What was appended, not copied."""
        return self._buffer[: self.size]


class RowColumn(GrowingArray[np.uint32]):
    """Row numbers, ascending; ``distinct`` as long as none is repeated."""

    __slots__ = ("distinct",)

    def __init__(self) -> None:
        super().__init__(np.uint32)
        self.distinct = True

    @property
    def dense(self) -> bool:
        """Whether each row from the first to the last stands here once: then row ``r`` is entry ``r``."""
        return self.distinct and self.size > 0 and int(self._buffer[self.size - 1]) == self.size - 1

    def extend(self, values: npt.NDArray[Any]) -> None:
        """Append rows, not below those before."""
        if self.distinct and len(values):
            follows = not self.size or self._buffer[self.size - 1] < values[0]
            self.distinct = bool(follows and (values[1:] > values[:-1]).all())
        super().extend(values)
