"""Families of protein language models: what is known of each, one file a family."""
