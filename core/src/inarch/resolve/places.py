"""Sets of addresses as integers, a bit for each address, and spelled out only when looked at."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import reduce
from operator import or_
from typing import overload


class Numbered(dict[str, int]):
    """A bit for each address, in the order in which they are first asked for.

    What two of fifty adapters share on hundreds of sites is one `&` of two integers.
    """

    def __init__(self, addresses: Iterable[str] = ()) -> None:
        super().__init__()
        self.names: list[str] = []
        self.mask(addresses)

    def __missing__(self, address: str) -> int:
        bit = self[address] = 1 << len(self.names)
        self.names.append(address)
        return bit

    def mask(self, addresses: Iterable[str]) -> int:
        """The set of some addresses."""
        return reduce(or_, map(self.__getitem__, addresses), 0)

    def spelled(self, mask: int) -> list[str]:
        """The addresses of a set, by their numbers."""
        digits = f"{mask:b}"[::-1]
        return [name for name, digit in zip(self.names, digits, strict=False) if digit == "1"]

    def first(self, mask: int) -> str:
        """That of the lowest number in a set which isn't empty."""
        return self.names[(mask & -mask).bit_length() - 1]


class Places(Sequence[str]):
    """Addresses, those that decide first, each part sorted: when looked at, and not before.

    Fifty adapters meet in more than a thousand pairs, of which few are ever printed.
    """

    __slots__ = ("_deciding", "_numbered", "_others", "_sorted")

    def __init__(self, numbered: Numbered, deciding: int, all: int) -> None:
        self._numbered = numbered
        self._deciding = deciding
        self._others = all & ~deciding
        self._sorted: tuple[str, ...] | None = None

    @property
    def deciding(self) -> int:
        """How many of them decide."""
        return self._deciding.bit_count()

    def _all(self) -> tuple[str, ...]:
        if self._sorted is None:
            parts = map(self._numbered.spelled, (self._deciding, self._others))
            self._sorted = tuple(address for part in parts for address in sorted(part))
        return self._sorted

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...
    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        return self._all()[index]

    def __len__(self) -> int:
        return (self._deciding | self._others).bit_count()

    def __contains__(self, address: object) -> bool:
        return address in self._all()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Places | tuple) and self._all() == tuple(other)

    def __hash__(self) -> int:
        return hash(self._all())

    def __repr__(self) -> str:
        return repr(self._all())

    def __reduce__(self) -> tuple[type[tuple[str, ...]], tuple[tuple[str, ...]]]:
        """Copied and pickled as the tuple it equals, without the numbers of all others."""
        return tuple, (self._all(),)
