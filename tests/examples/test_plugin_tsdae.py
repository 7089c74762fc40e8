"""The TSDAE plug-in: what its decoder sees, what is deleted, and runs that learn."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_text import lines

from maskery.cli.main import main
from maskery.core.registry import load_plugin
from maskery.core.system import read_metrics
from maskery.data.rows import RowSource, tokenise_rows
from maskery.masking.masker import Masker
from maskery.models.loading import load_masked_lm
from maskery.models.masked_lm import MaskedLanguageModel
from maskery.runs.text.config import TextRunConfig
from maskery.runs.text.run import train_text
from maskery.tasks.text_mlm import TextParts
from maskery.training.config import TrainingConfig

FILE = Path(__file__).parents[2] / "examples/plugins/tsdae_objective.py"
PLUGIN = f"{FILE}:Tsdae"


def of(name: str) -> Any:
    return load_plugin(f"{FILE}:{name}", flag="--objective", contract="an objective")


def made(model: Path, *, packed: bool = True, count: int = 20) -> tuple[Any, Any, Any]:
    """A task, its rows, and a batch of them."""
    loaded = load_masked_lm(str(model))
    wrapped = MaskedLanguageModel(loaded.model, packed=packed, pad_token_id=0)
    masker = Masker.of(loaded.tokenizer, seed=3)
    task = of("Tsdae")(TextParts(model=wrapped, tokenizer=loaded.tokenizer, masker=masker))
    rows = tokenise_rows(lines(count, seed=3), loaded.tokenizer, max_length=32)
    return task, rows, RowSource(rows, batch_tokens=100_000).micro_batches(0, 0)[0]


def test_it_is_a_short_file() -> None:
    assert len(FILE.read_text("utf-8").splitlines()) <= 120


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
def test_the_decoder_sees_the_vector_and_nothing_else_of_the_encoder(
    model: Path, packed: bool
) -> None:
    task, _, batch = made(model, packed=packed)
    prepared = task.prepare(batch, epoch=0, progress=0.0)
    task.model.eval()
    hidden, lengths = MaskedLanguageModel.hidden, prepared.lengths
    sentence = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    noise = torch.randn(len(sentence), 32, generator=torch.manual_seed(1))
    mean = torch.zeros(len(lengths), 32).index_add(0, sentence, noise) / lengths[:, None]

    def loss(changed: torch.Tensor) -> float:
        def other(self: MaskedLanguageModel, inputs: Any) -> torch.Tensor:
            return hidden(self, inputs) + changed

        with pytest.MonkeyPatch.context() as patch, torch.no_grad():
            patch.setattr(MaskedLanguageModel, "hidden", other)
            return float(task.loss_sums(prepared)["tsdae"])

    # Every token but the first of a sentence is said: from nearly uniform guesses on, log V each.
    plain = loss(torch.zeros(1))
    assert prepared.counts == {"tsdae": batch.num_tokens - len(lengths)}
    assert plain / prepared.counts["tsdae"] == pytest.approx(np.log(89), rel=0.2)
    task.model.hf.get_input_embeddings().weight.data.mul_(50)  # guesses that are not
    plain = loss(torch.zeros(1))
    # Other states with the same mean, the vector; then all states moved, and the vector with them.
    assert loss(noise - mean[sentence]) == pytest.approx(plain, rel=1e-5)
    assert abs(loss(mean[sentence]) - plain) > 30e-5 * plain


def test_a_word_is_said_from_those_before_it() -> None:
    decoder = of("Decoder")(8, 8, 16, 2).eval()
    vectors, words = torch.randn(2, 8), torch.randn(2, 6, 8)
    other = words.clone()
    other[:, 4:] += 1.0
    one, two = (decoder(vectors, w).detach() for w in (words, other))
    torch.testing.assert_close(one[:, :4], two[:, :4])
    assert (one[:, 4:] - two[:, 4:]).abs().max() > 1e-3


def test_six_of_ten_words_are_deleted_alike_in_any_batch(model: Path) -> None:
    task, rows, batch = made(model, count=300)
    protected = task.masker.vocabulary.protected
    left = task.prepare(batch, epoch=1, progress=0.0)
    ids, ends = left.inputs.input_ids[0].numpy(), left.lengths.numpy().cumsum()
    kept, words = (~protected[ids]).sum(), (~protected[batch.input_ids]).sum()
    assert abs(kept / words - 0.4) < 5 * np.sqrt(0.4 * 0.6 / words) + 1 / batch.lengths.mean() / 10
    assert (protected[ids]).sum() == protected[batch.input_ids].sum()  # special tokens stay
    assert left.lengths.min() >= 3  # and a word
    sentences = dict(
        zip(batch.example_ids.tolist(), map(bytes, np.split(ids, ends[:-1])), strict=True)
    )
    source = RowSource(rows, batch_tokens=60)
    for step in range(0, source.num_steps(0), 7):
        for small in source.micro_batches(0, step):
            again = task.prepare(small, epoch=1, progress=0.0)
            parts = np.split(again.inputs.input_ids[0].numpy(), again.lengths.numpy().cumsum()[:-1])
            for name, part in zip(small.example_ids.tolist(), parts, strict=True):
                assert sentences[name] == bytes(part)


def test_a_run_learns_and_resumes_to_the_bit(corpus: Path, model: Path, tmp_path: Path) -> None:
    def run(*more: str) -> int:
        command = ["train", "text", str(corpus), "--model", str(model), "--objective", PLUGIN]
        settings = ["--batch-tokens", "256", "--log-every", "1", "--max-steps", "12"]
        settings += ["--epochs", "3", "--learning-rate", "1e-2", "--checkpoint-every", "6"]
        return main([*command, *settings, "--output", str(tmp_path / "run"), *more])

    def losses() -> list[float]:
        rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
        return [row["loss"] for row in rows if row["kind"] == "train"]

    assert run() == 0
    whole, last = losses(), tmp_path / "run" / "checkpoints" / "step-00000012"
    assert np.mean(whole[-3:]) < 0.9 * np.mean(whole[:3])
    weights = load_file(last / "model.safetensors")
    shutil.rmtree(last)
    assert run("--resume", "auto") == 0
    assert losses() == whole
    again = load_file(last / "model.safetensors")
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    # The decoder lies beside the model.
    beside = load_file(tmp_path / "run" / "model" / "extra_state.safetensors")
    assert all(name.startswith("decoder.") for name in beside)


def test_from_python(corpus: Path, model: Path, tmp_path: Path) -> None:
    training = TrainingConfig(batch_tokens=256, max_steps=2, log_every=1)
    config = TextRunConfig(
        corpus=(str(corpus),), model=str(model), output=tmp_path / "run", training=training
    )
    result = train_text(config, progress=False, objective=of("Tsdae"))
    assert result.summary.steps == 2
