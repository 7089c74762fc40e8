"""Under the Hugging Face Trainer, a task takes the very steps that Maskery's loop takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import PAD, VOCAB, tiny
from transformers import BertForMaskedLM, TrainerCallback, TrainingArguments

from maskery.core.batch import TokenBatch
from maskery.core.errors import CheckpointError, ConfigError
from maskery.core.vocabulary import Vocabulary
from maskery.data.plan import Layout, plan_epoch, split_step
from maskery.hf.arguments import first_steps, training_arguments
from maskery.hf.trainer import MaskedLMTrainer
from maskery.masking.config import MaskingConfig
from maskery.masking.masker import Masker
from maskery.models.masked_lm import MaskedLanguageModel
from maskery.tasks.text_mlm import TextMLM
from maskery.training.config import TrainingConfig
from maskery.training.loop import TrainingLoop
from maskery.training.optimiser import build_optimiser
from maskery.training.snapshot import Position

STEPS = 10
BUDGET = 96
HEAD = {"hf.cls.predictions.bias", "hf.cls.predictions.transform.dense.weight"}


class Sentences:
    """A source over random sentences; its epochs differ in length."""

    def __init__(self, layout: Layout = "packed", micro_tokens: int = BUDGET) -> None:
        generator = np.random.default_rng(1)
        self.lengths = generator.integers(3, 30, 40)
        self.rows = [generator.integers(5, VOCAB, n) for n in self.lengths]
        self.layout, self.micro_tokens = layout, micro_tokens

    def plan(self, epoch: int) -> Any:
        return plan_epoch(
            self.lengths, seed=0, epoch=epoch, batch_tokens=BUDGET, layout=self.layout
        )

    def num_steps(self, epoch: int) -> int:
        return min(self.plan(epoch).num_steps, 4 + epoch)

    def micro_batches(
        self, epoch: int, step: int, *, rank: int = 0, world_size: int = 1
    ) -> Sequence[TokenBatch]:
        chosen = self.plan(epoch).step(step)
        parts = split_step(self.lengths[chosen], micro_tokens=self.micro_tokens, parts=world_size)
        return [self.batch(chosen[part]) for part in parts[rank::world_size]]

    def batch(self, chosen: Any) -> TokenBatch:
        rows = [self.rows[i] for i in chosen]
        ids = np.concatenate(rows)
        return TokenBatch(
            input_ids=ids,
            boundaries=np.concatenate(([0], np.cumsum(self.lengths[chosen]))),
            example_ids=chosen.astype(np.uint64),
            starts=np.zeros(len(rows), np.int64),
            word_starts=np.ones(len(ids), np.bool_),
        )


def make_task(layout: Layout = "packed", dropout: float = 0.1) -> TextMLM:
    hf = tiny("bert")
    for module in hf.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout
    model = MaskedLanguageModel(hf, packed=layout == "packed", pad_token_id=PAD)
    vocabulary = Vocabulary(size=VOCAB, mask_token_id=4, special_ids=(0, 1, 2, 3, 4))
    # A rate that moves shows a wrong `progress`; its seed differs from the run's on purpose.
    config = MaskingConfig(mask_rate=0.4, mask_rate_end=0.1, mask_schedule="linear")
    return TextMLM(model, Masker.of(vocabulary, config=config, seed=7))


def settings(**others: Any) -> TrainingConfig:
    defaults: dict[str, Any] = {
        "epochs": 2,
        "max_steps": 9,
        "batch_tokens": BUDGET,
        "learning_rate": 1e-2,
        "head_learning_rate": 3e-2,
        "weight_decay": 0.1,
        "warmup_share": 0.35,
        "clip_norm": 0.5,
        "log_every": 1,
        "seed": 3,
    }
    return TrainingConfig(**(defaults | others))


def loop_losses(task: TextMLM, source: Any, config: TrainingConfig, folder: Path) -> list[float]:
    loop = TrainingLoop(
        task,
        source,
        build_optimiser(task.model, config, HEAD),
        config,
        folder,
        identity="",
        progress=False,
    )
    start = Position(step=0, epoch=0, epoch_step=0, identity="")
    return [float(loop.step(step)["loss"]) for step in loop.steps(start)]


def hf_trainer(
    task: TextMLM, source: Any, config: TrainingConfig, folder: Path, **others: Any
) -> MaskedLMTrainer:
    own = {name: others.pop(name) for name in ("evaluate", "callbacks") if name in others}
    more: dict[str, Any] = {"save_strategy": "no", "disable_tqdm": True, "use_cpu": True}
    return MaskedLMTrainer(
        task,
        source,
        training_arguments(config, task.model, source, folder, **(more | others)),
        new_parameters=HEAD,
        head_learning_rate=config.head_learning_rate,
        **own,
    )


def logged(trainer: MaskedLMTrainer, name: str) -> list[float]:
    return [line[name] for line in trainer.state.log_history if name in line]


def weights(task: TextMLM) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in task.model.named_parameters()}


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("micro_tokens", [BUDGET, 40])
@pytest.mark.parametrize(
    ("lr_schedule", "lr_floor"),
    [("linear", 0.0), ("linear", 0.3), ("cosine", 0.2), ("constant", 0.0)],
)
def test_both_engines_take_the_same_steps(
    layout: Layout, micro_tokens: int, lr_schedule: Any, lr_floor: float, tmp_path: Path
) -> None:
    config = settings(epochs=3, max_steps=STEPS, lr_schedule=lr_schedule, lr_floor=lr_floor)
    source = Sentences(layout, micro_tokens)
    ours, theirs = make_task(layout), make_task(layout)
    expected = loop_losses(ours, source, config, tmp_path)
    trainer = hf_trainer(theirs, source, config, tmp_path)
    trainer.train()
    assert len(expected) == STEPS
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(logged(trainer, "loss"), expected, atol=1e-4)
    for name, value in weights(ours).items():
        torch.testing.assert_close(weights(theirs)[name], value, atol=1e-4, rtol=1e-3)
    if micro_tokens < BUDGET:
        assert any(len(source.micro_batches(0, step)) > 1 for step in range(4))


def test_micro_batches_change_nothing_without_dropout(tmp_path: Path) -> None:
    losses = []
    for micro_tokens in (BUDGET, 40):
        trainer = hf_trainer(
            make_task(dropout=0.0), Sentences(micro_tokens=micro_tokens), settings(), tmp_path
        )
        trainer.train()
        losses.append(logged(trainer, "loss"))
    np.testing.assert_allclose(losses[0], losses[1], atol=1e-4)


def test_the_trainer_knows_its_epochs(tmp_path: Path) -> None:
    class Witness(TrainerCallback):
        ends: list[int]

        def __init__(self) -> None:
            self.ends = []

        def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.ends.append(state.global_step)

    witness = Witness()
    trainer = hf_trainer(make_task(), Sentences(), settings(), tmp_path, callbacks=[witness])
    trainer.train()
    assert witness.ends == [4, 9]
    np.testing.assert_allclose(
        logged(trainer, "epoch")[:9], [0.25, 0.5, 0.75, 1.0, 1.2, 1.4, 1.6, 1.8, 2.0]
    )
    assert len(logged(trainer, "mlm")) == 9
    assert min(logged(trainer, "tokens_per_second")) > 0
    assert trainer.num_tokens == sum(
        batch.num_tokens
        for epoch in (0, 1)
        for step in range(4 + epoch)
        for batch in Sentences().micro_batches(epoch, step)
    )


def test_a_resumed_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole, first, second = (make_task() for _ in range(3))
    hf_trainer(whole, Sentences(), settings(), tmp_path / "whole").train()

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            control.should_training_stop = state.global_step == 6
            return control

    saving = {"save_strategy": "steps", "save_steps": 6}
    folder = tmp_path / "cut"
    hf_trainer(first, Sentences(), settings(), folder, callbacks=[Stop()], **saving).train()
    trainer = hf_trainer(second, Sentences(), settings(), folder, **saving)
    trainer.train(resume_from_checkpoint=True)
    assert len(logged(trainer, "loss")) == 9
    for name, value in weights(whole).items():
        assert torch.equal(weights(second)[name], value), name


class WithState(TextMLM):
    """Counts its steps in a tensor that is not the model's."""

    steps = torch.zeros(())

    def before_step(self) -> None:
        self.steps = self.steps + 1

    def extra_state(self) -> Mapping[str, torch.Tensor]:
        return {"steps": self.steps}

    def load_extra_state(self, state: Mapping[str, torch.Tensor]) -> None:
        self.steps = state["steps"]


def test_what_the_task_keeps_beside_the_model_is_saved_and_restored(tmp_path: Path) -> None:
    def task() -> WithState:
        plain = make_task()
        assert isinstance(plain.model, MaskedLanguageModel)
        return WithState(plain.model, plain.masker)

    saving = {"save_strategy": "steps", "save_steps": 5}
    source = Sentences(micro_tokens=40)
    hf_trainer(task(), source, settings(max_steps=5), tmp_path, **saving).train()
    again = task()
    trainer = hf_trainer(again, source, settings(), tmp_path, **saving)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert again.steps == 9  # once per optimiser step, whatever the micro-batches


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 1}
    hf_trainer(make_task(), Sentences(), settings(max_steps=1), tmp_path, **saving).train()
    other = make_task()
    other.model.hf.cls.predictions.extra = torch.nn.Linear(2, 2)  # type: ignore[union-attr]
    trainer = hf_trainer(other, Sentences(), settings(), tmp_path, **saving)
    with pytest.raises(CheckpointError, match="of another model"):
        trainer.train(resume_from_checkpoint=True)


def test_a_saved_model_is_a_hugging_face_folder(tmp_path: Path) -> None:
    task = make_task()
    trainer = hf_trainer(task, Sentences(), settings(max_steps=1), tmp_path / "run")
    trainer.train()
    trainer.save_model(str(tmp_path / "model"))
    loaded = BertForMaskedLM.from_pretrained(tmp_path / "model").eval()
    ids = torch.arange(5, 25)[None]
    hf: Any = task.model.hf
    mask = torch.ones_like(ids)
    expected = hf.eval()(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(loaded(ids, attention_mask=mask).logits, expected)
    assert not list((tmp_path / "model").glob("*.bin"))  # nothing pickled


def test_held_out_figures_are_logged_when_asked_for(tmp_path: Path) -> None:
    seen = []

    def evaluate(step: int) -> Mapping[str, float]:
        seen.append(step)
        return {"top1": step / 100}

    trainer = hf_trainer(
        make_task(), Sentences(), settings(eval_every=4), tmp_path, evaluate=evaluate
    )
    trainer.train()
    assert seen == [4, 8, 9]
    assert logged(trainer, "eval_top1") == [0.04, 0.08, 0.09]


def test_epochs_count_where_no_steps_are_given(tmp_path: Path) -> None:
    def count(**arguments: Any) -> list[int]:
        return first_steps(Sentences(), TrainingArguments(str(tmp_path), **arguments))

    assert count(num_train_epochs=2) == [0, 4, 9]
    assert count(num_train_epochs=1.5) == [0, 4, 7]
    assert count(max_steps=11) == [0, 4, 9, 11]


@pytest.mark.parametrize(
    ("argument", "value", "says"),
    [
        ("gradient_accumulation_steps", 2, "micro_tokens"),
        ("per_device_train_batch_size", 4, "batch_tokens"),
        ("label_smoothing_factor", 0.1, "the task owns the loss"),
        ("eval_strategy", "epoch", "pass evaluate="),
        ("lr_scheduler_kwargs", {"num_cycles": 2}, "num_cycles.*linear.*min_lr_rate alone"),
    ],
)
def test_an_argument_without_effect_is_refused(
    argument: str, value: Any, says: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=says):
        hf_trainer(make_task(), Sentences(), settings(), tmp_path, **{argument: value})


def test_a_seed_beyond_the_trainers_range_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"below 2\*\*32"):
        training_arguments(settings(seed=1 << 40), make_task().model, Sentences(), tmp_path)
