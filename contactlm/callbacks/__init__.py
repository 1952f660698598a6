"""Token budget, FLOPs, evaluation, records and writers as Lightning callbacks."""

from contactlm.callbacks.budget import TokenBudget
from contactlm.callbacks.checkpoint import SafeCheckpoint
from contactlm.callbacks.dashboard import RunBoard, TensorBoardDashboard
from contactlm.callbacks.evaluation import ContactEvaluation
from contactlm.callbacks.flops import FlopsMeter
from contactlm.callbacks.guard import LossGuard
from contactlm.callbacks.memory import MemoryAdvice
from contactlm.callbacks.progress import ThroughputMeter
from contactlm.callbacks.record import RunRecord
from contactlm.callbacks.writer import PredictionWriter

__all__ = [
    "ContactEvaluation",
    "FlopsMeter",
    "LossGuard",
    "MemoryAdvice",
    "PredictionWriter",
    "RunBoard",
    "RunRecord",
    "SafeCheckpoint",
    "TensorBoardDashboard",
    "ThroughputMeter",
    "TokenBudget",
]
