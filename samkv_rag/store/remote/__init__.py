"""A store behind a URL that machines share: S3, GCS, Azure, a shared folder.

store.py       the store: objects and index together
index.py       which chunks and sources there are, by model
log.py         one table of them, as objects that nobody ever writes over
files.py       objects through fsspec: no call waits for ever, every failure is one of ours
leftovers.py   what killed writers left in a shared folder
"""
