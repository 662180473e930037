"""The extension module; what users are meant to use is in the package."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable, Optional, final

__version__: str

@final
class Memory:
    """The bytes of one tensor. They are its user's alone, and go back to the system with it."""

    @property
    def address(self) -> int: ...
    @property
    def nbytes(self) -> int: ...

@final
class Model:
    """A model whose headers are parsed and whose files are open."""

    def __new__(cls, path: "str | Path") -> "Model": ...
    @property
    def format(self) -> str: ...
    def files(self) -> list[tuple[Path, int]]: ...
    def notices(self) -> list[str]: ...
    def tensors(self) -> list[tuple[str, str, list[int], int, int, int]]: ...
    def metadata(self) -> dict[str, Any]: ...
    def plan(self, **given: Any) -> tuple[str, list[str]]: ...
    def read(
        self, name: str, item_bytes: int, shape: list[int], bounds: list[tuple[int, int, int]]
    ) -> Memory: ...
    def read_into(
        self,
        address: int,
        name: str,
        item_bytes: int,
        shape: list[int],
        bounds: list[tuple[int, int, int]],
        nbytes: int,
    ) -> None: ...
    def dequantize(self, name: str) -> Memory: ...

@final
class Load(Iterator[tuple[str, Optional[Memory]]]):
    """A load under way: names and memory, in the order in which tensors land."""

    def __new__(
        cls,
        model: Model,
        lent: list[tuple[str, int, int, int, object]],
        progress: Optional[Callable[[int, int], object]],
        **given: Any,
    ) -> "Load": ...
    def __next__(self) -> tuple[str, Optional[Memory]]: ...
    def cancel(self) -> None: ...
    def close(self) -> None: ...
    def report(self) -> Optional[str]: ...

def parse(data: bytes) -> list[tuple[str, str, list[int], int, int]]: ...
