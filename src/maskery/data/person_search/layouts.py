"""The layouts of published person-search datasets, and of larger sets to start from.

CUHK-PEDES (Li et al., CVPR 2017), ICFG-PEDES (Ding et al., 2021), RSTPReid (Zhu et al., ACM MM
2021) and the output of RaSa's `data_process.py` are one JSON record for each image. SYNTH-PEDES
(Zuo et al., NeurIPS 2024), MALS (Yang et al., ACM MM 2023), LUPerson-MLLM (Tan et al., CVPR 2024)
and WebPerson (Zheng et al., EMNLP 2025) have a training split alone, and the last two are as
GA-DMS's released code reads them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from maskery.data.pairs.config import PairsConfig
from maskery.data.pairs.records import Record, brief
from maskery.data.pairs.tables import json_records, read_json
from maskery.data.person_search.config import SPLITS, DatasetName

TRAIN = ("train",)


def keyed_records(path: Path, _: PairsConfig, *, flat: bool) -> Iterator[Record]:
    """Read objects from a picture's name to its caption, or to `caption1`, `caption2` and so on.

    Where pictures lie `flat` in one folder, only the last part of the names counts.
    """
    found = read_json(path.read_bytes(), str(path))
    for named in found if isinstance(found, list) else [found]:
        for name, value in named.items() if isinstance(named, dict) else ():
            captions = value
            if isinstance(value, dict):
                captions = [value[key] for key in sorted(value) if key.startswith("caption")]
            image = PurePosixPath(name).name if flat else name
            where = f"{path}, {brief(name)}"  # nobody is named, so each shows somebody else
            yield Record(image=image, caption=captions, person=image, where=where)


@dataclass(frozen=True)
class Layout:
    """One published layout."""

    title: str
    # Names of its annotation file; the first that exists is read, and of a pattern all. With
    # `{split}` in them, each split has a file of its own.
    files: tuple[str, ...]
    image_key: str = "file_path"  # Key of the image in its records
    splits: tuple[str, ...] = SPLITS  # Those it has
    images: str = "imgs"  # Where its pictures are, below the root
    read: Callable[[Path, PairsConfig], Iterator[Record]] = json_records
    person_key: str | None = None  # Key of the person; by default `id`


# The releases of ICFG-PEDES differ in the name of the file; its folders `train/` and `test/` are
# not its split, which only the records tell.
ICFG = ("ICFG-PEDES.json", "ICFG_PEDES.json", "ICFG-PDES.json")
RASA = ("processed_data/{split}.json", "{split}.json")
LINES = ("{split}.jsonl", "pairs_{split}.jsonl")
SYNTH = ("synthpedes-dataset.json", "synthpedes_dataset.json")
MLLM = ("captions/*.json", "caption/*.json")
FLAT, NESTED = (partial(keyed_records, flat=flat) for flat in (True, False))
LAYOUTS: dict[DatasetName, Layout] = {
    "cuhk-pedes": Layout("CUHK-PEDES", ("reid_raw.json",)),
    "icfg-pedes": Layout("ICFG-PEDES", ICFG, splits=("train", "test")),
    "rstpreid": Layout("RSTPReid", ("data_captions.json",), "img_path"),
    "rasa": Layout("RaSa's data_process.py", RASA),
    "drawn-people": Layout("drawn people", ("reid_raw.json",)),
    "jsonl": Layout("lines with image, caption and person", LINES, "image", images=""),
    "synth-pedes": Layout("SYNTH-PEDES", SYNTH, splits=TRAIN, images=""),
    "mals": Layout("MALS", ("gene_attrs/*.json",), "image", TRAIN, "", person_key="image_id"),
    "luperson-mllm": Layout("LUPerson-MLLM", MLLM, "file_path", TRAIN, "LUPerson-MLLM", FLAT),
    "webperson": Layout("WebPerson", ("*.json",), "file_path", TRAIN, "images", NESTED),
}
