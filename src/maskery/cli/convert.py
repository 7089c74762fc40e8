"""`maskery convert`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from maskery.cli.command import Command
from maskery.core.errors import ConfigError, ModelError
from maskery.core.ranges import Count, check_ranges
from maskery.core.system import quick_imports


@dataclass(frozen=True, kw_only=True)
class Convert(Command):
    """Turn an ALBEF, RaSa, BERT or timm ViT checkpoint into a model folder.

    Every key of the file is reported as used, missing or left over. Nothing in the file is run.

    Examples:
      maskery convert ALBEF.pth models/albef --tokenizer bert-base-uncased
      maskery convert rasa_cuhk_checkpoint.pth models/rasa --image-size 384 384
    """

    checkpoint: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
    """A .pth or .safetensors file."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """The folder to write; must be empty or not exist."""
    image_size: tuple[int, int] | None = None
    """Height and width to resize image positions to. Default: those of the checkpoint."""
    text_heads: Count | None = None
    """Attention heads of the text encoder, which no tensor tells. Default: width / 64."""
    vision_heads: Count | None = None
    """Attention heads of the vision encoder. Default: width / 64."""
    tokenizer: str | None = None
    """A tokenizer to put into the folder: its folder or hub name. ALBEF's: bert-base-uncased."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.image_size is not None and min(self.image_size) < 1:
            height, width = self.image_size
            raise ConfigError(f"image_size is {height} x {width}: both must be at least 1")

    def execute(self) -> None:
        """Write the model folder."""
        with quick_imports():
            from maskery.evaluation.retrieval.config import save_model_retrieval
            from maskery.models.checkpoint_import.convert import import_checkpoint
            from maskery.runs.person_search.settings import released_retrieval

        report = import_checkpoint(
            self.checkpoint,
            self.out,
            image_size=self.image_size,
            num_text_heads=self.text_heads,
            num_vision_heads=self.vision_heads,
        )
        if report.kind == "albef":
            save_model_retrieval(self.out, released_retrieval(report.missing))
        if self.tokenizer is not None:
            save_tokenizer(self.tokenizer, self.out)
        self.answer(report, "\n".join([*report.lines(), f"written to {self.out}"]))


def save_tokenizer(name: str, out: Path) -> None:
    """Put a tokenizer beside the model."""
    from transformers import AutoTokenizer

    try:
        AutoTokenizer.from_pretrained(name, trust_remote_code=False).save_pretrained(out)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"'{name}' is not a tokenizer that can be read "
            f"({str(error).strip().splitlines()[0]:.140}); the model is written to '{out}' without"
        ) from error
