"""contactlm: fine-tune ESM2 for residue-residue contact prediction."""

__version__ = "0.1.0"
