#include "kernels/feature_loss.h"

#include "kernels/cpu/reduce.h"

namespace bitpare {
namespace {

template <FeatureKind kKind, class T>
void by_elements(const FeatureLoss& args, const OnCpu<BITPARE_ISA>& cpu, float scale) {
  auto formula = [=](const Lanes&, Vec* terms, Vec s, Vec t) [[gnu::always_inline]] {
    Vec slope;
    terms[0] = math::element_apart<kKind>(s, t, &slope);
    return slope * math::splat<Vec>(scale);
  };
  auto finish = [&](int64_t, const float* sums) {
    args.loss[0] = sums[0] * math::feature_factor(args);
  };
  reduce<math::Sum, 1>(cpu.parallel_for, Quantizer(),
                       layout::feature_rows(args.kind, args.rows, args.n), args.partial, finish,
                       formula, static_cast<T*>(args.gradient), static_cast<const T*>(args.student),
                       static_cast<const T*>(args.teacher));
}

// Returns number(row) for each lane: one row for all, unless rows have one element each.
template <class F>
BITPARE_INLINE Vec of_row(const FeatureLoss& args, const Lanes& lanes, F number) {
  if (args.n > 1 || args.rows == 1) return math::splat<Vec>(number(lanes.channel));
  float each[kWidth] = {};
  for (int64_t l = 0; l < lanes.count; ++l) each[l] = number(lanes.channel + l);
  return load(each);
}

template <class T>
void by_rows(const FeatureLoss& args, const OnCpu<BITPARE_ISA>& cpu, float scale) {
  ReduceLayout rows = layout::feature_rows(args.kind, args.rows, args.n);
  const T* student = static_cast<const T*>(args.student);
  const T* teacher = static_cast<const T*>(args.teacher);
  auto lengths = [](const Lanes&, Vec* terms, Vec s, Vec t) [[gnu::always_inline]] {
    math::unit_terms(s, t, terms);
    return s;
  };
  auto keep_row = [&](int64_t row, const float* sums) {
    args.units[row] = math::feature_row(sums);
  };
  reduce<math::Sum, math::kUnitTerms>(cpu.parallel_for, Quantizer(), rows, args.partial, keep_row,
                                      lengths, static_cast<T*>(nullptr), student, teacher);
  auto apart = [=, &args](const Lanes& lanes, Vec* terms, Vec s, Vec t) [[gnu::always_inline]] {
    Vec slope;
    Vec to_student = of_row(args, lanes, [&](int64_t r) { return args.units[r].student; });
    Vec to_teacher = of_row(args, lanes, [&](int64_t r) { return args.units[r].teacher; });
    Vec cosine = of_row(args, lanes, [&](int64_t r) { return args.units[r].cosine; });
    terms[0] = math::unit_apart(s, t, to_student, to_teacher, cosine, &slope);
    return slope * math::splat<Vec>(scale);
  };
  auto keep_sum = [&](int64_t row, const float* sums) { args.sums[row] = sums[0]; };
  reduce<math::Sum, 1>(cpu.parallel_for, Quantizer(), rows, args.partial, keep_sum, apart,
                       static_cast<T*>(args.gradient), student, teacher);
  auto itself = [](const Lanes&, Vec* terms, Vec x) [[gnu::always_inline]] {
    terms[0] = x;
    return x;
  };
  auto finish = [&](int64_t, const float* sums) {
    args.loss[0] = sums[0] * math::feature_factor(args);
  };
  reduce<math::Sum, 1>(cpu.parallel_for, Quantizer(), ReduceLayout{1, 1, args.rows}, args.partial,
                       finish, itself, static_cast<float*>(nullptr),
                       static_cast<const float*>(args.sums));
}

}  // namespace

// Reads student and teacher once and writes the gradient; kinds of unit vectors read them twice.
template <>
void feature_loss(const FeatureLoss& args, const OnCpu<BITPARE_ISA>& cpu) {
  float scale = math::feature_factor(args) * (args.incoming ? args.incoming[0] : 1.0f);
  with_type(args.dtype, [&]<class T>(T*) {
    if (args.kind == FeatureKind::mse) return by_elements<FeatureKind::mse, T>(args, cpu, scale);
    if (args.kind == FeatureKind::l1) return by_elements<FeatureKind::l1, T>(args, cpu, scale);
    by_rows<T>(args, cpu, scale);
  });
}

}  // namespace bitpare
