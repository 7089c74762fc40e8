"""Settings of reading image-caption pairs, and the table of their formats; light to import."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from maskery.core.flags import conf
from maskery.core.ranges import Count, Range, Settings
from maskery.core.registry import Registry
from maskery.data.images.config import DEFAULT_MAX_PIXELS, LARGEST_MAX_PIXELS

CONTRACT = (
    "a callable that takes a path and yields records: mappings with image (a path or bytes) and "
    "caption (a text or a list of texts), and where known person, group and split"
)
OURS = {
    "json": "maskery.data.pairs.tables:open_json",
    "csv": "maskery.data.pairs.tables:open_csv",
    "parquet": "maskery.data.pairs.tables:open_parquet",
    "webdataset": "maskery.data.pairs.webdataset:open_webdataset",
}
FORMATS: Registry[Callable[..., Any]] = Registry("--reader", CONTRACT, OURS)
# The format of a file by its ending; files of other endings need a reader.
ENDINGS = {
    **dict.fromkeys((".json", ".jsonl", ".ndjson"), "json"),
    **dict.fromkeys((".csv", ".tsv"), "csv"),
    ".parquet": "parquet",
    ".tar": "webdataset",
}


def register_format(name: str, reader: Callable[[Path], Any], endings: Sequence[str] = ()) -> None:
    """Add a format of pairs (see `CONTRACT`), for `--reader NAME` and for endings such as `.xml`.

    Raises:
        PluginError: The name is taken.
    """
    FORMATS.register(name, reader)
    endings = (endings,) if isinstance(endings, str) else endings
    ENDINGS.update((ending.lower(), name) for ending in endings)


@dataclass(frozen=True, kw_only=True)
class PairsConfig(Settings):
    """Settings of reading pairs: columns, splits, and the handling of bad records."""

    reader: Annotated[str | None, conf.arg(metavar="FORMAT")] = None
    """json, csv, parquet, webdataset, or FILE.py:NAME: a callable that takes the path of the pairs
    and yields records. Default: by the ending of the file."""
    images: Path | None = None
    """Folder that image paths are relative to; by default that of the file which names them."""
    image_column: str | None = None
    """Column or key of the image; by default found among the usual names."""
    caption_column: str | None = None
    """Column or key of the caption; by default found among the usual names."""
    person_column: str | None = None
    """Column or key of the person shown. Default: person, and id in the records of a published
    person-search dataset; elsewhere an id numbers captions or pictures."""
    group_column: str | None = None
    """Column or key of which pairs of one value stand on one side of the split, such as patient_id.
    Default: group, where there is one; pairs that name a person go by that."""
    split: str | None = None
    """Read only records of this split. Default: train pairs keeps train and test apart."""
    on_bad_image: Literal["skip", "fail"] = "skip"
    """An image that cannot be read is skipped and counted, or ends the run."""
    on_bad_caption: Literal["skip", "fail"] = "fail"
    """A caption that cannot be used is left out and counted (its pair too, where it is the only
    one), or ends the run."""
    max_pixels: Annotated[int, Range(1, LARGEST_MAX_PIXELS)] = DEFAULT_MAX_PIXELS
    """Images with more pixels than this are bad: they may be decompression bombs."""
    max_caption_chars: Count = 10_000
    """Captions with more characters than this are bad."""
    id_is_person: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.reader is not None:
            FORMATS.check(self.reader)
        super().__post_init__()
