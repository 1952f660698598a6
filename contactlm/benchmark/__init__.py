"""Benchmarks by name: public test sets as lists of chains, their structures, and scores with published figures."""
