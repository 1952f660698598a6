"""Token budget, FLOPs, evaluation and writers as Lightning callbacks."""

from contactlm.callbacks.budget import TokenBudget
from contactlm.callbacks.evaluation import ContactEvaluation
from contactlm.callbacks.flops import FlopsMeter

__all__ = ["ContactEvaluation", "FlopsMeter", "TokenBudget"]
