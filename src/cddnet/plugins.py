"""File name = plug-in name: a package's public modules are its plug-ins."""

from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType


def names(package: str) -> tuple[str, ...]:
    """Plug-ins of `cddnet.<package>`: its modules whose name has no leading underscore."""
    parent = import_module(f"cddnet.{package}")
    found = (module.name for module in iter_modules(parent.__path__))
    return tuple(sorted(name for name in found if not name.startswith("_")))


def load(package: str, name: str) -> ModuleType:
    """Import plug-in `name` of `cddnet.<package>`."""
    return import_module(f"cddnet.{package}.{name}")
