"""Optional dependencies, imported at the moment they are needed."""

from __future__ import annotations

import importlib
from types import ModuleType

from maskery.core.errors import MissingExtraError


def require(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import `module`, or say which extra brings it.

    Args:
        module: The importable name, for example `"PIL.Image"`.
        extra: The extra of the `maskery` distribution that installs it.
        purpose: Completes "... is needed to <purpose>" in the message.

    Raises:
        MissingExtraError: The module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        # The missing one may be another that `module` imports, as torch.utils.tensorboard does.
        missing = (error.name or module).partition(".")[0]
        raise MissingExtraError(
            f"{missing} is needed to {purpose} and is not installed; "
            f"install it with: pip install 'maskery[{extra}]'"
        ) from error
