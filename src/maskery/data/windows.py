"""Cutting documents into windows that fit the model; no token is dropped.

Shapes: N documents, W windows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from maskery.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Stretches of documents.

    Attributes:
        documents: (W,) int64: which document each window is of.
        starts: (W,) int64: where it starts in its document, in tokens.
        lengths: (W,) int64: its tokens, special tokens not counted.
    """

    documents: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.documents)


def cut_windows(
    lengths: npt.NDArray[np.int64], chosen: npt.NDArray[np.int64], max_tokens: int
) -> Windows:
    """Cut documents into as few windows as they need, of equal length to within one token.

    Equal windows give every token context; full windows with a remainder would leave stubs.

    Args:
        lengths: (N,) int64: the tokens of each document.
        chosen: The documents to cut, as indices into `lengths`.
        max_tokens: The most tokens a window may have, special tokens not counted.

    Raises:
        ConfigError: `max_tokens` is below 1.
    """
    if max_tokens < 1:
        raise ConfigError(
            f"a window would hold {max_tokens} tokens besides the special ones; raise --max-length"
        )
    chosen = chosen[lengths[chosen] > 0]
    total = lengths[chosen]
    num_windows = -(-total // max_tokens)
    documents = np.repeat(chosen, num_windows)
    first = np.cumsum(num_windows) - num_windows
    index = np.arange(len(documents)) - np.repeat(first, num_windows)
    size, longer = (
        np.repeat(total // num_windows, num_windows),
        np.repeat(total % num_windows, num_windows),
    )
    return Windows(
        documents=documents,
        starts=index * size + np.minimum(index, longer),
        lengths=size + (index < longer),
    )
