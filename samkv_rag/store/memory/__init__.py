"""A store in this process's memory.

store.py           the store: encoded chunks, the least recently read of which go first
reference_map.py   which source refers to which chunk
"""
