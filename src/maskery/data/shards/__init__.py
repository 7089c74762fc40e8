"""Corpora beyond one machine: token shards, made in parallel and streamed while training.

The way through the modules: `pieces` cuts a corpus into pieces and turns one into shards, as
`ShardingConfig` says, `making` does so in processes and on several machines, and `manifest` holds
the files that come of it. On the other side, `places` fetches them from a disk or an address, and
`source.ShardSource` gives a run its batches.
"""
