"""Fused kernels for TOAST self-knowledge distillation: class medoids and a blended soft-target KL loss."""

from .bank import MedoidBank
from .functional import ToastStats, class_medoids, toast_loss
from .linear import linear_toast_loss
from .loss import ToastLoss
from .mixup import mixup_triple
from .prediction_memory import PredictionMemory
from .replay import HardReplay, PastPredictions
from .soft_targets import SoftTargets
from .top_predictions import TopPredictions

__version__ = "0.2.0"
__all__ = [
    "HardReplay",
    "MedoidBank",
    "PastPredictions",
    "PredictionMemory",
    "SoftTargets",
    "ToastLoss",
    "ToastStats",
    "TopPredictions",
    "class_medoids",
    "linear_toast_loss",
    "mixup_triple",
    "toast_loss",
]
