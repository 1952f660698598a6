"""Packed sets: the chains of many structure files in a few shards, local or behind a URL."""
