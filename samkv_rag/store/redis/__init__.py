"""A store in a Redis or Valkey server.

store.py     the store
scripts.py   what it does in one step, run by the server
"""
