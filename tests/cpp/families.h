// Runs one case of a kernel family on a given device, and returns everything that it wrote.
#pragma once
#include "cases.h"
#include "kernels/act_fake_quant.h"
#include "kernels/binarize.h"
#include "kernels/fake_float.h"
#include "kernels/fake_quant.h"
#include "kernels/fake_quant_lsq.h"
#include "kernels/mean_magnitude.h"
#include "kernels/minmax.h"
#include "kernels/pack_bits.h"
#include "kernels/qparams.h"
#include "kernels/quantize.h"
#include "kernels/straight_through.h"

namespace bitpare {

template <class T>
struct Elementwise {
  std::vector<T> y;
  std::vector<uint64_t> bits;
  bool intact = true;
};

inline std::vector<uint64_t> new_words(int64_t n) {
  return std::vector<uint64_t>(static_cast<size_t>((n + 63) / 64), ~0ull);
}

template <class T, class Where>
Elementwise<T> run_fake_quant(const Case& c, const std::vector<float>& x, const Where& where) {
  Numbers numbers(c);
  Unaligned<T> in(narrowed<T>(x)), out(c.n());
  auto bits = new_words(c.n());
  fake_quant(FakeQuant{in.data(), out.data(), bits.data(), c.n(), kDType<T>, numbers.quantizer,
                       c.rounding, numbers.rng},
             where);
  return {out.values(c.n()), bits, out.intact(c.n())};
}

template <class T, class Where>
Elementwise<T> run_estimator(const Case& c, const std::vector<float>& dy,
                             const std::vector<float>& x, Estimator estimator, const Where& where) {
  Numbers numbers(c);
  Unaligned<T> in(narrowed<T>(x)), gradient(narrowed<T>(dy)), out(c.n());
  fake_quant_gradient(
      FakeQuantGradient{gradient.data(), in.data(), out.data(), c.n(), kDType<T>, numbers.quantizer,
                        c.rounding, numbers.rng, estimator, 2.0f, 1.3f},
      where);
  return {out.values(c.n()), {}, out.intact(c.n())};
}

// The arguments of act_fake_quant besides a case's first channel.
struct ActCase {
  Activation activation = Activation::none;
  bool has_other = false, observe = true, quantize = true;

  std::string name() const {
    return " activation " + std::to_string(static_cast<int>(activation)) +
           (has_other ? " of a sum" : "") + (observe ? "" : " unobserved") +
           (quantize ? "" : " unquantized");
  }
};

inline std::vector<ActCase> act_cases() {
  std::vector<ActCase> cases;
  for (Activation a : {Activation::none, Activation::relu, Activation::relu6, Activation::hardswish,
                       Activation::hardsigmoid}) {
    for (bool has_other : {false, true}) cases.push_back({a, has_other});
  }
  cases.push_back({Activation::relu, true, false, true});
  cases.push_back({Activation::relu, false, true, false});
  return cases;
}

template <class T>
struct Observed {
  Elementwise<T> elements;
  std::vector<float> pending;
};

template <class T, class Where>
Observed<T> run_act_fake_quant(const Case& c, const ActCase& a, const std::vector<float>& x,
                               const std::vector<float>& other, const Where& where) {
  Numbers numbers(c);
  Unaligned<T> in(narrowed<T>(x)), added(narrowed<T>(other)), out(c.n());
  auto bits = new_words(c.n());
  Control control = {static_cast<int32_t>(c.quant_min), static_cast<int32_t>(c.quant_max),
                     a.observe, a.quantize, 0};
  std::vector<float> pending = {1.0f, 2.0f};
  std::vector<float> partial(static_cast<size_t>(kActTerms * (c.n() / kActElements + 1)), NAN);
  act_fake_quant(ActFakeQuant{in.data(), a.has_other ? added.data() : nullptr, out.data(),
                              bits.data(), c.n(), kDType<T>, a.activation, numbers.scale.data(),
                              numbers.zero_point.data(), &control, pending.data(), partial.data()},
                 where);
  return {{out.values(c.n()), bits, out.intact(c.n())}, pending};
}

template <class T, class Where>
Elementwise<T> run_act_gradient(const std::vector<float>& dy, const std::vector<float>& x,
                                const std::vector<uint64_t>& bits, Activation activation,
                                const Where& where) {
  int64_t n = static_cast<int64_t>(x.size());
  Unaligned<T> gradient(narrowed<T>(dy)), in(narrowed<T>(x)), out(n);
  act_fake_quant_gradient(ActFakeQuantGradient{gradient.data(), in.data(), bits.data(), out.data(),
                                               n, kDType<T>, activation},
                          where);
  return {out.values(n), {}, out.intact(n)};
}

// Lengths with tails of every kind, and some that are cut into pieces and blocks.
inline std::vector<Case> flat_cases() {
  std::vector<Case> cases;
  for (int64_t n : {0, 1, 15, 17, 63, 64, 65, 130, 2047, 2048, 5000, 70000}) {
    cases.push_back({{1, 1, n}});
  }
  return cases;
}

inline std::vector<uint64_t> random_words(int64_t n) {
  std::mt19937_64 random(17);
  auto words = new_words(n);
  for (auto& word : words) word = random();
  return words;
}

template <class T, class Where>
Elementwise<T> run_straight_through(const std::vector<float>& dy, std::vector<uint64_t> bits,
                                    const Where& where) {
  int64_t n = static_cast<int64_t>(dy.size());
  Unaligned<T> in(narrowed<T>(dy)), out(n);
  straight_through(StraightThrough{in.data(), bits.data(), out.data(), n, kDType<T>}, where);
  return {out.values(n), {}, out.intact(n)};
}

template <class T, class Where>
Elementwise<T> run_fake_float(const Case& c, const std::vector<float>& x, FloatFormat format,
                              const Where& where) {
  Numbers numbers(c);
  numbers.quantizer.zero_point = nullptr;
  Unaligned<T> in(narrowed<T>(x)), out(c.n());
  auto bits = new_words(c.n());
  fake_float(FakeFloat{in.data(), out.data(), bits.data(), c.n(), kDType<T>, numbers.quantizer,
                       format, c.rounding, numbers.rng},
             where);
  return {out.values(c.n()), bits, out.intact(c.n())};
}

constexpr Levels kLevels[] = {Levels::sign, Levels::zero_one, Levels::minus_one_zero,
                              Levels::ternary};

// Returns a quantizer to levels; three levels have the scales as their thresholds.
inline Quantizer levels_quantizer(const Numbers& numbers, Levels levels) {
  Quantizer q = numbers.quantizer;
  q.zero_point = nullptr;
  if (levels == Levels::ternary) q.threshold = numbers.scale.data();
  return q;
}

template <class T, class Where>
Elementwise<T> run_binarize(const Case& c, const std::vector<float>& x, Levels levels,
                            const Where& where) {
  Numbers numbers(c);
  Quantizer q = levels_quantizer(numbers, levels);
  Unaligned<T> in(narrowed<T>(x)), out(c.n());
  binarize(Binarize{in.data(), out.data(), c.n(), kDType<T>, q, levels}, where);
  return {out.values(c.n()), {}, out.intact(c.n())};
}

template <class T, class Q, class Where>
Elementwise<Q> run_quantize(const Case& c, const std::vector<float>& x, IntType type,
                            const Where& where) {
  Numbers numbers(c);
  Unaligned<T> in(narrowed<T>(x));
  Unaligned<Q> out(c.n());
  int32_t saw_nan = 0;
  quantize(Quantize{in.data(), out.data(), c.n(), kDType<T>, type, numbers.quantizer, &saw_nan},
           where);
  return {out.values(c.n()), {static_cast<uint64_t>(saw_nan)}, out.intact(c.n())};
}

template <class T, class Q, class Where>
Elementwise<T> run_dequantize(const Case& c, const std::vector<Q>& q, IntType type,
                              const Where& where) {
  Numbers numbers(c);
  Unaligned<Q> in(q);
  Unaligned<T> out(c.n());
  dequantize(Dequantize{in.data(), out.data(), c.n(), kDType<T>, type, numbers.quantizer}, where);
  return {out.values(c.n()), {}, out.intact(c.n())};
}

template <class T>
struct Reduced {
  std::vector<T> dx;
  std::vector<float> first, second;
  std::vector<int64_t> counts;
};

// Scratch that a kernel has to fill before it reads it.
inline std::vector<float> new_partial(const Case& c, int terms) {
  int64_t n = terms * math::pieces_of(c.layout) * c.layout.channels;
  return std::vector<float>(static_cast<size_t>(n), NAN);
}

template <class T, class Where>
Reduced<T> run_lsq(const Case& c, const std::vector<float>& dy, const std::vector<float>& x,
                   const Where& where) {
  Numbers numbers(c);
  Unaligned<T> in(narrowed<T>(x)), gradient(narrowed<T>(dy)), out(c.n());
  auto partial = new_partial(c, kLsqTerms);
  std::vector<float> ds(static_cast<size_t>(c.layout.channels)), dz(ds);
  fake_quant_lsq_gradient(
      FakeQuantLsqGradient{gradient.data(), in.data(), out.data(), kDType<T>, numbers.quantizer,
                           c.layout, partial.data(), ds.data(), dz.data(), 0.25f},
      where);
  EXPECT_TRUE(out.intact(c.n()));
  return {out.values(c.n()), ds, dz, {}};
}

template <class T, class Where>
Reduced<T> run_binarize_gradient(const Case& c, const std::vector<float>& dy,
                                 const std::vector<float>& x, Levels levels, const Where& where) {
  Numbers numbers(c);
  Quantizer q = levels_quantizer(numbers, levels);
  Unaligned<T> in(narrowed<T>(x)), gradient(narrowed<T>(dy)), out(c.n());
  auto partial = new_partial(c, 1);
  std::vector<float> ds(static_cast<size_t>(c.layout.channels));
  binarize_gradient(BinarizeGradient{gradient.data(), in.data(), out.data(), kDType<T>, q, levels,
                                     true, c.layout, partial.data(), ds.data()},
                    where);
  EXPECT_TRUE(out.intact(c.n()));
  return {out.values(c.n()), ds, {}, {}};
}

template <class T, class Where>
Reduced<T> run_mean_magnitude(const Case& c, const std::vector<float>& x, bool thresholds,
                              const Where& where) {
  Numbers numbers(c);
  Unaligned<T> in(narrowed<T>(x));
  auto partial = new_partial(c, kMagnitudeTerms);
  std::vector<float> mean(static_cast<size_t>(c.layout.channels));
  mean_magnitude(MeanMagnitude{in.data(), kDType<T>, thresholds ? numbers.scale.data() : nullptr,
                               c.layout, partial.data(), mean.data()},
                 where);
  return {{}, mean, {}, {}};
}

template <class T, class Where>
Reduced<T> run_minmax(const Case& c, const std::vector<float>& x, int32_t bins, int64_t slots,
                      const Where& where) {
  Unaligned<T> in(narrowed<T>(x));
  auto partial = new_partial(c, kMinMaxTerms);
  auto channels = static_cast<size_t>(c.layout.channels);
  std::vector<float> low(channels), high(channels), from(channels, -2.0f), to(channels, 2.5f);
  std::vector<int64_t> counts(static_cast<size_t>(slots * bins) * channels);
  minmax(MinMaxOf{in.data(), kDType<T>, c.layout, partial.data(), low.data(), high.data(),
                  bins ? counts.data() : nullptr, from.data(), to.data(), bins, slots},
         where);
  std::vector<int64_t> total(static_cast<size_t>(bins) * channels);
  for (size_t i = 0; i < counts.size(); ++i) total[i % total.size()] += counts[i];
  return {{}, low, high, total};
}

}  // namespace bitpare
