"""The seed document's "fast implementation": the Hugging Face `Trainer`, in two ways.

    python examples/seed_text/trainer.py
    python examples/seed_text/trainer.py --with collator --corpus clean.txt --steps 1000

`maskery` (the default) makes a Trainer whose batches are packed: no padding is computed.
`collator` is the plain Trainer with one line changed: its data collator. Both mask afresh in each
epoch; the document masked once, before training.
"""

import argparse
from pathlib import Path

from transformers import Trainer, TrainingArguments

from maskery.data.rows import tokenise_rows
from maskery.hf.collator import MaskCollator
from maskery.hf.trainer import masked_lm_trainer
from maskery.models.loading import load_masked_lm


def read_lines(corpus: Path | None) -> list[str]:
    """The lines of a file, or of the language reference that every Python carries."""
    if corpus is not None:
        return corpus.read_text("utf-8").split("\n")
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics)).split("\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--with", dest="way", choices=("maskery", "collator"), default="maskery")
    parser.add_argument("--corpus", type=Path, help="a text file, a line an example")
    parser.add_argument("--model", default="minilm", help="minilm, a folder or a hub name")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--output", type=Path, default=Path("out"), help="as in the document")
    wanted = parser.parse_args()

    loaded = load_masked_lm(wanted.model)
    rows = tokenise_rows(read_lines(wanted.corpus), loaded.tokenizer, max_length=128)
    args = TrainingArguments(
        output_dir=str(wanted.output),
        max_steps=wanted.steps,
        logging_steps=max(1, wanted.steps // 5),
        save_strategy="no",
        per_device_train_batch_size=16,
        report_to="none",
    )
    if wanted.way == "maskery":
        trainer = masked_lm_trainer(loaded.model, loaded.tokenizer, rows, args)
    else:
        trainer = Trainer(
            model=loaded.model,
            args=args,
            train_dataset=[{"input_ids": row["input_ids"]} for row in rows],
            data_collator=MaskCollator(loaded.tokenizer),
        )
    result = trainer.train()
    trainer.save_model(str(wanted.output / "model"))
    print(f"mean loss {result.training_loss:.3f}; the model is in {wanted.output / 'model'}")


if __name__ == "__main__":
    main()
