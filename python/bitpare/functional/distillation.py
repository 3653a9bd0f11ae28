"""Losses of a student against a teacher. Each computes the loss and its gradient in one pass."""

from typing import Literal

import torch
from torch import Tensor

__all__ = [
    "attention_transfer",
    "dist_loss",
    "distill_loss",
    "dkd_loss",
    "feature_loss",
    "relation_loss",
]

_ops = torch.ops.bitpare
_distill_loss = _ops.distill_loss.default
_dkd_loss = _ops.dkd_loss.default


def distill_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor | None = None,
    *,
    temperature: float = 4.0,
    alpha: float = 0.5,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    row_weight: Tensor | None = None,
    reduction: Literal["mean", "sum", "none"] = "mean",
    divergence: Literal["forward", "reverse", "js"] = "forward",
    teacher_indices: Tensor | None = None,
    teacher_logsumexp: Tensor | None = None,
) -> Tensor:
    """Return alpha CE(student, target) + (1 - alpha) T^2 KL(softmax(teacher / T) || softmax(student
    / T)).

    Classes lie along the last dimension; all other dimensions are rows. The loss is float32.
    Only the student gets a gradient, of first order.

    Args:
        student_logits: [rows, classes].
        teacher_logits: [rows, classes]; or [rows, k] with ``teacher_indices``.
        target: classes [rows] as int64, or probabilities [rows, classes]. None leaves only the
            second term, with weight 1.
        temperature: T.
        alpha: the weight of the first term, in [0, 1].
        ignore_index: rows with this target count in neither term.
        label_smoothing: the label smoothing of the first term.
        row_weight: a weight for each row, [rows].
        reduction: "mean" divides by the sum of the weights of all counted rows; "sum" or "none".
        divergence: "forward" as above; "reverse" is KL(student || teacher); "js" is Jensen-Shannon.
        teacher_indices: the classes of ``teacher_logits``, [rows, k] as int64, if only the k
            largest logits are given. All other classes count as one.
        teacher_logsumexp: logsumexp(all teacher logits / T), [rows]; needed with
            ``teacher_indices``.

    >>> student, teacher = torch.zeros(2, 4), torch.tensor([[2.0, 0, 0, 0], [0, 3.0, 0, 0]])
    >>> distill_loss(student, teacher, torch.tensor([0, 1]), temperature=2.0)
    tensor(1.0835)
    """
    return _distill_loss(  # type: ignore[no-any-return]
        student_logits,
        teacher_logits,
        target,
        temperature=temperature,
        alpha=alpha,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        row_weight=row_weight,
        reduction=reduction,
        divergence=divergence,
        teacher_indices=teacher_indices,
        teacher_logsumexp=teacher_logsumexp,
    )


def dkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    *,
    temperature: float = 4.0,
    alpha: float = 1.0,
    beta: float = 8.0,
    ignore_index: int = -100,
    row_weight: Tensor | None = None,
    reduction: Literal["mean", "sum", "none"] = "mean",
) -> Tensor:
    """Return the loss of decoupled distillation (Zhao et al. 2022): T^2 (alpha TCKD + beta NCKD).

    TCKD is the divergence of the target class against all other classes as one. NCKD is the
    divergence among the other classes.

    Args:
        student_logits: [rows, classes].
        teacher_logits: [rows, classes].
        target: classes [rows] as int64.
        temperature: T.
        alpha: the weight of TCKD.
        beta: the weight of NCKD.
        ignore_index: rows with this target do not count.
        row_weight: a weight for each row, [rows].
        reduction: "mean", "sum" or "none", as in `distill_loss`.

    >>> student, teacher = torch.zeros(1, 3), torch.tensor([[1.0, 2.0, 0.0]])
    >>> dkd_loss(student, teacher, torch.tensor([1]), temperature=1.0)
    tensor(1.1166)
    """
    return _dkd_loss(  # type: ignore[no-any-return]
        student_logits,
        teacher_logits,
        target,
        temperature=temperature,
        alpha=alpha,
        beta=beta,
        ignore_index=ignore_index,
        row_weight=row_weight,
        reduction=reduction,
    )


def feature_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    kind: Literal["mse", "l1", "cosine", "normalized"] = "mse",
    start_dim: int = 1,
) -> Tensor:
    """Return the distance of features of the same shape.

    Args:
        student: the student's features.
        teacher: the teacher's features, which get no gradient.
        kind: "mse" and "l1" take the mean over all elements. "cosine" is the mean of 1 - cos over
            vectors; "normalized" is the mean squared distance of unit vectors.
        start_dim: the first of the dimensions that form a vector, for "cosine" and "normalized".

    >>> feature_loss(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]]), kind="cosine")
    tensor(1.)
    """
    return _ops.feature_loss.default(student, teacher, kind=kind, start_dim=start_dim)  # type: ignore[no-any-return]


def attention_transfer(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared difference of attention maps (Zagoruyko & Komodakis 2017).

    The map of a sample is the mean square over the channels of [batch, channels, ...],
    normalized to a unit vector. The numbers of channels may differ.

    >>> attention_transfer(torch.ones(2, 3, 4, 4), torch.ones(2, 5, 4, 4))
    tensor(0.)
    """
    return _ops.attention_transfer.default(student, teacher)  # type: ignore[no-any-return]


def relation_loss(
    student: Tensor, teacher: Tensor, *, distance: float = 1.0, angle: float = 2.0
) -> Tensor:
    """Return the loss of relational distillation (Park et al. 2019).

    A smooth L1 loss compares the distances of all pairs of samples, divided by their mean, and
    the cosines of the angles in all triples of samples. The sizes of the features may differ.

    Args:
        student: the student's features, [batch, ...].
        teacher: the teacher's features, [batch, ...].
        distance: the weight of the distances.
        angle: the weight of the angles.

    >>> x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> relation_loss(x, 3 * x) < 1e-6
    tensor(True)
    """
    return _ops.relation_loss.default(student, teacher, distance=distance, angle=angle)  # type: ignore[no-any-return]


def dist_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 4.0,
    beta: float = 2.0,
    gamma: float = 2.0,
    row_weight: Tensor | None = None,
) -> Tensor:
    """Return the loss of DIST (Huang et al. 2022).

    It is T^2 times beta (1 - the correlation of each row's probabilities) + gamma (1 - the
    correlation of each class's probabilities over the batch), each averaged.

    Args:
        student_logits: [rows, classes].
        teacher_logits: [rows, classes].
        temperature: T.
        beta: the weight of the correlation within rows.
        gamma: the weight of the correlation within classes.
        row_weight: [rows]; rows of weight 0 do not count.

    >>> x = torch.tensor([[2.0, 0.0, 1.0], [0.0, 1.0, 3.0]])
    >>> dist_loss(x, x).abs() < 1e-5
    tensor(True)
    """
    return _ops.dist_loss.default(  # type: ignore[no-any-return]
        student_logits,
        teacher_logits,
        temperature=temperature,
        beta=beta,
        gamma=gamma,
        row_weight=row_weight,
    )
