"""The ELECTRA plug-in: its loss against the formula, and runs from the command line and Python."""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_text import lines

from maskery.cli.main import main
from maskery.core.errors import ConfigError
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

PLUGIN = f"{Path(__file__).parents[2] / 'examples/plugins/electra_objective.py'}:Electra"


def test_it_is_a_short_file() -> None:
    assert len(Path(PLUGIN.rpartition(":")[0]).read_text("utf-8").splitlines()) <= 120


def objective() -> Any:
    return load_plugin(PLUGIN, flag="--objective", contract="an objective")


def alone(hf: Any, ids: np.ndarray, boundaries: np.ndarray) -> np.ndarray:
    """What Hugging Face's own forward gives, one sentence at a time."""
    hf.eval()
    rows = [hf(torch.from_numpy(ids[a:b])[None])[0][0] for a, b in pairwise(boundaries)]
    return torch.cat(rows).detach().double().numpy()


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
def test_the_loss_is_the_papers_formula(model: Path, packed: bool) -> None:
    loaded = load_masked_lm(str(model))
    wrapped = MaskedLanguageModel(loaded.model, packed=packed, pad_token_id=0)
    masker = Masker.of(loaded.tokenizer, rate=0.4, mask_share=1.0, random_share=0.0, seed=3)
    task = objective()(TextParts(model=wrapped, tokenizer=loaded.tokenizer, masker=masker))
    rows = tokenise_rows(lines(60, seed=3), loaded.tokenizer, max_length=32)
    batch = RowSource(rows, batch_tokens=5000).micro_batches(0, 0)[0]
    prepared = task.prepare(batch, epoch=2, progress=0.0)
    task.model.eval()
    sums = task.loss_sums(prepared)

    masked = masker.mask(batch, epoch=2)
    x, places = batch.input_ids, masked.positions
    p_g = softmax(alone(task.model.generator.hf, masked.input_ids, batch.boundaries)[places])
    mlm = -np.log(p_g[np.arange(len(places)), x[places]])
    # The words sampled, by inverting the distribution of those that are not special.
    open_words = np.where(masker.vocabulary.protected, 0.0, p_g)
    upto = np.cumsum(open_words / open_words.sum(axis=1, keepdims=True), axis=1)
    corrupt = x.copy()
    corrupt[places] = (upto <= prepared.uniforms.double().numpy()[:, None]).sum(axis=1)
    same = corrupt == x
    assert 0 < same[places].sum() < len(places)  # some samples are the original: not replaced
    # D says that a word is replaced; the paper's D says that it is real.
    hidden = alone(wrapped.base, corrupt, batch.boundaries)
    weight, bias = (t.detach().double().numpy() for t in task.model.head.parameters())
    real = 1 / (1 + np.exp(hidden @ weight[0] + bias))
    disc = -np.where(same, np.log(real), np.log(1 - real))
    expected = mlm.mean() + 50 * disc.mean()
    assert prepared.counts == {"generator": len(places), "detection": len(x)}
    found = sum(task.loss_weights[n] * sums[n].item() / prepared.counts[n] for n in sums)
    assert found == pytest.approx(expected, rel=1e-4)

    # The generator learns from its own loss alone, and shares its embeddings with the model.
    generator = task.model.generator.hf
    sums["detection"].backward(retain_graph=True)
    assert all(p.grad is None for n, p in generator.named_parameters() if "word_emb" not in n)
    sums["generator"].backward()
    assert generator.electra.encoder.layer[0].attention.self.query.weight.grad.abs().max() > 0
    table = wrapped.hf.get_input_embeddings().weight
    assert generator.get_output_embeddings().weight is table
    assert generator.get_input_embeddings().weight is table


def test_samples_do_not_depend_on_the_batch(model: Path) -> None:
    loaded = load_masked_lm(str(model))
    wrapped = MaskedLanguageModel(loaded.model, packed=True, pad_token_id=0)
    parts = TextParts(
        model=wrapped, tokenizer=loaded.tokenizer, masker=Masker.of(loaded.tokenizer, seed=5)
    )
    task, found = objective()(parts), []
    rows = tokenise_rows(lines(20), loaded.tokenizer, max_length=32)
    for size in (40, 400):
        named: dict[tuple[int, int], float] = {}
        source = RowSource(rows, batch_tokens=size)
        for step in range(source.num_steps(0)):
            for batch in source.micro_batches(0, step):
                prepared = task.prepare(batch, epoch=0, progress=0.0)
                rows_at = prepared.inputs.rows.numpy()
                sentence = batch.sequences_of(rows_at)
                keys = zip(
                    batch.example_ids[sentence].tolist(),
                    (rows_at - batch.boundaries[sentence]).tolist(),
                    strict=True,
                )
                named |= dict(zip(keys, prepared.uniforms.tolist(), strict=True))
        found.append(named)
    assert found[0] == found[1]
    assert len(set(found[0].values())) == len(found[0])


def test_a_run_resumes_to_the_bit_and_keeps_its_generator(
    corpus: Path, model: Path, tmp_path: Path
) -> None:
    def run(folder: str, *more: str) -> int:
        command = ["train", "text", str(corpus), "--model", str(model), "--objective", PLUGIN]
        settings = ["--batch-tokens", "256", "--log-every", "1", "--max-steps", "6"]
        settings += ["--learning-rate", "1e-3", "--checkpoint-every", "3"]
        return main([*command, *settings, "--output", str(tmp_path / folder), *more])

    def steps(folder: str) -> list[dict[str, Any]]:
        rows = read_metrics(tmp_path / folder / "metrics.jsonl")
        return [row for row in rows if row["kind"] == "train"]

    assert run("cut") == 0
    whole = steps("cut")
    for row in whole:
        assert row["loss"] == pytest.approx(row["generator"] + 50 * row["detection"], rel=1e-5)
    last = tmp_path / "cut" / "checkpoints" / "step-00000006"
    weights, extra = load_file(last / "model.safetensors"), "model/extra_state.safetensors"
    beside = load_file(tmp_path / "cut" / extra)
    shutil.rmtree(last)
    assert run("cut", "--resume", "auto") == 0
    assert [row["loss"] for row in steps("cut")] == [row["loss"] for row in whole]
    again = load_file(last / "model.safetensors")
    assert any(name.startswith("generator.") for name in again)
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    moments = load_file(last / "optimiser.safetensors")
    assert any(name.startswith("exp_avg.generator.") for name in moments)
    # Beside the saved model, whose own folder is a plain one.
    assert all(torch.equal(tensor, again[name]) for name, tensor in beside.items())
    assert "head.weight" in beside
    assert not any("generator" in n for n in load_file(tmp_path / "cut/model/model.safetensors"))


def test_from_python_both_losses_fall(corpus: Path, model: Path, tmp_path: Path) -> None:
    training = TrainingConfig(
        batch_tokens=512, epochs=15, log_every=1, learning_rate=3e-3, checkpoint_every=100
    )
    config = TextRunConfig(
        corpus=(str(corpus),), model=str(model), output=tmp_path / "run", training=training
    )
    train_text(config, progress=False, objective=objective())
    rows = [r for r in read_metrics(tmp_path / "run/metrics.jsonl") if r["kind"] == "train"]
    for name in ("generator", "detection"):
        assert np.mean([r[name] for r in rows[-5:]]) < 0.9 * np.mean([r[name] for r in rows[:5]])


def test_compiled_steps_are_refused_in_one_line(model: Path) -> None:
    loaded = load_masked_lm(str(model))
    wrapped = MaskedLanguageModel(loaded.model, packed=True, pad_token_id=0)
    masker = Masker.of(loaded.tokenizer)
    parts = TextParts(
        model=wrapped, tokenizer=loaded.tokenizer, masker=masker, compile_backend="eager"
    )
    with pytest.raises(ConfigError, match=r"^--compile and ELECTRA do not go together"):
        objective()(parts)
