"""A store in a folder that the processes of one machine share.

store.py              the store: files and index together
chunk_folder.py       the chunk files: where they lie, how one is written
index.py              the SQLite index: opened, shared, made again where it is lost or damaged
index_schema.py       its tables and their versions
index_table.py        its rows of chunks, and what is asked of them
index_references.py   its rows of sources
described.py          what a chunk file says of itself, for an index made again
recency.py            last uses, written down now and then
errors.py             the operating system's and SQLite's errors as ours
"""
