"""A small near store in front of a large far one.

store.py         the store: reads near or far, says what far holds
write_back.py    chunks on their way to the far store
prefetching.py   chunks on their way to the near one
"""
