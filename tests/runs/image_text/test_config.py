from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from maskery.core.errors import ConfigError
from maskery.data.person_search.config import PersonSearchDataConfig
from maskery.runs.frame.config_file import from_plain, load_config, save_config, to_plain
from maskery.runs.image_text.config import (
    ImageTextRunConfig,
    PairsRunConfig,
    PairsTrainingConfig,
    PersonSearchRunConfig,
)


def test_text_settings_are_no_settings_and_old_files_with_them_are_read() -> None:
    names = {field.name for field in dataclasses.fields(PairsTrainingConfig)}
    assert names.isdisjoint({"batch_tokens", "micro_batch_tokens", "compile"})
    old = to_plain(PairsTrainingConfig(batch_pairs=3)) | {"batch_tokens": 4096, "compile": False}
    assert from_plain(old, PairsTrainingConfig, "old.yaml") == PairsTrainingConfig(batch_pairs=3)
    with pytest.raises(ConfigError, match="unknown setting 'batch_token'"):
        from_plain({"batch_token": 1}, PairsTrainingConfig, "new.yaml")


@pytest.mark.parametrize(
    "config",
    [
        PairsRunConfig(pairs="a.jsonl", max_length=7),
        PersonSearchRunConfig(
            data=PersonSearchDataConfig(dataset="jsonl", root=Path("a")), weak_pair_probability=0.0
        ),
    ],
)
def test_both_kinds_are_written_and_read(config: ImageTextRunConfig, tmp_path: Path) -> None:
    save_config(tmp_path, config)
    assert load_config(tmp_path / "config.yaml", type(config)) == config


def test_a_term_in_a_file_is_not_loaded_until_it_is_named_again(tmp_path: Path) -> None:
    from maskery.core.errors import PluginError
    from maskery.objectives.terms import load_terms

    (tmp_path / "mine.py").write_text("def mine(step): ...")
    config = PairsRunConfig(pairs="a.jsonl")
    objectives = dataclasses.replace(config.objectives, term=(f"{tmp_path}/mine.py:mine=0.5",))
    save_config(tmp_path, dataclasses.replace(config, objectives=objectives))
    read = load_config(tmp_path / "config.yaml", PairsRunConfig).objectives.term
    with pytest.raises(PluginError, match=r"add --term .*mine\.py:mine"):
        load_terms(read, [], None)
    (term,) = load_terms([*read, f"{tmp_path}/mine.py:mine"], [], None)
    assert term.weight == 0.5


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"max_length": 2}, "max_length is 2: it must be at least 3 tokens; try --max-length 64"),
        ({"mrtd_mask_rate": 1.0}, "must lie between 0 and 1"),
        ({"image_cache_mb": -1}, "image_cache_mb is -1"),
        ({"fusion_layer": 1}, "needs --text-model and --vision-model"),
        ({"text_model": "bert"}, "belong together"),
        ({"model": "scratch:huge"}, "choose scratch:tiny"),
    ],
)
def test_mistakes_are_one_line(changes: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        PairsRunConfig(pairs="a.jsonl", **changes)  # type: ignore[arg-type]
    assert told in str(caught.value)
