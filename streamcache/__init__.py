"""Stream language models over endless text with a KV cache of fixed size.

The public names stand in `__init__.pyi`, once. Each is imported when it is first used: the gate, in
the same package, must not cost every pytest run the import of torch.
"""

import ast
from importlib import import_module
from importlib.resources import files

from streamcache.version import VERSION

__version__ = VERSION

_MODULES = {
    alias.name: str(statement.module)
    for statement in ast.parse(
        files(__name__).joinpath("__init__.pyi").read_text(encoding="utf-8")
    ).body
    if isinstance(statement, ast.ImportFrom)
    for alias in statement.names
}
__all__ = sorted(_MODULES)


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
