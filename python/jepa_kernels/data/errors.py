"""The one error that reading data raises, and the check for the optional packages it needs."""

from __future__ import annotations

import importlib
from types import ModuleType

_DISTRIBUTIONS = {"av": "PyAV", "PIL": "Pillow", "skimage": "scikit-image"}


class DataError(ValueError):
    """A file, folder or package that reading needs is missing or unusable; one line that names it and the fix."""


def require(module: str, purpose: str) -> ModuleType:
    """Import an optional dependency, or say which extra brings it.

    >>> require("PIL", "reading images").__name__
    'PIL'
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = _DISTRIBUTIONS.get(module.partition(".")[0], module)
        raise DataError(
            f"{purpose} needs {package}, which cannot be imported ({error}); install it with "
            "`pip install 'jepa-kernels[data]'`"
        ) from None
