from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from maskery.core.errors import ConfigError
from maskery.data.corpus.config import CorpusConfig


@pytest.mark.parametrize(
    ("setting", "flag"),
    [
        ({"unit": "word"}, "unit is 'word': it must be one of line, paragraph, document"),
        (
            {"on_bad_text": "ignore"},
            "on_bad_text is 'ignore': it must be one of fail, skip",
        ),
        ({"encoding": "utf-9"}, "--encoding is 'utf-9'"),
        ({"encoding": "rot13"}, "--encoding is 'rot13'"),
        ({"encoding": "base64"}, "--encoding is 'base64'"),
        ({"encoding": ""}, "--encoding is ''"),
        ({"encoding": "utf\0"}, "--encoding is"),
        ({"text_column": ""}, "--text-column is empty"),
        ({"split": ""}, "--split is empty"),
        ({"max_example_chars": 0}, "max_example_chars is 0: it must be at least 1"),
    ],
)
def test_a_bad_setting_names_its_flag(setting: dict[str, Any], flag: str) -> None:
    with pytest.raises(ConfigError) as caught:
        CorpusConfig(**setting)
    assert str(caught.value).startswith(flag)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("encoding", ["UTF8", "latin-1", "cp1252", "utf-16", "shift_jis"])
def test_encodings_of_text_pass(encoding: str) -> None:
    assert CorpusConfig(encoding=encoding).encoding == encoding


def test_the_module_is_light() -> None:
    heavy = "{'torch', 'numpy', 'pyarrow', 'datasets'}"
    code = f"import sys, maskery.data.corpus.config; print({heavy} & set(sys.modules) or 'light')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "light"


def test_signatures_of_the_first_version_stay() -> None:
    """Folders of shards are known by it."""
    assert CorpusConfig(unit="paragraph").signature() == (
        "CorpusConfig(unit='paragraph', text_column='text', encoding='utf-8', on_bad_text='fail', "
        "split='train', stream=False, max_example_chars=1000000)"
    )
    changed = CorpusConfig(quoting="off", join=" ", reader="json").signature()
    assert "quoting='off'" in changed
    assert "join=' '" in changed
    assert "reader='json'" in changed


def test_auto_is_an_encoding() -> None:
    assert CorpusConfig(encoding="auto").encoding == "auto"
