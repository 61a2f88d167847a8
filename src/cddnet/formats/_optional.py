"""Libraries that only one format needs, imported when it is used."""

from importlib import import_module
from types import ModuleType

from cddnet.errors import FormatError


def optional(library: str, extra: str) -> ModuleType:
    """The library, or a FormatError that names the extra of this package that brings it."""
    try:
        return import_module(library)
    except ImportError as error:
        raise FormatError(
            f"this format needs {library}, which is not installed: pip install cddnet[{extra}]"
        ) from error
