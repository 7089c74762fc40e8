"""The distillation plug-in: its loss against the formula, its teacher, and its runs."""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_text import lines, save_tiny_model
from transformers import AutoTokenizer, BertTokenizer

from maskery.cli.main import main
from maskery.core.errors import ConfigError
from maskery.core.registry import load_plugin
from maskery.core.system import read_metrics
from maskery.data.rows import RowSource, tokenise_rows
from maskery.evaluation.text.opening import open_model
from maskery.masking.masker import Masker
from maskery.models.loading import load_masked_lm
from maskery.models.masked_lm import MaskedLanguageModel
from maskery.runs.text.config import TextRunConfig
from maskery.runs.text.run import train_text
from maskery.tasks.text_mlm import TextParts
from maskery.training.config import TrainingConfig

FILE = Path(__file__).parents[2] / "examples/plugins/distillation_objective.py"
PLUGIN = f"{FILE}:distillation"


def of(name: str) -> Any:
    return load_plugin(f"{FILE}:{name}", flag="--objective", contract="an objective")


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("student"))


@pytest.fixture(scope="module")
def teacher(student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model, of sharper opinions and with rows that no token has."""
    folder = save_tiny_model(tmp_path_factory.mktemp("teacher"), seed=7)
    hf = load_masked_lm(str(folder)).model
    hf.resize_token_embeddings(96, mean_resizing=False)
    hf.cls.predictions.bias.data.normal_(0.0, 2.0, generator=torch.manual_seed(0))
    hf.save_pretrained(folder)
    return folder


def parts_of(folder: Path, *, packed: bool = True, **more: Any) -> TextParts:
    loaded = load_masked_lm(str(folder))
    model = MaskedLanguageModel(loaded.model, packed=packed, pad_token_id=0)
    masker = Masker.of(loaded.tokenizer, rate=0.3, seed=3)
    return TextParts(model=model, tokenizer=loaded.tokenizer, masker=masker, **more)


def test_it_is_a_short_file() -> None:
    assert len(FILE.read_text("utf-8").splitlines()) <= 120


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
def test_the_loss_is_hintons_formula(student: Path, teacher: Path, packed: bool) -> None:
    parts, opened = parts_of(student, packed=packed), open_model(teacher)
    task = of("Distillation")(parts, opened)
    rows = tokenise_rows(lines(20, seed=3), parts.tokenizer, max_length=32)
    batch = RowSource(rows, batch_tokens=5000).micro_batches(0, 0)[0]
    prepared = task.prepare(batch, epoch=2, progress=0.0)
    task.model.eval()
    sums = task.loss_sums(prepared)

    masked, size = parts.masker.mask(batch, epoch=2), len(parts.tokenizer)

    def logits_of(hf: Any) -> np.ndarray:
        """Hugging Face's own forward, one sentence at a time."""
        ids = [torch.from_numpy(masked.input_ids[a:b])[None] for a, b in pairwise(batch.boundaries)]
        logits = torch.cat([hf.eval()(one).logits[0] for one in ids]).detach().double()
        return logits.numpy()[masked.positions, :size]

    def softmax(z: np.ndarray, temperature: float) -> np.ndarray:
        powers = np.exp((z - z.max(axis=1, keepdims=True)) / temperature)
        return powers / powers.sum(axis=1, keepdims=True)

    z, v = logits_of(parts.model.hf), logits_of(opened.model.hf)
    q, p = softmax(z, 2.0), softmax(v, 2.0)
    kl = (p * (np.log(p) - np.log(q))).sum()
    right = softmax(z, 1.0)[np.arange(len(z)), masked.targets]
    assert kl > 1
    assert sums["distillation"].item() == pytest.approx(2.0**2 * kl, rel=1e-4)
    assert sums["mlm"].item() == pytest.approx(-np.log(right).sum(), rel=1e-4)
    assert prepared.counts == {"mlm": len(z), "distillation": len(z)}
    assert task.loss_weights == {"mlm": 0.5, "distillation": 0.5}

    # Hinton et al., section 2: the gradient by a logit is T * (q - p), for T ** 2 times the loss.
    bias = parts.model.hf.cls.predictions.bias
    sums["distillation"].backward()
    assert bias.grad is not None
    expected = 2.0 * (q - p).sum(axis=0)
    np.testing.assert_allclose(bias.grad[:size].numpy(), expected, rtol=1e-3, atol=1e-4)
    assert all(tensor.grad is None for tensor in opened.model.parameters())


def test_a_run_resumes_and_its_teacher_stays_frozen_and_outside(
    student: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, before = tmp_path / "corpus.txt", load_file(teacher / "model.safetensors")
    corpus.write_text("\n".join(lines(120)), "utf-8")
    monkeypatch.setenv("TEACHER", str(teacher))

    def run(*more: str) -> int:
        command = ["train", "text", str(corpus), "--model", str(student), "--objective", PLUGIN]
        settings = ["--batch-tokens", "256", "--log-every", "1", "--max-steps", "6"]
        output = ["--checkpoint-every", "3", "--output", str(tmp_path / "run")]
        return main([*command, *settings, *output, *more])

    def steps() -> list[dict[str, Any]]:
        rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
        return [row for row in rows if row["kind"] == "train"]

    assert run() == 0
    whole, last = steps(), tmp_path / "run" / "checkpoints" / "step-00000006"
    for row in whole:
        assert row["loss"] == pytest.approx((row["mlm"] + row["distillation"]) / 2, rel=1e-6)
    shutil.rmtree(last)
    assert run("--resume", "auto") == 0
    assert [row["loss"] for row in steps()] == [row["loss"] for row in whole]
    # The checkpoint has the student's tensors and no others.
    own = {f"hf.{name}" for name, _ in load_masked_lm(str(student)).model.named_parameters()}
    assert load_file(last / "model.safetensors").keys() == own
    assert not load_file(last / "extra.safetensors")
    assert not (tmp_path / "run" / "model" / "extra_state.safetensors").exists()
    after = load_file(teacher / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    # Another teacher is another run.
    monkeypatch.setenv("TEACHER", str(student))
    assert run("--resume", "auto") == 2


def test_from_python_a_student_comes_to_think_as_its_teacher(
    student: Path, teacher: Path, tmp_path: Path
) -> None:
    corpus, opened = tmp_path / "corpus.txt", open_model(teacher)
    corpus.write_text("\n".join(lines(120)), "utf-8")
    before = {name: tensor.clone() for name, tensor in opened.model.state_dict().items()}
    training = TrainingConfig(
        batch_tokens=512, epochs=8, log_every=1, learning_rate=1e-2, checkpoint_every=100
    )
    config = TextRunConfig(
        corpus=(str(corpus),), model=str(student), output=tmp_path / "run", training=training
    )
    make = of("Distillation")
    train_text(config, progress=False, objective=lambda parts: make(parts, opened))
    rows = [r for r in read_metrics(tmp_path / "run/metrics.jsonl") if r["kind"] == "train"]
    assert rows[-1]["distillation"] < 0.5 * rows[0]["distillation"]
    assert all(torch.equal(before[n], t) for n, t in opened.model.state_dict().items())


def test_a_teacher_of_another_tokenizer_and_none_are_refused_in_one_line(
    student: Path,
    teacher: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = shutil.copytree(teacher, tmp_path / "other")
    words = AutoTokenizer.from_pretrained(teacher).get_vocab()
    swapped = words | {"river": words["stone"], "stone": words["river"]}
    BertTokenizer(vocab=swapped, model_max_length=32).save_pretrained(other)
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(lines(60)), "utf-8")
    command = ["train", "text", str(corpus), "--model", str(student), "--objective", PLUGIN]
    command += ["--output", str(tmp_path / "run")]
    for named, message in (
        (str(other), "cuts text into other tokens than the model"),
        (str(tmp_path / "none"), "there is no model folder"),
        (None, "run_identity fails with KeyError: 'TEACHER'"),
    ):
        monkeypatch.delenv("TEACHER", raising=False)
        if named is not None:
            monkeypatch.setenv("TEACHER", named)
        capsys.readouterr()
        assert main(command) == 2
        told = capsys.readouterr().err
        assert message in told.splitlines()[-1]
        assert "Traceback" not in told
        assert not (tmp_path / "run").exists()  # nothing is left behind

    with pytest.raises(ConfigError, match=r"^--compile and a teacher do not go together"):
        of("Distillation")(parts_of(student, compile_backend="eager"), open_model(teacher))
