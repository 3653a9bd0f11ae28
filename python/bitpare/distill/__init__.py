"""Train a student with a teacher: losses, hints, and a module that runs both."""

from bitpare.distill.cache import TeacherCache
from bitpare.distill.distiller import Distiller
from bitpare.distill.hints import AttentionTransfer, Hint, LayerLoss, Relation
from bitpare.distill.losses import (
    DIST,
    DKD,
    HardTarget,
    LogitMSE,
    Loss,
    MultiTask,
    SoftTarget,
    Sum,
    TopLogits,
)
from bitpare.distill.ramp import Ramp
from bitpare.distill.student import shrink_student

__all__ = [
    "DIST",
    "DKD",
    "AttentionTransfer",
    "Distiller",
    "HardTarget",
    "Hint",
    "LayerLoss",
    "LogitMSE",
    "Loss",
    "MultiTask",
    "Ramp",
    "Relation",
    "SoftTarget",
    "Sum",
    "TeacherCache",
    "TopLogits",
    "shrink_student",
]
