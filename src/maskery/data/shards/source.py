"""The batches of a run over shards: a few shards at a time, in memory that does not grow.

Shapes: W windows, S steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from maskery.core.batch import TokenBatch
from maskery.core.errors import ConfigError, DataError
from maskery.core.task import StandIn
from maskery.data.batching import Layout, Plan, Template, TextSource, random_order
from maskery.data.corpus.files import MANIFEST
from maskery.data.shards import epoch as epochs
from maskery.data.shards.manifest import TOKENIZER, DocumentLengths, FileEntry, Manifest, ShardEntry
from maskery.data.shards.places import Place
from maskery.data.shards.shard_file import read_shards
from maskery.data.store import Documents


class TokenShards:
    """The shards of a place: its manifest, and each shard read when it is needed.

    Attributes:
        place: A folder or an address.
        manifest: What it holds.
        document_lengths: How long the documents of each shard are.
    """

    def __init__(self, place: Place) -> None:
        """Read the manifest and the lengths; no shard.

        Raises:
            DataError: They are missing or damaged.
        """
        self.place = place
        self.manifest = Manifest.from_json(place.manifest(), f"'{place.name}/{MANIFEST}'")
        path = self.fetch(self.manifest.lengths)
        self.document_lengths = DocumentLengths.open(path, self.manifest)

    def fetch(self, entry: FileEntry, folder: str = "") -> Path:
        """Return a local copy of a file, its checksum checked."""
        return self.place.fetch(f"{folder}{entry.file}", entry.bytes, entry.sha256)

    def open(self, entries: Sequence[ShardEntry]) -> Documents:
        """Fetch, check and read some shards."""
        paths = [self.fetch(entry) for entry in entries]
        documents = read_shards(paths, vocab_size=self.manifest.vocab_size)
        if documents.num_documents != sum(entry.documents for entry in entries):
            raise DataError(
                f"the shards of '{self.place.name}' have not as many documents as {MANIFEST} says; "
                "repeat the maskery tokenize command that made them"
            )
        return documents

    def held_out(self, max_tokens: int) -> Documents:
        """Read held-out shards up to a number of tokens, chosen at random if there are more."""
        entries = self.manifest.held_out
        if not entries:
            raise DataError(
                f"nothing was held out of the {self.manifest.documents:,} examples of "
                f"'{self.place.name}'; name held-out text with --eval-data, or make the shards "
                "with a larger --held-out-share"
            )
        # The same ones in every run, whatever its seed.
        names = np.arange(len(entries), dtype=np.uint64)
        order = random_order(names, position=epochs.HELD_OUT_ORDER, seed=0, epoch=0)
        tokens = np.cumsum([entries[number].tokens for number in order])
        # One is read whole, however many tokens it has.
        count = max(1, int(np.searchsorted(tokens, max_tokens, side="right")))
        return self.open([entries[number] for number in order[:count]])

    def tokenizer_folder(self) -> Path:
        """Return a local folder with the tokenizer that the shards were made with."""
        paths = [self.fetch(e, f"{TOKENIZER}/") for e in self.manifest.tokenizer_files]
        if not paths:
            raise DataError(f"'{self.place.name}' holds no tokenizer; name a --model with its own")
        return paths[0].parent


class ShardSource:
    """The batches of a run over shards; implements `core.task.BatchSource`.

    The order is a pure function of (seed, epoch, the shards, `shuffle_shards`, lengths, budget). A
    step is made from the shards of its block alone: resuming reads nothing that went before.

    Args:
        shards: What is read.
        shuffle_shards: Shards whose examples are shuffled together.
        cache_shards: Copies kept besides those in use, for shards from an address.
        exclude: (n,) uint64: documents that are left out, wherever they stand.
        max_length, batch_tokens, micro_tokens, layout, seed: As in `TextSource`.
    """

    def __init__(
        self,
        shards: TokenShards,
        template: Template,
        *,
        max_length: int,
        batch_tokens: int,
        micro_tokens: int | None = None,
        layout: Layout = "packed",
        seed: int = 0,
        shuffle_shards: int = 4,
        cache_shards: int = 16,
        exclude: npt.NDArray[np.uint64] | None = None,
    ) -> None:
        self.shards, self.template, self.seed = shards, template, seed
        self.max_length, self.batch_tokens = max_length, batch_tokens
        self.layout: Layout = layout
        self.shuffle_shards, self.cache_shards = shuffle_shards, cache_shards
        self.exclude = exclude
        if max_length <= template.num_special:
            raise ConfigError(
                f"a window would hold {max_length - template.num_special} tokens besides the "
                f"special ones; raise --max-length"
            )
        self._settings: dict[str, Any] = {
            "max_length": max_length,
            "batch_tokens": batch_tokens,
            "micro_tokens": micro_tokens,
            "layout": layout,
            "seed": seed,
        }
        self._epoch: tuple[int, epochs.Epoch] | None = None
        # The block in use and the next one, by (epoch, block).
        self._blocks: dict[tuple[int, int], Future[TextSource]] = {}
        self._thread = ThreadPoolExecutor(1, "shards")

    def epoch(self, number: int) -> epochs.Epoch:
        """Return the blocks and steps of an epoch; the latest is kept."""
        if self._epoch is None or self._epoch[0] != number:
            blocks = epochs.shard_blocks(
                len(self.shards.manifest.shards), self.shuffle_shards, seed=self.seed, epoch=number
            )
            counts = [self._count_steps(block) for block in blocks]
            firsts = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
            self._epoch = number, epochs.Epoch(blocks=blocks, firsts=firsts)
        return self._epoch[1]

    def num_steps(self, epoch: int) -> int:
        """Return the number of steps of an epoch; reads no shard."""
        return self.epoch(epoch).num_steps

    def micro_batches(
        self, epoch: int, step: int, *, rank: int = 0, world_size: int = 1
    ) -> Sequence[TokenBatch | StandIn[TokenBatch]]:
        """Return one process's share of a step; reads the shards of its block if need be."""
        block, index = self.epoch(epoch).find(step)
        source = self._block(epoch, block)
        return source.micro_batches(epoch, index, rank=rank, world_size=world_size)

    def close(self) -> None:
        """End the thread that fetches."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _count_steps(self, block: list[int]) -> int:
        special = self.template.num_special
        rows = [self.shards.document_lengths.of(shard) for shard in block]
        lengths, counts = (np.concatenate(column) for column in zip(*rows, strict=True))
        room = self.max_length - special
        histogram = epochs.window_histogram(lengths, counts, room=room, special=special)
        return epochs.count_steps(histogram, batch_tokens=self.batch_tokens, layout=self.layout)

    def _block(self, epoch: int, block: int) -> TextSource:
        """Return a block that is loaded, being loaded or loaded now; begins to load the next."""
        known, here, following = self.epoch(epoch), (epoch, block), (epoch, block + 1)
        # Others are let go before more come.
        self._blocks = {k: future for k, future in self._blocks.items() if k in (here, following)}
        if here not in self._blocks:
            self._blocks[here] = self._thread.submit(self._load, *here, known)
        source = self._blocks[here].result()
        if following not in self._blocks and block + 1 < len(known.blocks):
            self._blocks[following] = self._thread.submit(self._load, *following, known)
            self.shards.place.trim(2 * self.shuffle_shards + self.cache_shards)
        return source

    def _load(self, epoch: int, block: int, known: epochs.Epoch) -> TextSource:
        """Fetch the shards of a block and plan its steps."""
        numbers = known.blocks[block]
        entries = [self.shards.manifest.shards[number] for number in numbers]
        joined = self.shards.open(entries)
        documents = np.arange(joined.num_documents)
        if self.exclude is not None:
            documents = documents[~np.isin(joined.ids, self.exclude)]
        source = TextSource(joined, documents, self.template, **self._settings)
        ends = np.cumsum([entry.documents for entry in entries])
        owners = np.searchsorted(ends, source.windows.documents, side="right")
        num_windows = np.bincount(owners, minlength=len(numbers)).tolist()
        order = epochs.window_order(numbers, num_windows, seed=self.seed, epoch=epoch)
        if self.layout == "padded":
            order = order[np.argsort(source.lengths[order], kind="stable")]
        boundaries = epochs.cut_exactly(
            source.lengths[order],
            known.block_steps(block),
            batch_tokens=self.batch_tokens,
            layout=self.layout,
        )
        plan = Plan(order=order, boundaries=boundaries)
        if self.layout == "padded":  # steps of like length are neighbours until then
            first = int(known.firsts[block])
            steps = epochs.step_order(first, plan.num_steps, seed=self.seed, epoch=epoch)
            plan = plan.in_order(steps)
        source.kept_plan = epoch, plan
        return source
