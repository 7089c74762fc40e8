"""From what the user names to a stream of examples: files, folders, globs and hub datasets.

The way through the modules: `config` says how text is read, `sources` finds the files,
`compression` opens them, `decoding` turns bytes into characters, `text_files`, `json_files`,
`csv_files`, `parquet_files` and `hub` cut characters into texts, `examples` gives them ids, and
`reader.Corpus` puts these together. Everything streams; memory does not grow with the corpus.
"""
