"""Datasets as corpora: of the Hugging Face hub, or the user's own, and iterables of strings.

Code that a dataset of the hub carries is never run.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from maskery.core.errors import DataError, MaskeryError, reason_of
from maskery.data.corpus.config import CorpusConfig
from maskery.data.corpus.examples import Reading
from maskery.data.corpus.files import HubName, near_names

BATCH_ROWS = 1000


class GivenTexts:
    """Texts that are passed in Python: strings, records, or a dataset of the `datasets` library."""

    def __init__(self, data: Any, label: str, name: str | None = None) -> None:
        # Those of a mapping and of a data frame are the names of columns.
        named = isinstance(data, str | bytes | Mapping) or hasattr(data, "columns")
        if named or not isinstance(data, Iterable):
            problem = f"{label} cannot be a {type(data).__name__}"
            strings = "an iterable of strings (one column or split)"
            raise DataError(f"{problem}; pass {strings}, or a dataset of the datasets library")
        # The source of its examples, and what messages call all of it.
        self.label, self.name = label, name or label
        # An iterator, which can be read once only, is read now.
        self.data: Any = list(data) if iter(data) is data else data

    def texts(self, reading: Reading) -> Iterator[str]:
        """Yield the texts, always the same ones."""
        is_table = hasattr(self.data, "column_names")
        reading.unit = "row" if is_table else "text"
        try:
            for text in reading.texts(_rows(self.data, reading) if is_table else self.data):
                reading.on_read(len(text))
                yield text
        except MaskeryError:
            raise
        except Exception as error:  # the library, the network and a user's iterable raise anything
            raise self.failure(error, reading) from error

    def failure(self, error: Exception, reading: Reading) -> DataError:
        """Return one line for an error while reading."""
        why = f"{type(error).__name__}: {reason_of(error)}"
        return DataError(f"{reading.place} cannot be read ({why}); mend what you pass")

    def fingerprint(self) -> str | None:
        """Return what the content is known by, or None if it must be read to know it."""
        return None  # what is in memory may have been changed since it was named


class HubDataset(GivenTexts):
    """A split of a dataset of the hub, loaded or opened for streaming."""

    def __init__(self, name: HubName, config: CorpusConfig) -> None:
        import datasets

        self.hub_name, self.config = name, config
        try:
            dataset = datasets.load_dataset(*name, split=config.split, streaming=config.stream)
        # The library, its filesystems and its HTTP client share no base class.
        except Exception as error:
            raise self.failure(error) from error
        super().__init__(dataset, str(name), f"the hub dataset {name}")

    def failure(self, error: Exception, reading: Reading | None = None) -> DataError:
        """Return one line for whatever went wrong between here and the hub."""
        del reading  # the network fails, not a row
        name = self.hub_name
        near = near_names(Path(name.name))
        local = f"no file or folder is called {name.name!r}" + (f" (near: {near})" if near else "")
        if type(error).__name__ == "DatasetNotFoundError":
            return DataError(f"{local}, and the hub has no such dataset or keeps it private")
        if _is_connection(error):
            why = "the dataset hub could not be reached to look for a dataset of that name"
            fix = "pass a local file, or try again with a network"
            return DataError(f"{local}, and {why}; {fix}")
        why = f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"
        return DataError(f"the hub dataset {name} cannot be read: {why}")

    def fingerprint(self) -> str:
        """Return the library's hash of the content, or the hub's revision."""
        if self.config.stream:
            import huggingface_hub

            try:
                content = str(huggingface_hub.HfApi().dataset_info(self.hub_name.name).sha)
            except Exception as error:
                raise self.failure(error) from error
        else:
            content = str(self.data._fingerprint)
        return repr((self.label, self.config.split, self.config.text_column, content))


def _rows(dataset: Any, reading: Reading) -> Iterator[dict[str, Any]]:
    # By batches, which the library gives out faster than single rows.
    if dataset.column_names is not None:  # the library knows them without reading
        dataset = dataset.select_columns(reading.roots_of(dataset.column_names))
    for batch in dataset.iter(batch_size=BATCH_ROWS):
        columns = reading.roots_of(list(batch))
        for values in zip(*(batch[column] for column in columns), strict=True):
            yield dict(zip(columns, values, strict=True))


def _is_connection(error: BaseException | None) -> bool:
    """Return True if an error, or one that caused it, is the network's."""
    names = {"OfflineModeIsEnabled", "LocalEntryNotFoundError", "ConnectError", "ConnectTimeout"}
    if error is None:
        return False
    known = isinstance(error, (ConnectionError, TimeoutError)) or type(error).__name__ in names
    return known or _is_connection(error.__cause__ or error.__context__)
