// Losses between features of a student and a teacher, put together from torch's own operators,
// which differentiate them. They compute in float32 (float64 stays); the teacher gets no gradient.
#include <ATen/ATen.h>

#include "ops/call.h"
#include "ops/features.h"

namespace bitpare::ops {
namespace {

constexpr double kLeastNorm = 1e-12, kLeastSquare = 1e-24, kCoincide = 1e-12;

Tensor widened(const Tensor& x) { return x.scalar_type() == at::kDouble ? x : x.to(at::kFloat); }
Tensor taught(const Tensor& teacher) { return widened(teacher.detach()); }

// The unit vectors along a dimension; 0, without a gradient, where the square of the length is
// less.
Tensor unit(const Tensor& x, int64_t dim, double least = kLeastSquare) {
  Tensor squares = x.square().sum(dim, true), has_length = squares >= least;
  Tensor inverse = at::where(has_length, squares, at::ones({}, x.options())).rsqrt();
  return x * at::where(has_length, inverse, at::zeros({}, x.options()));
}

// 0 for an empty batch, of which the mean is NaN.
Tensor mean_or_zero(const Tensor& x) { return x.sum() / x.sym_numel().max(1); }

Tensor attention_map(const Tensor& x) { return unit(x.square().mean(1).flatten(1), -1); }

Tensor attention_transfer(const Tensor& student, const Tensor& teacher) {
  constexpr const char* kOp = "attention_transfer";
  check_features(kOp, student, teacher);
  auto a = student.sym_sizes(), b = teacher.sym_sizes();
  TORCH_CHECK(a.size() > 2 && a.size() == b.size() && a[0] == b[0] && a.slice(2).equals(b.slice(2)),
              kOp, ": student and teacher must agree in all but channels, got ", a, " and ", b);
  return mean_or_zero((attention_map(widened(student)) - attention_map(taught(teacher))).square());
}

// Distances between all pairs of rows, over their mean.
Tensor relative_distances(const Tensor& x) {
  Tensor d = at::cdist(x, x, 2.0, 2);
  Tensor others = (d > 0).to(d.scalar_type());
  return d / ((d * others).sum() / others.sum().clamp_min(1.0)).clamp_min(kLeastNorm);
}

// The cosines of the angles at each row between all pairs of rows.
Tensor angles(const Tensor& x) {
  Tensor e = unit(x.unsqueeze(0) - x.unsqueeze(1), -1, kCoincide);
  return at::bmm(e, e.transpose(1, 2));
}

Tensor relation_loss(const Tensor& student, const Tensor& teacher, double distance, double angle) {
  constexpr const char* kOp = "relation_loss";
  check_features(kOp, student, teacher);
  TORCH_CHECK(student.dim() > 1 && teacher.dim() > 1 && student.sym_size(0) == teacher.sym_size(0),
              kOp, ": student and teacher must be of the same samples, got ", student.sym_sizes(),
              " and ", teacher.sym_sizes());
  Tensor s = widened(student).flatten(1), t = taught(teacher).flatten(1), zero = s.sum() * 0.0;
  auto apart = [](const Tensor& a, const Tensor& b) {
    return mean_or_zero(at::smooth_l1_loss(a, b, at::Reduction::None));
  };
  Tensor loss = zero;
  if (distance != 0.0) loss = loss + distance * apart(relative_distances(s), relative_distances(t));
  if (angle != 0.0) loss = loss + angle * apart(angles(s), angles(t));
  return loss;
}

// Of a and b along a dimension, with weights; 0 where one of them is constant but for rounding.
Tensor correlation(const Tensor& a, const Tensor& b, const Tensor& weight, int64_t dim) {
  Tensor total = weight.expand_as(a).sum(dim, true).clamp_min(kLeastNorm);
  auto centred = [&](const Tensor& x) {
    Tensor moved = (x - (x * weight).sum(dim, true) / total) * weight.sqrt();
    return unit(moved, dim, 1e-12);
  };
  return (centred(a) * centred(b)).sum(dim);
}

Tensor dist_loss(const Tensor& student, const Tensor& teacher, double temperature, double beta,
                 double gamma, const OptionalTensor& row_weight) {
  constexpr const char* kOp = "dist_loss";
  check_features(kOp, student, teacher);
  check_same_shape(kOp, student, teacher);
  TORCH_CHECK(student.dim() > 1, kOp, ": logits must be [rows, classes], got ",
              student.sym_sizes());
  TORCH_CHECK(temperature > 0, kOp, ": temperature must be above 0, got ", temperature);
  Tensor s = widened(student).flatten(0, -2), t = taught(teacher).flatten(0, -2);
  if (s.sym_numel() == 0 || s.sym_size(1) == 1) return s.sum() * 0.0;
  Tensor ones = at::ones_symint({s.sym_size(0)}, s.options()), weight = ones;
  if (row_weight) {
    TORCH_CHECK(row_weight->sym_numel() == s.sym_size(0), kOp, ": row_weight must have ",
                s.sym_size(0), " elements, one for each row, got ", row_weight->sym_numel());
    weight = row_weight->to(s.scalar_type()).flatten();
  }
  Tensor kept = weight.unsqueeze(1), left_out = at::zeros({}, s.options());
  s = at::where(kept != 0, s, left_out);
  t = at::where(kept != 0, t, left_out);
  Tensor q = at::softmax(s / temperature, -1), p = at::softmax(t / temperature, -1);
  Tensor all = weight.sum(), any = (all > 0).to(s.scalar_type());
  Tensor rows = (1.0 - correlation(q, p, ones.unsqueeze(1), 1)) * weight;
  Tensor between = rows.sum() / all.clamp_min(kLeastNorm);
  Tensor within = (1.0 - correlation(q, p, kept, 0)).mean() * any;
  return temperature * temperature * (beta * between + gamma * within);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(bitpare, m) {
  m.def("attention_transfer(Tensor student, Tensor teacher) -> Tensor", tags());
  m.def(
      "relation_loss(Tensor student, Tensor teacher, *, float distance=1.0, float angle=2.0) -> "
      "Tensor",
      tags());
  m.def(
      "dist_loss(Tensor student_logits, Tensor teacher_logits, *, float temperature=4.0, "
      "float beta=2.0, float gamma=2.0, Tensor? row_weight=None) -> Tensor",
      tags());
}
TORCH_LIBRARY_IMPL(bitpare, CompositeImplicitAutograd, m) {
  m.impl("attention_transfer", attention_transfer);
  m.impl("relation_loss", relation_loss);
  m.impl("dist_loss", dist_loss);
}

}  // namespace bitpare::ops
