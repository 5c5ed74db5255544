"""What is done to a disk store besides storing and reading; ``samkv store`` is its command line.

inventory.py      what it holds, and of whom
verification.py   every file against its checksums, the index against the files
pruning.py        what need not be kept, deleted
archive.py        chunks carried from one store to another
"""
