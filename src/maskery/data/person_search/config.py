"""Settings of person-search datasets, and how their captions are cleaned; light to import."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from maskery.core.flags import conf
from maskery.core.ranges import Range, Settings

Measured = Literal["cuhk-pedes", "icfg-pedes", "rstpreid", "rasa", "drawn-people", "jsonl"]
DatasetName = Literal[Measured, "synth-pedes", "mals", "luperson-mllm", "webperson"]
SPLITS = ("train", "val", "test")
DROPPED = str.maketrans("", "", ",.'!?\"()*#:;~")
SPLITTING = str.maketrans("-/", "  ")


@dataclass(frozen=True, kw_only=True)
class PersonSearchDataConfig(Settings):
    """A dataset of persons, in the layout in which it is published."""

    dataset: DatasetName
    """The layout of the annotations: of the dataset itself, of RaSa's data_process.py (rasa), of
    maskery data draw-people, or lines with image, caption and person (jsonl). The last four are to
    start from: they have no splits, and but for synth-pedes every picture is a person."""
    root: Annotated[Path, conf.arg(metavar="DIR")]
    """Folder of the annotations and of imgs/; for jsonl, a file or a folder of train.jsonl (and
    val.jsonl, test.jsonl, or pairs_*.jsonl), whose image paths are relative to --images."""
    images: Path | None = None
    """Folder that image paths are relative to. Default: imgs/ below the root; for jsonl, mals and
    synth-pedes the root itself, for webperson images/, for luperson-mllm LUPerson-MLLM/."""
    val_share: Annotated[float, Range(0, 1, above=True, below=True, hint="try 0.05")] = 0.05
    """Share of the training identities held out to choose the best epoch, where the dataset has no
    validation split (ICFG-PEDES); chosen by a hash."""
    noise_file: Annotated[Path | None, conf.arg(metavar="FILE")] = None
    """A noise file of RDE (.npy): each training caption is exchanged for the one whose number, in
    the order of the annotations, stands in its place."""
    max_words: Annotated[int, Range(1, hint="try 50")] = 50
    """Most words of a caption; more are cut, as RaSa does."""
    clean_captions: bool = True
    """Lower-case and strip captions of punctuation, as RaSa does."""
    missing_images: Literal["fail", "skip"] = "fail"
    """Annotated images that are not on disk end the run, or are left out and counted."""
    on_bad_image: Literal["skip", "fail"] = "skip"
    """An image that cannot be read is skipped and counted, or ends the run."""
    on_bad_caption: Literal["skip", "fail"] = "fail"
    """A caption that cannot be used is left out and counted (its picture too, where it is the only
    one), or ends the run."""


def clean_caption(caption: str, max_words: int = 50) -> str:
    """Lower-case a caption, drop its punctuation and cut it, as RaSa's released code does."""
    text = caption.lower().translate(DROPPED).translate(SPLITTING)
    return " ".join(text.replace("<person>", "person").split()[:max_words])
