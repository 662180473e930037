"""What ``with`` does for whatever has a ``close``."""

from types import TracebackType
from typing import Optional, TypeVar

_Self = TypeVar("_Self", bound="Closing")


class Closing:
    """Is closed at the end of its ``with``."""

    def close(self) -> None:
        """Lets go of what it has."""
        raise NotImplementedError

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(
        self,
        kind: "Optional[type[BaseException]]",
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self.close()
