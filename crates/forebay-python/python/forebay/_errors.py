"""What is raised. Missing files, failing disks, wrong options and full memory are Python's own
``OSError``, ``ValueError`` and ``MemoryError``."""

try:
    # Code that catches safetensors' error keeps working.
    from safetensors import SafetensorError as _Base
except ImportError:

    class _Base(Exception):  # type: ignore[no-redef]
        pass


class Error(_Base):
    """Something that ended a load or a read; the message names file, tensor, cause and remedy."""


class FormatError(Error):
    """A file that is no model, or a damaged one."""


class Cancelled(Error):
    """A load that somebody has cancelled."""


# As safetensors calls it.
SafetensorError = Error
for _class in (Error, FormatError, Cancelled):
    # Where users find it.
    _class.__module__ = "forebay"
