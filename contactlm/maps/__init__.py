"""A full-length contact map: planned in passes, predicted, drawn and written; and couplings of a language model."""

from contactlm.maps.jacobian import categorical_jacobian

__all__ = ["categorical_jacobian"]
