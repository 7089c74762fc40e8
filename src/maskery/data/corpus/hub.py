"""Datasets of the Hugging Face hub. Code that a dataset carries is never run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from maskery.core.errors import DataError, MaskeryError
from maskery.data.corpus.config import CorpusConfig
from maskery.data.corpus.reading import Reading
from maskery.data.corpus.sources import HubName, near_names

BATCH_ROWS = 1000


def load(name: HubName, config: CorpusConfig) -> Any:
    """Load a split, or open it for streaming.

    Returns:
        A `datasets.Dataset` or `datasets.IterableDataset`.

    Raises:
        DataError: The hub cannot be reached, or it has no such dataset, configuration or split.
    """
    import datasets

    try:
        return datasets.load_dataset(
            name.name, name.configuration, split=config.split, streaming=config.stream
        )
    # The library, its filesystems and its HTTP client share no base class.
    except Exception as error:
        raise explain(name, error) from error


def explain(name: HubName, error: Exception) -> DataError:
    """One line for whatever went wrong between here and the hub."""
    near = near_names(Path(name.name))
    local = f"no file or folder is called {name.name!r}" + (f" (near: {near})" if near else "")
    if type(error).__name__ == "DatasetNotFoundError":
        return DataError(f"{local}, and the hub has no such dataset or keeps it private")
    if _is_connection(error):
        return DataError(
            f"{local}, and the dataset hub could not be reached to look for a dataset of that "
            "name; pass a local file, or try again with a network"
        )
    first_line = next(iter(str(error).strip().splitlines()), "")
    return DataError(f"the hub dataset {name} cannot be read: {type(error).__name__}: {first_line}")


def _is_connection(error: BaseException | None) -> bool:
    """Whether an error, or one that caused it, is the network's."""
    names = {"OfflineModeIsEnabled", "LocalEntryNotFoundError", "ConnectError", "ConnectTimeout"}
    while error is not None:
        if isinstance(error, (ConnectionError, TimeoutError)) or type(error).__name__ in names:
            return True
        error = error.__cause__ or error.__context__
    return False


def read_dataset(dataset: Any, name: HubName, reading: Reading) -> Iterator[str]:
    """The texts of a loaded split.

    Raises:
        DataError: The text column is missing or holds no strings, or the network fails.
    """
    column = reading.config.text_column
    if dataset.column_names is not None:
        if column not in dataset.column_names:
            raise reading.missing_column(dataset.column_names)
        dataset = dataset.select_columns([column])
    reading.place.unit = "row"
    for batch in _batches(dataset, name):
        if column not in batch:
            raise reading.missing_column(list(batch))
        for value in batch[column]:
            reading.place.number += 1
            text = reading.value(value)
            if text is not None:
                reading.on_read(len(text))
                yield text


def _batches(dataset: Any, name: HubName) -> Iterator[dict[str, list[object]]]:
    try:
        yield from dataset.iter(batch_size=BATCH_ROWS)
    except MaskeryError:
        raise
    except Exception as error:
        raise explain(name, error) from error


def fingerprint(dataset: Any, name: HubName, config: CorpusConfig) -> str:
    """What the content of the split is known by: the library's hash, or the hub's revision.

    Raises:
        DataError: The dataset is streamed and the hub cannot be asked for its revision.
    """
    if not config.stream:
        return str(dataset._fingerprint)
    import huggingface_hub

    try:
        return str(huggingface_hub.HfApi().dataset_info(name.name).sha)
    except Exception as error:
        raise explain(name, error) from error
