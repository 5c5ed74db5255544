"""The only place that touches transformers' internals."""
