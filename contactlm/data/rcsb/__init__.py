"""Structures fetched from the Protein Data Bank."""
