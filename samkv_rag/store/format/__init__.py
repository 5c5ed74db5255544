"""A chunk as the bytes of a file, whichever store keeps it; ``docs/format.md`` specifies them.

encoding.py       a chunk cache to bytes, with checksums
reading.py        bytes to tensors, layer by layer, checked
quantization.py   KV in 8 or 4 bits
container.py      the safetensors container: a header, then the tensors
byte_source.py    where the bytes are: in a file, in memory
"""
