"""`samkv ask` and `samkv ingest`: a folder of documents, a question, an answer with its sources.

reading.py   files to documents, cut into chunks that fit the splitter
library.py   LlamaIndex's pipeline, Chroma and our integration around one folder
command.py   the commands
"""
