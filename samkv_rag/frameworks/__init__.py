"""Shared code of the framework integrations: the lazy engine, streams, messages, options, tools."""
