"""Synthetic proteins: training data for a machine without network. They show that things work, not biology."""

from contactlm.data.synthetic.fold import SyntheticProtein, synthetic_protein
from contactlm.data.synthetic.write import SyntheticOptions, nth_protein, write_synthetic

__all__ = ["SyntheticOptions", "SyntheticProtein", "nth_protein", "synthetic_protein", "write_synthetic"]
