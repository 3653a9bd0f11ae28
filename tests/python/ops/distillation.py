"""Losses between a student and a teacher, and their formulas in float64."""

import math
from collections.abc import Callable
from typing import Any

import bitpare as bp
import torch
import torch.nn.functional as F
from torch import Tensor

from ops.entry import SHAPE, TABLE, Arguments, Call, Case, Expected, OpEntry, Speed, floats

# -- the formulas


def divergence(zs: Tensor, zt: Tensor, kind: str) -> Tensor:
    """Between softmaxes, of each row."""
    lq, lp = F.log_softmax(zs, -1), F.log_softmax(zt, -1)
    if kind == "reverse":
        lq, lp = lp, lq
    if kind in ("forward", "reverse"):
        return torch.where(lp.exp() > 0, lp.exp() * (lp - lq), 0.0).sum(-1)
    lm = torch.logaddexp(lq, lp) - math.log(2)
    return sum(torch.where(x.exp() > 0, x.exp() * (x - lm), 0.0).sum(-1) for x in (lq, lp)) / 2


def cross_entropy(zs, target, smoothing, ignored):
    """Return the cross entropy of each row; 0 where it is ignored."""
    if target.is_floating_point():
        n = zs.shape[-1]
        y = target.double() * (1 - smoothing) + smoothing / n
        return -(y * F.log_softmax(zs, -1)).sum(-1)
    flat = F.cross_entropy(
        zs.reshape(-1, zs.shape[-1]), target.flatten(), ignore_index=ignored, reduction="none",
        label_smoothing=smoothing,
    )  # fmt: skip
    return flat.view(target.shape)


def distill(zs, zt, target=None, *, temperature=4.0, alpha=0.5, ignore_index=-100,
            label_smoothing=0.0, row_weight=None, reduction="mean",
            divergence_="forward"):  # fmt: skip
    zs, zt = zs.double(), zt.double()
    rows = temperature**2 * divergence(zs / temperature, zt / temperature, divergence_)
    weight = torch.ones_like(rows) if row_weight is None else row_weight.double()
    if target is not None:
        hard = cross_entropy(zs, target, label_smoothing, ignore_index)
        rows = alpha * hard + (1 - alpha) * rows
        if not target.is_floating_point():
            weight = torch.where(target == ignore_index, 0.0, weight)
    rows = torch.where(weight == 0, 0.0, rows) * weight
    if reduction == "none":
        return rows
    total = weight.sum() if reduction == "mean" else 1.0
    return rows.sum() / total if total != 0 else rows.sum() * 0


def dkd(zs, zt, target, *, temperature=4.0, alpha=1.0, beta=8.0, ignore_index=-100,
        row_weight=None, reduction="mean"):  # fmt: skip
    zs, zt = zs.double() / temperature, zt.double() / temperature
    at = target.clamp(min=0)[..., None]
    is_target = torch.zeros_like(zs, dtype=torch.bool).scatter(-1, at, True)

    def parts(z):
        own = z.gather(-1, at).squeeze(-1)
        others = z.masked_fill(is_target, -torch.inf)
        return torch.stack([own, others.logsumexp(-1)], -1), others

    (binary_s, others_s), (binary_t, others_t) = parts(zs), parts(zt)
    keep = ~is_target
    n = zs.shape[-1] - 1
    among = divergence(
        others_s[keep].view(*zs.shape[:-1], n), others_t[keep].view(*zs.shape[:-1], n), "forward"
    )
    rows = temperature**2 * (alpha * divergence(binary_s, binary_t, "forward") + beta * among)
    weight = torch.ones_like(rows) if row_weight is None else row_weight.double()
    weight = torch.where(target == ignore_index, 0.0, weight)
    rows = rows * weight
    if reduction == "none":
        return rows
    return rows.sum() / weight.sum() if reduction == "mean" else rows.sum()


def feature(student, teacher, kind="mse"):
    x, t = student.double(), teacher.double()
    if kind in ("mse", "l1"):
        return F.mse_loss(x, t) if kind == "mse" else F.l1_loss(x, t)
    x, t = (F.normalize(v.flatten(1), dim=1) for v in (x, t))
    if kind == "cosine":
        return 1 - F.cosine_similarity(x, t, dim=1).mean()
    return (x - t).square().sum(1).mean()


def attention(student, teacher):
    x, t = (F.normalize(v.double().pow(2).mean(1).flatten(1)) for v in (student, teacher))
    return (x - t).pow(2).mean()


def relation(student, teacher, distance=1.0, angle=2.0):
    def pairs(x):
        d = (x[:, None] - x[None]).square().sum(-1).clamp(min=1e-30).sqrt()
        d = d * (1 - torch.eye(len(x), dtype=x.dtype))
        return d / d[d > 0].mean()

    def triples(x):
        e = F.normalize(x[None] - x[:, None], dim=2)
        return torch.bmm(e, e.transpose(1, 2))

    x, t = student.double(), teacher.double()
    far = F.smooth_l1_loss(pairs(x), pairs(t))
    return distance * far + angle * F.smooth_l1_loss(triples(x), triples(t))


def dist(student, teacher, temperature=4.0, beta=2.0, gamma=2.0):
    def correlation(a, b, dim):
        a, b = a - a.mean(dim, True), b - b.mean(dim, True)
        return F.cosine_similarity(a, b, dim=dim, eps=1e-12)

    q, p = (torch.softmax(x.double() / temperature, -1) for x in (student, teacher))
    loss = beta * (1 - correlation(q, p, 1).mean()) + gamma * (1 - correlation(q, p, 0).mean())
    return temperature**2 * loss


# -- the entries


def two(case: Case, device: str) -> Call:
    """The student's tensor, the teacher's, and classes where the op takes them."""
    teacher = case.attributes.get("teacher", case.shape)
    given = floats(*teacher, seed=1).to(device, case.dtype)
    kwargs = {k: v for k, v in case.attributes.items() if k not in ("teacher", "classes")}
    if case.attributes.get("classes"):
        target = torch.arange(case.shape[0]) % case.shape[1]
        return (case.x(device), given, target.to(device)), kwargs
    return (case.x(device), given), kwargs


def loss(formula: Callable[..., Tensor], **entry: Any) -> OpEntry:
    """Return the entry of a loss whose formula torch differentiates."""

    def value(case: Case, student: Tensor | None = None) -> Tensor:
        (x, *rest), kwargs = case.arguments()
        names = {"divergence": "divergence_"} if formula is distill else {}
        kwargs = {names.get(k, k): v for k, v in kwargs.items()}
        return formula((x if student is None else student).double(), *rest, **kwargs)

    def gradient(case: Case, dy: Tensor) -> list[Expected]:
        x = case.x().double().requires_grad_()
        return [Expected(*torch.autograd.grad(value(case, x), x, dy.double()))]

    return OpEntry(
        build=two, reference=lambda case: Expected(value(case)), gradient=gradient, **entry
    )


def logits() -> tuple[Tensor, Tensor]:
    return floats(5, 7), floats(5, 7, seed=3)


def sample_distill() -> Arguments:
    student, teacher = logits()
    return {
        "student_logits": student, "teacher_logits": teacher[:, :4],
        "target": torch.tensor([0, 3, 6, -100, 2]), "row_weight": torch.rand(5) + 0.5,
        "teacher_indices": torch.tensor([[0, 2, 4, 6]] * 5),
        "teacher_logsumexp": floats(5, seed=4) + 3,
    }  # fmt: skip


def private_distill() -> Arguments:
    names = ("student", "teacher", "target", "row_weight", "indices", "logsumexp")
    tensors = dict(zip(names, sample_distill().values(), strict=True))
    numbers = {
        "soft": 1, "temperature": 4.0, "hard_weight": 0.5, "soft_weight": 8.0, "smoothing": 0.1,
        "target_weight": 1.0, "others_weight": 1.0, "ignore_index": -100, "reduction": 1,
    }  # fmt: skip
    return {**tensors, "incoming": torch.tensor([1.5]), **numbers, "with_gradient": True}


def taught(student: Tensor, teacher: Tensor, rows: int, **options: Any) -> Arguments:
    weights = {"row_weight": torch.rand(rows) + 0.5 if rows else None}
    more = {**weights, "incoming": torch.tensor([1.5]), **options, "with_gradient": True}
    return {"student": student, "teacher": teacher, **more}


def named_logits(**more: Any) -> Arguments:
    student, teacher = logits()
    weights = torch.rand(5) + 0.5
    return {"student_logits": student, "teacher_logits": teacher, "row_weight": weights, **more}


def dkd_speed(x: Tensor):
    student, teacher = x.view(-1, 1024), x.flip(0).view(-1, 1024)
    target = torch.zeros(len(student), dtype=torch.int64, device=x.device)
    return {"bitpare": lambda: bp.functional.dkd_loss(student, teacher, target)}


def feature_speed(x: Tensor):
    teacher = x.flip(0)
    functions = {"bitpare": lambda: bp.functional.feature_loss(x, teacher, start_dim=0)}
    return {**functions, "torch": lambda: F.mse_loss(x, teacher)}


STUDENT = ("student_logits",)

TABLE["distill_loss"] = loss(
    distill,
    cases=[
        Case("distill_loss", (7, 10)),
        Case("distill_loss", (7, 10), {"classes": True, "alpha": 0.3}),
        Case("distill_loss", (7, 10), {"divergence": "js", "temperature": 2.0}, layout="sliced"),
        Case("distill_loss", (7, 10), {"classes": True, "reduction": "none"}, layout="transposed"),
    ],
    learned=STUDENT,
    sample=sample_distill,
    variants=(
        {"teacher_indices": None, "teacher_logsumexp": None, "teacher_logits": floats(5, 7)},
        {
            **dict.fromkeys(("target", "row_weight", "teacher_indices", "teacher_logsumexp")),
            "student_logits": floats(5, 7).half(),
            "teacher_logits": floats(5, 7).half(),
        },
    ),
    measured="distill.py",
)
TABLE["dkd_loss"] = loss(
    dkd,
    cases=[
        Case("dkd_loss", (7, 10), {"classes": True}),
        Case("dkd_loss", (7, 10), {"classes": True, "reduction": "none"}, layout="transposed"),
    ],
    learned=STUDENT,
    sample=lambda: named_logits(target=torch.tensor([0, 3, 6, -100, 2])),
    speed=Speed(8, dkd_speed),
)
TABLE["_distill_loss"] = OpEntry(sample=private_distill)
TABLE["dist_loss"] = loss(
    dist,
    cases=[
        Case("dist_loss", (7, 10)),
        Case("dist_loss", (7, 10), {"temperature": 1.0, "beta": 0.5}, layout="sliced"),
    ],
    learned=STUDENT,
    sample=named_logits,
    measured="distill.py",
)
TABLE["_dist_loss"] = OpEntry(
    sample=lambda: taught(*logits(), 5, temperature=4.0, beta=2.0, gamma=2.0)
)
TABLE["feature_loss"] = loss(
    feature,
    cases=[
        *(Case("feature_loss", (4, 3, 5), {"kind": k}) for k in ("mse", "l1", "cosine")),
        Case("feature_loss", (4, 3, 5), {"kind": "normalized"}, layout="sliced"),
    ],
    learned=("student",),
    sample=lambda: {
        "student": floats(*SHAPE), "teacher": floats(*SHAPE, seed=1), "kind": "cosine"
    },
    speed=Speed(8, feature_speed),
)  # fmt: skip
TABLE["_feature_loss"] = OpEntry(
    sample=lambda: taught(floats(*SHAPE), floats(*SHAPE, seed=1), 0, kind=2, start_dim=1)
)
TABLE["attention_transfer"] = loss(
    attention,
    cases=[
        Case("attention_transfer", (4, 3, 30), {"teacher": (4, 7, 30)}),
        Case("attention_transfer", (4, 3, 30), {"teacher": (4, 7, 30)}, layout="transposed"),
    ],
    learned=("student",),
    sample=lambda: {"student": floats(*SHAPE), "teacher": floats(2, 5, 4, 16)},
    measured="distill.py",
)
TABLE["_attention_transfer"] = OpEntry(
    sample=lambda: taught(floats(*SHAPE), floats(2, 5, 4, 16), 0)
)
TABLE["relation_loss"] = loss(
    relation,
    cases=[
        Case("relation_loss", (6, 9), {"teacher": (6, 4)}),
        Case("relation_loss", (6, 9), {"teacher": (6, 4), "angle": 0.5}, layout="sliced"),
    ],
    learned=("student",),
    sample=lambda: {"student": floats(5, 7), "teacher": floats(5, 9)},
    measured="distill.py",
)
TABLE["_relation_loss"] = OpEntry(
    sample=lambda: taught(floats(5, 7), floats(5, 9), 0, distance=1.0, angle=2.0)
)
