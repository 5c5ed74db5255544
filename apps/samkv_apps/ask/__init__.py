"""`samkv ask` and `samkv ingest`: ``reading.py`` reads files, ``library.py`` is the pipeline over them."""
