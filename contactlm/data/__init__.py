"""Chains to training batches: cache, split, crops."""
