"""Libraries that only some engines need, imported when they are used."""

from importlib import import_module
from types import ModuleType

from cddnet.errors import ModelError


def optional(library: str, extra: str) -> ModuleType:
    """The library.  Raises: ModelError that names the extra of this package that brings it."""
    try:
        return import_module(library)
    except ImportError as error:
        raise ModelError(
            f"this needs {library}, which is not installed: pip install cddnet[{extra}]"
        ) from error
