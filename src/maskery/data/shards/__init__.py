"""Corpora beyond one machine: token shards, made in parallel and streamed while training.

The way through the modules: `config` says how shards are made and read, `pieces` cuts a corpus
into pieces and reads one, `piece_work` turns one into shards, `making` does so in processes and on
several machines, and `manifest` says what there is. On the other side, `places` fetches shards
from a disk or an address, `shard_file` reads them, `epoch` counts the steps of an epoch without
reading any, and `source.ShardSource` gives a run its batches.
"""
