"""The quickstart: adapt a packaged encoder to a text that every Python carries."""

import json
from collections import Counter
from pathlib import Path

from maskery.data.corpus.config import CorpusConfig
from maskery.evaluation.text.fill import Filler, Filling
from maskery.masking.config import MaskingConfig
from maskery.runs.frame.run_folder import write_text
from maskery.runs.text.config import TextRunConfig
from maskery.runs.text.prepare import TextRun
from maskery.runs.text.run import TextResult, train_text
from maskery.training.config import TrainingConfig

SENTENCES = (
    "The [MASK] statement raises an exception.",
    "A class definition defines a class [MASK].",
    "If the object is a list, the subscript must be an [MASK].",
)


def quickstart_config(corpus: Path, output: Path) -> TextRunConfig:
    """Return settings for MiniLM on paragraphs of reference text: two minutes on two cores."""
    return TextRunConfig(
        corpus=(str(corpus),),
        model="minilm",
        output=output,
        hidden_dropout=0.0,  # a small model does not overfit in two epochs
        probe=str(write_topics(output.parent)),
        reading=CorpusConfig(unit="paragraph"),
        masking=MaskingConfig(mask_rate=0.3),  # learns more from each token read
        training=TrainingConfig(
            epochs=2,
            max_steps=100,
            batch_tokens=2048,
            learning_rate=3e-4,
            head_learning_rate=1e-3,
            warmup_share=0.1,
            checkpoint_every=10_000,
        ),
    )


def write_corpus(folder: Path) -> Path:
    """Write the text of the Python language reference, from the standard library."""
    from pydoc_data.topics import topics

    path = folder / "python_reference.txt"
    write_text(path, "\n\n".join(topics[name].strip() for name in sorted(topics)) + "\n")
    return path


def write_topics(folder: Path) -> Path:
    """Write paragraphs of the same text, each with its topic as label; returns the file."""
    # The run is asked whether its vectors still tell the topics apart. Of shorter paragraphs and of
    # topics with fewer that says little: 1,155 of 33 topics are left in Python 3.11.
    from pydoc_data.topics import topics

    first: dict[str, str] = {}
    for name in sorted(topics):
        for paragraph in topics[name].strip().split("\n\n"):
            text = " ".join(paragraph.split())
            if len(text.split()) >= 12:
                first.setdefault(text, name)
    counts = Counter(first.values())
    path = folder / "topics.jsonl"
    rows = ({"text": text, "label": name} for text, name in first.items() if counts[name] >= 6)
    write_text(path, "".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def run_quickstart(
    folder: Path, *, progress: bool = True
) -> tuple[TextResult, list[tuple[Filling, Filling]]]:
    """Write the corpus, train, and fill each sample sentence before and after."""
    folder.mkdir(parents=True, exist_ok=True)
    config = quickstart_config(write_corpus(folder), folder / "run")
    result = train_text(config, progress=progress)
    initial = TextRun(config, progress=False)
    start = Filler(initial.model, initial.loaded.tokenizer)
    trained = Filler.of(result.folder)
    return result, [(start.fill(text), trained.fill(text)) for text in SENTENCES]
