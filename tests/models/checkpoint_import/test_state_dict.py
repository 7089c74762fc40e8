from __future__ import annotations

from pathlib import Path

import pytest

from maskery.core.errors import ModelError
from maskery.models.checkpoint_import.state_dict import read_state_dict


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"junk", b"\x80", b"PK\x03\x04", b"{", b"h"])
def test_bytes_that_are_no_checkpoint_are_one_line(
    tmp_path: Path, content: bytes, suffix: str
) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="checkpoint") as caught:
        read_state_dict(path)
    assert "\n" not in str(caught.value)
