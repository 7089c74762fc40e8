"""`maskery convert`, `export` and `push`: models from elsewhere, and for elsewhere."""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import tyro

from maskery.cli.main import Command
from maskery.cli.output import prepare_outputs
from maskery.core.errors import ConfigError
from maskery.core.ranges import Count
from maskery.core.system import quick_imports
from maskery.runs.frame.run_folder import write_bytes


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


@dataclass(frozen=True, kw_only=True)
class Export(Command):
    """Write a text model for programs without PyTorch.

    ONNX takes input_ids and attention_mask of any number and length, and is kept if onnxruntime
    computes the model's logits to 1e-4 at three lengths.

    Examples:
      maskery export runs/meditations-minilm --onnx meditations-onnx
      maskery export bert-base-uncased --onnx bert.onnx
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """A run folder, a model folder, a hub name or minilm."""
    onnx: Path
    """A file ending in .onnx; or an empty or new folder, for model.onnx and the tokenizer."""

    def execute(self) -> None:
        """Write into a folder aside, and move what is sound."""
        with quick_imports():
            from maskery.evaluation.text.opening import open_model
            from maskery.models.onnx_export import export_onnx

        alone = self.onnx.suffix == ".onnx"
        path = self.onnx if alone else self.onnx / "model.onnx"
        if not alone and self.onnx.exists() and (self.onnx.is_file() or any(self.onnx.iterdir())):
            raise ConfigError(f"--onnx is '{self.onnx}', which is not empty; name another folder")
        opened = open_model(self.model)
        with TemporaryDirectory() as place:
            apart = export_onnx(opened.model.hf, Path(place) / path.name)
            if not alone:
                opened.model.hf.config.save_pretrained(place)
                opened.tokenizer.save_pretrained(place)
            prepare_outputs(onnx=path)
            for file in Path(place).iterdir():
                write_bytes(path.parent / file.name, file.read_bytes())
        found = {"file": path, "largest_difference": apart}
        self.answer(found, f"written to {path}; logits differ by {apart:.2g} at most")


@dataclass(frozen=True, kw_only=True)
class Push(Command):
    """Upload the model of a finished run, and its card with figures, to the Hugging Face hub.

    Log in first with hf auth login, or set HF_TOKEN.

    Examples:
      maskery push runs/notes-minilm me/notes-minilm --private --license apache-2.0 --language en
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """A finished run of any kind."""
    repo: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="REPO")]
    """The model's name on the hub, OWNER/NAME; it is made if it is not there."""
    private: bool = False
    """Make it private, if it is not there yet."""
    revision: str | None = None
    """The branch to upload to, which is made if it is not there. Default: main."""
    license: str | None = None
    """Its licence for the card, such as apache-2.0."""
    language: tuple[str, ...] = ()
    """Languages for the card, such as en de."""
    datasets: tuple[str, ...] = ()
    """Datasets for the card, by their names on the hub. Default: the run's corpus, if it is one."""
    base_model: str | None = None
    """The model it began with, for the card. Default: the run's, if the hub has it."""

    def execute(self) -> None:
        """Upload, and say where it is."""
        with quick_imports():
            from maskery.runs.frame.push import push

        fields = ("license", "language", "datasets", "base_model")
        named = {name: value for name in fields if (value := getattr(self, name))}
        place = push(self.run, self.repo, named, private=self.private, revision=self.revision)
        self.answer({"repo": self.repo, "commit": place}, f"pushed: {place}")
