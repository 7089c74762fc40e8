"""`maskery convert`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from maskery.cli.main import Command
from maskery.core.errors import ConfigError
from maskery.core.ranges import Count
from maskery.core.system import quick_imports


@dataclass(frozen=True, kw_only=True)
class Convert(Command):
    """Turn a checkpoint or a Hugging Face folder into a model folder.

    ALBEF, RaSa, BERT and timm ViT state dicts are known by their names, other encoders of Hugging
    Face by the config.json beside them. Every key of the file is reported as used, missing or left
    over. Nothing in the file is run.

    Examples:
      maskery convert ALBEF.pth models/albef --tokenizer bert-base-uncased
      maskery convert rasa_cuhk.pth models/rasa --tokenizer models/albef --image-size 384 384
      maskery convert AntiBERTy_md_smooth models/antiberty --tokenizer vocab.txt
    """

    checkpoint: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
    """A .pth or .safetensors file, or a Hugging Face folder."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """The folder to write; must be empty or not exist."""
    image_size: tuple[int, int] | None = None
    """Height and width to resize image positions to. Default: those of the checkpoint."""
    text_heads: Count | None = None
    """Attention heads of the text encoder, which no tensor tells. Default: those of the config.json
    beside the file, or of all published models of that width."""
    vision_heads: Count | None = None
    """Attention heads of the vision encoder. Default: likewise."""
    tokenizer: str | None = None
    """The tokenizer: its folder, vocab.txt or hub name. Default: the one beside the file."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size is not None and min(self.image_size) < 1:
            height, width = self.image_size
            raise ConfigError(f"image_size is {height} x {width}: both must be at least 1")

    def execute(self) -> None:
        """Write the model folder."""
        with quick_imports():
            from maskery.evaluation.retrieval.config import save_model_retrieval
            from maskery.models.checkpoint_import.convert import import_checkpoint
            from maskery.runs.person_search.evaluate import released_retrieval

        report = import_checkpoint(
            self.checkpoint,
            self.out,
            image_size=self.image_size,
            num_text_heads=self.text_heads,
            num_vision_heads=self.vision_heads,
            tokenizer=self.tokenizer,
        )
        if report.kind == "albef":
            save_model_retrieval(self.out, released_retrieval(report.missing))
        self.answer(report, "\n".join([*report.lines(), f"written to {self.out}"]))
