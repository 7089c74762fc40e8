"""The batches of a run over shards: a few shards at a time, in memory that does not grow.

Shapes: W windows, S steps.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from maskery.core.batch import TokenBatch
from maskery.core.errors import ConfigError, DataError
from maskery.core.random import Stream, random_words
from maskery.core.task import StandIn
from maskery.data.batching import Layout, Plan, Template, TextSource
from maskery.data.corpus.files import MANIFEST
from maskery.data.shards import epoch as epochs
from maskery.data.shards.manifest import TOKENIZER, DocumentLengths, FileEntry, Manifest, ShardEntry
from maskery.data.shards.places import Place
from maskery.data.shards.shard_file import JoinedShards, TokenShard

log = logging.getLogger(__name__)

# Of the held-out shards that are scored; the same in every run.
HELD_OUT_POSITION = 20


class TokenShards:
    """The shards of a place: its manifest, and each shard opened when it is needed.

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

    def open(self, entries: Sequence[ShardEntry]) -> JoinedShards:
        """Fetch, check and map some shards."""
        vocab_size = self.manifest.vocab_size
        return JoinedShards([TokenShard(self.fetch(e), vocab_size=vocab_size) for e in entries])

    def held_out(self, max_tokens: int) -> JoinedShards:
        """Open held-out shards up to a number of tokens, chosen at random if there are more."""
        entries = self.manifest.held_out
        if not entries:
            raise DataError(
                f"nothing was held out of the {self.manifest.documents:,} examples of "
                f"'{self.place.name}'; name held-out text with --eval-data, or make the shards "
                "with a larger --held-out-share"
            )
        numbers = np.arange(len(entries), dtype=np.uint64)
        places = np.full(len(entries), HELD_OUT_POSITION, np.int64)
        order = np.argsort(random_words(0, Stream.ORDER, 0, numbers, places), kind="stable")
        chosen: list[ShardEntry] = []
        for number in order.tolist():
            if chosen and sum(e.tokens for e in chosen) + entries[number].tokens > max_tokens:
                break
            chosen.append(entries[number])
        return self.open(chosen)

    def tokenizer_folder(self) -> Path:
        """Return a local folder with the tokenizer that the shards were made with."""
        paths = [self.fetch(e, f"{TOKENIZER}/") for e in self.manifest.tokenizer_files]
        if not paths:
            raise DataError(f"'{self.place.name}' holds no tokenizer; name a --model with its own")
        return paths[0].parent

    def block_histogram(self, shards: Sequence[int], *, room: int, special: int) -> epochs.Counts:
        """Return how many windows of each length some shards become."""
        rows = [self.document_lengths.of(shard) for shard in shards]
        lengths, counts = (np.concatenate(column) for column in zip(*rows, strict=True))
        return epochs.window_histogram(lengths, counts, room=room, special=special)


class BlockSource(TextSource):
    """The windows of a block of shards, with a plan that is made beforehand."""

    def plan(self, epoch: int) -> Plan:
        """Return the steps of the block."""
        if self._plan is None or self._plan[0] != epoch:
            raise AssertionError("the plan of a block belongs to one epoch")
        return self._plan[1]

    def take_plan(self, epoch: int, plan: Plan) -> None:
        """Give the block its plan."""
        self._plan = (epoch, plan)


class ShardSource:
    """The batches of a run over shards; implements `core.task.BatchSource`.

    The order is a pure function of (seed, epoch, the shards, `shuffle_shards`, lengths, budget). A
    step is made from the shards of its block alone: resuming reads nothing that went before.

    Args:
        shards: What is read.
        template: Special tokens of a sequence.
        max_length: The most tokens of a sequence, special ones included.
        batch_tokens: The most tokens of a step.
        micro_tokens: The most tokens of a micro-batch. Default: `batch_tokens`.
        layout: Packed or padded.
        seed: Of the order.
        shuffle_shards: Shards whose examples are shuffled together.
        cache_shards: Copies kept besides those in use, for shards from an address.
        exclude: (n,) uint64: documents that are left out, wherever they stand.
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
        self.max_length = max_length
        self.batch_tokens, self.micro_tokens = batch_tokens, micro_tokens or batch_tokens
        self.layout: Layout = layout
        self.shuffle_shards, self.cache_shards = shuffle_shards, cache_shards
        self.exclude = exclude
        if max_length <= template.num_special:
            raise ConfigError(
                f"a window would hold {max_length - template.num_special} tokens besides the "
                f"special ones; raise --max-length"
            )
        self._epoch: tuple[int, epochs.Epoch] | None = None
        self._block: tuple[tuple[int, int], BlockSource] | None = None
        self._next: tuple[tuple[int, int], Future[BlockSource]] | None = None
        self._thread = ThreadPoolExecutor(1, "shards")

    def epoch(self, number: int) -> epochs.Epoch:
        """Return the blocks and steps of an epoch; the latest is kept."""
        if self._epoch is None or self._epoch[0] != number:
            blocks = epochs.shard_blocks(
                len(self.shards.manifest.shards), self.shuffle_shards, seed=self.seed, epoch=number
            )
            special = self.template.num_special
            counts = [
                epochs.count_steps(
                    self.shards.block_histogram(
                        block, room=self.max_length - special, special=special
                    ),
                    batch_tokens=self.batch_tokens,
                    layout=self.layout,
                )
                for block in blocks
            ]
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
        source = self._take(epoch, block)
        return source.micro_batches(epoch, index, rank=rank, world_size=world_size)

    def close(self) -> None:
        """End the thread that fetches."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _take(self, epoch: int, block: int) -> BlockSource:
        """Return a block (open, being fetched, or loaded now), and begin to fetch the next."""
        if self._block is None or self._block[0] != (epoch, block):
            self._block = None  # let go before the next one comes
            if self._next is not None and self._next[0] == (epoch, block):
                source = self._next[1].result()
            else:
                source = self.load(epoch, block)
            self._block = (epoch, block), source
            self._next = None
            if block + 1 < len(self.epoch(epoch).blocks):
                future = self._thread.submit(self.load, epoch, block + 1, self.epoch(epoch))
                self._next = (epoch, block + 1), future
            self.shards.place.trim(2 * self.shuffle_shards + self.cache_shards)
        return self._block[1]

    def load(self, epoch: int, block: int, known: epochs.Epoch | None = None) -> BlockSource:
        """Fetch the shards of a block and plan its steps."""
        known = known or self.epoch(epoch)
        numbers = known.blocks[block]
        joined = self.shards.open([self.shards.manifest.shards[n] for n in numbers])
        documents = np.arange(joined.num_documents)
        if self.exclude is not None:
            documents = documents[~np.isin(joined.ids, self.exclude)]
        source = BlockSource(
            joined,
            documents,
            self.template,
            max_length=self.max_length,
            batch_tokens=self.batch_tokens,
            micro_tokens=self.micro_tokens,
            layout=self.layout,
            seed=self.seed,
        )
        source.take_plan(epoch, self._plan(source, joined, numbers, known, epoch, block))
        return source

    def _plan(
        self,
        source: BlockSource,
        joined: JoinedShards,
        numbers: list[int],
        known: epochs.Epoch,
        epoch: int,
        block: int,
    ) -> Plan:
        ends = np.cumsum([shard.num_documents for shard in joined.shards])
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
        if self.layout == "padded":
            first = int(known.firsts[block])
            steps = epochs.step_order(first, plan.num_steps, seed=self.seed, epoch=epoch)
            return plan.in_order(steps)
        return plan
