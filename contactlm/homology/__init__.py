"""Which sequences are related: alignments, searches, clusters."""
