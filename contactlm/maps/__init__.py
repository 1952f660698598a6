"""A full-length contact map: planned in passes, predicted, drawn and written."""
