"""What is kept between two clicks: frames and results, the oldest dropped when they are many."""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from typing import Generic, TypeVar

from ...errors import DataError

_T = TypeVar("_T")


class Store(Generic[_T]):
    """Items by a token that cannot be guessed, within a number of bytes.

    Args:
        max_bytes: what all items may have together. The newest one is kept in any case.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._items: OrderedDict[str, tuple[_T, int]] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, item: _T, size: int) -> str:
        """Keeps ``item`` of ``size`` bytes; returns its token."""
        token = secrets.token_urlsafe(16)
        with self._lock:
            self._items[token] = (item, size)
            while len(self._items) > 1 and self._size() > self._max_bytes:
                self._items.popitem(last=False)
        return token

    def get(self, token: str) -> _T:
        """The item of a token.

        Raises:
            DataError: it was dropped, or there never was one.
        """
        with self._lock:
            if token not in self._items:
                raise DataError(
                    found="a result or frame that is no longer kept",
                    expected="one of the newest: older ones make room for them",
                    fix="upload the frame again, or start the page with a larger --keep-mib",
                )
            self._items.move_to_end(token)
            return self._items[token][0]

    def drop(self, token: str | None) -> None:
        """Forgets an item, if it is there."""
        with self._lock:
            self._items.pop(token, None)

    @property
    def size(self) -> int:
        """Bytes of all items."""
        with self._lock:
            return self._size()

    def __contains__(self, token: object) -> bool:
        return token in self._items

    def __len__(self) -> int:
        return len(self._items)

    def _size(self) -> int:
        return sum(size for _, size in self._items.values())
