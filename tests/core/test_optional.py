from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from maskery.core.errors import MaskeryError, MissingExtraError
from maskery.core.optional import require


def test_an_installed_module_is_returned() -> None:
    assert require("json", extra="none", purpose="test") is json
    assert require("json.decoder", extra="none", purpose="test") is json.decoder


def test_a_missing_module_names_the_package_the_purpose_and_the_extra() -> None:
    with pytest.raises(MissingExtraError) as caught:
        require("no_such_package.part", extra="vision", purpose="read images")
    assert str(caught.value) == (
        "no_such_package is needed to read images and is not installed; "
        "install it with: pip install 'maskery[vision]'"
    )
    assert isinstance(caught.value, MaskeryError)
    assert isinstance(caught.value, ImportError)


def test_the_package_named_is_the_one_that_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As torch.utils.tensorboard, which is there and imports tensorboard, which may not be.
    (tmp_path / "present_wrapper.py").write_text("import absent_backend.inner\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingExtraError, match=r"^absent_backend is needed to draw"):
        require("present_wrapper", extra="report", purpose="draw")
    assert "present_wrapper" not in sys.modules
