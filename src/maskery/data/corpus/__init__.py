"""From what the user names or passes to a stream of examples.

The way through the modules: `config` holds the settings, `files` finds the files, here or at an
address, `formats` is the table of readers (and the door for readers of one's own), `streams` turns
bytes into characters, `formats`, `record_files` and `dataset_corpus` cut these into texts,
`examples` gives them ids, and `reader.Corpus` puts all together. Everything streams; memory does
not grow with the corpus.
"""
