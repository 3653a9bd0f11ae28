"""Losses of a student against a teacher, each with its gradient in one pass over both."""

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
    reduction: str = "mean",
    divergence: str = "forward",
    teacher_indices: Tensor | None = None,
    teacher_logsumexp: Tensor | None = None,
) -> Tensor:
    """alpha CE(student, target) + (1 - alpha) T^2 KL(softmax(teacher / T) || softmax(student / T)).

    Classes lie along the last dimension; all others are rows. The loss is float32, and only the
    student gets a gradient (of first order).

    target: classes [rows] (int64), probabilities [rows, classes], or None: the second term alone,
    with a weight of 1. Rows whose target is ignore_index are left out of both terms.
    label_smoothing is of the first term. row_weight: [rows]; "mean" divides by its sum over the
    rows that are not left out. divergence: "forward" as above, "reverse"
    KL(student || teacher), "js" Jensen-Shannon.
    teacher_indices, teacher_logsumexp: the teacher's k largest logits only: teacher_logits is
    [rows, k], of the classes of teacher_indices, and teacher_logsumexp [rows] is
    logsumexp(all logits / T); all other classes count as one.

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
    reduction: str = "mean",
) -> Tensor:
    """Decoupled distillation (Zhao et al. 2022): T^2 (alpha TCKD + beta NCKD).

    TCKD is the divergence of the target class against all others as one, NCKD that among the
    others. Rows, weights and reduction are as in `distill_loss`.

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
    student: Tensor, teacher: Tensor, *, kind: str = "mse", start_dim: int = 1
) -> Tensor:
    """How far features of the same shape are apart: the mean over all elements of "mse" or "l1";
    "cosine", the mean of 1 - cos, or "normalized", of the squared distance of unit vectors, where
    the dimensions from start_dim on are a vector.

    >>> feature_loss(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]]), kind="cosine")
    tensor(1.)
    """
    return _ops.feature_loss.default(student, teacher, kind=kind, start_dim=start_dim)  # type: ignore[no-any-return]


def attention_transfer(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean squared difference of attention maps (Zagoruyko & Komodakis 2017): the mean square
    over the channels of [batch, channels, ...], as a unit vector for each sample. Channels may
    differ in number.

    >>> attention_transfer(torch.ones(2, 3, 4, 4), torch.ones(2, 5, 4, 4))
    tensor(0.)
    """
    return _ops.attention_transfer.default(student, teacher)  # type: ignore[no-any-return]


def relation_loss(
    student: Tensor, teacher: Tensor, *, distance: float = 1.0, angle: float = 2.0
) -> Tensor:
    """Relational distillation (Park et al. 2019): the distances between all pairs of samples over
    their mean, and the cosines of the angles in all triples, compared by a smooth L1 loss; times
    ``distance`` and ``angle``. Features may differ in size.

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
    """DIST (Huang et al. 2022): T^2 (beta (1 - correlation of each row's probabilities)
    + gamma (1 - correlation of each class's over the batch)), each a mean. Rows whose
    ``row_weight`` is 0 are left out.

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
