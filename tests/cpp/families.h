// Runs one case of a kernel family on a given device, and returns everything that it wrote.
#pragma once
#include "backends.h"
#include "kernels/act_fake_quant.h"
#include "kernels/binarize.h"
#include "kernels/fake_float.h"
#include "kernels/fake_quant.h"
#include "kernels/fake_quant_lsq.h"
#include "kernels/fake_quant_weights.h"
#include "kernels/mean_magnitude.h"
#include "kernels/minmax.h"
#include "kernels/pack_bits.h"
#include "kernels/qparams.h"
#include "kernels/quantize.h"
#include "kernels/straight_through.h"
#include "kernels/update_ranges.h"

namespace bitpare {

template <class T>
constexpr DType kDType = std::is_same_v<T, float>  ? DType::float32
                         : std::is_same_v<T, Half> ? DType::float16
                                                   : DType::bfloat16;

enum class ZeroPoint { none, integer, learned };

// Values laid out as [outer, channels, inner], with a quantizer for each channel.
struct Case {
  ReduceLayout layout;
  ZeroPoint zero_point = ZeroPoint::integer;
  Rounding rounding = Rounding::nearest;
  bool floored = false;
  float quant_min = -8, quant_max = 7;

  int64_t n() const { return layout.outer * layout.channels * layout.inner; }

  std::string name() const {
    return "[" + std::to_string(layout.outer) + ", " + std::to_string(layout.channels) + ", " +
           std::to_string(layout.inner) + "] rounding " +
           std::to_string(static_cast<int>(rounding)) + " zero point " +
           std::to_string(static_cast<int>(zero_point));
  }
};

// The quantizer's numbers; some scales are at the floor if that is allowed.
struct Numbers {
  std::vector<float> scale, learned;
  std::vector<int32_t> zero_point;
  int64_t rng[2] = {0x123456789abcdef, 42};
  Quantizer quantizer;

  explicit Numbers(const Case& c) {
    std::mt19937 random(static_cast<unsigned>(c.n()) + 3);
    for (int64_t i = 0; i < c.layout.channels; ++i) {
      bool at_floor = c.floored && random() % 8 == 0;
      scale.push_back(at_floor ? 0.0f : 0.05f + static_cast<float>(random() % 1000) / 700);
      zero_point.push_back(static_cast<int32_t>(random() % 16) - 8);
      learned.push_back(static_cast<float>(random() % 2000) / 100 - 10);
    }
    quantizer.scale = scale.data();
    if (c.zero_point == ZeroPoint::integer) quantizer.zero_point = zero_point.data();
    if (c.zero_point == ZeroPoint::learned) quantizer.learned_zero_point = learned.data();
    quantizer.channel = {c.layout.inner, c.layout.channels};
    quantizer.quant_min = c.quant_min;
    quantizer.quant_max = c.quant_max;
    quantizer.floored = c.floored;
  }
};

// Memory filled with a pattern, at an address that is aligned for T only.
template <class T>
struct Unaligned {
  explicit Unaligned(int64_t n) : bytes(static_cast<size_t>(n + 2) * sizeof(T) + 64, 0xA5) {}
  Unaligned(const std::vector<T>& values) : Unaligned(static_cast<int64_t>(values.size())) {
    if (!values.empty()) std::memcpy(data(), values.data(), values.size() * sizeof(T));
  }
  T* data() { return reinterpret_cast<T*>(bytes.data()) + 1; }
  std::vector<T> values(int64_t n) { return std::vector<T>(data(), data() + n); }
  // Returns whether the elements before and after the n that belong to it are untouched.
  bool intact(int64_t n) {
    auto* first = bytes.data();
    auto* last = reinterpret_cast<uint8_t*>(data() + n);
    bool good = true;
    for (size_t i = 0; i < sizeof(T); ++i) good &= first[i] == 0xA5 && last[i] == 0xA5;
    return good;
  }
  std::vector<uint8_t> bytes;
};

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

template <class T, class Where>
Elementwise<T> run_binarize(const Case& c, const std::vector<float>& x, Levels levels,
                            const Where& where) {
  Numbers numbers(c);
  numbers.quantizer.zero_point = nullptr;
  if (levels == Levels::ternary) numbers.quantizer.threshold = numbers.scale.data();
  Unaligned<T> in(narrowed<T>(x)), out(c.n());
  binarize(Binarize{in.data(), out.data(), c.n(), kDType<T>, numbers.quantizer, levels}, where);
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
  numbers.quantizer.zero_point = nullptr;
  if (levels == Levels::ternary) numbers.quantizer.threshold = numbers.scale.data();
  Unaligned<T> in(narrowed<T>(x)), gradient(narrowed<T>(dy)), out(c.n());
  auto partial = new_partial(c, 1);
  std::vector<float> ds(static_cast<size_t>(c.layout.channels));
  binarize_gradient(
      BinarizeGradient{gradient.data(), in.data(), out.data(), kDType<T>, numbers.quantizer, levels,
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

// The quantizers of a model, with 1 to 700 scales, in every state that a step can find them in.
struct States {
  std::vector<std::vector<float>> pending, range, scale;
  std::vector<std::vector<int32_t>> zero_point;
  std::vector<std::vector<int64_t>> count;
  Control control = {-8, 7, 1, 1, 0};

  explicit States(size_t size) {
    std::mt19937 random(41);
    auto number = [&] { return static_cast<float>(random() % 1000) / 100; };
    for (size_t i = 0; i < size; ++i) {
      size_t n = i % 5 == 4 ? 1 + random() % 700 : 1;
      std::vector<float> seen(2 * n), in_force(2 * n);
      for (size_t j = 0; j < n; ++j) {
        bool none = i % 3 == 2 || (n > 1 && random() % 4 == 0);
        seen[j] = none ? INFINITY : -number();
        seen[n + j] = none ? -INFINITY : number();
        in_force[j] = -number();
        in_force[n + j] = i % 7 == 6 ? NAN : number();
      }
      if (i % 4 == 3) seen[n - 1] = i % 8 == 3 ? NAN : -INFINITY;
      pending.push_back(seen);
      range.push_back(in_force);
      scale.push_back(std::vector<float>(n, 0.125f));
      zero_point.push_back(std::vector<int32_t>(n, 77));
      count.push_back({i % 2 ? 5 : 0, 9});
    }
  }

  std::vector<QuantizerState> pointers(bool zero_points) {
    std::vector<QuantizerState> all;
    for (size_t i = 0; i < pending.size(); ++i) {
      int64_t n = static_cast<int64_t>(scale[i].size());
      all.push_back({pending[i].data(), range[i].data(), scale[i].data(),
                     zero_points ? zero_point[i].data() : nullptr, count[i].data(), &control, n,
                     i % 2 ? 6.0f : 0.0f});
    }
    return all;
  }
};

inline std::vector<UpdateRule> update_rules() {
  return {{RangeUpdate::minmax, 0.0f, true, false},
          {RangeUpdate::ema, 0.1f, false, false},
          {RangeUpdate::last, 0.0f, false, true}};
}

template <class Where>
States run_update_ranges(const UpdateRule& rule, const Where& where) {
  States states(150);
  auto pointers = states.pointers(!rule.symmetric);
  update_ranges(UpdateRanges{pointers.data(), static_cast<int64_t>(pointers.size()), rule}, where);
  return states;
}

inline void expect_same(const States& got, const States& expected, const std::string& what) {
  for (size_t i = 0; i < expected.pending.size(); ++i) {
    std::string which = what + " quantizer " + std::to_string(i);
    expect_same_bits(got.pending[i], expected.pending[i], which + " pending");
    expect_same_bits(got.range[i], expected.range[i], which + " range");
    expect_same_bits(got.scale[i], expected.scale[i], which + " scale");
    expect_same_bits(got.zero_point[i], expected.zero_point[i], which + " zero point");
    expect_same_bits(got.count[i], expected.count[i], which + " count");
  }
}

// The weights of a model: their sizes, the number of their scales, and their controls.
struct WeightCase {
  int64_t scales, length;
  int32_t observe = 1, quantize = 1;
  bool odd = false;  // with NaN and infinities
};

// More weights than one CUDA launch takes, with rows of every length.
inline std::vector<WeightCase> weight_cases() {
  std::vector<WeightCase> cases = {{1, 40000},
                                   {3, 20000},
                                   {1, 0},
                                   {4, 0},
                                   {1, 1},
                                   {200, 9},
                                   {64, 33, 0, 1},
                                   {1, 3000, 0, 1},
                                   {16, 27, 1, 0},
                                   {5, 130, 1, 1, true},
                                   {1, 5000, 1, 1, true}};
  for (int64_t i = 1; i < 60; ++i) cases.push_back({i % 7 == 0 ? 1 : i, 3 * i});
  return cases;
}

template <class T>
struct QuantizedWeight {
  std::vector<T> y;
  std::vector<uint64_t> inside;
  std::vector<float> scale;
};

inline std::vector<float> weight_values(const WeightCase& c) {
  auto seed = static_cast<unsigned>(c.scales * 31 + c.length);
  return c.odd ? test_values(c.scales * c.length, seed) : finite_values(c.scales * c.length, seed);
}

inline Control control_of(const WeightCase& c) { return {-8, 7, c.observe, c.quantize, 0}; }

template <class T, class Where>
std::vector<QuantizedWeight<T>> run_weights(bool power_of_two, bool at_once, const Where& where) {
  auto cases = weight_cases();
  std::vector<QuantizedWeight<T>> results;
  std::vector<std::vector<T>> x;
  std::vector<Control> controls;
  std::vector<Weight> weights;
  std::vector<int32_t> widest(2 * cases.size());
  for (const WeightCase& c : cases) {
    auto n = static_cast<size_t>(c.scales * c.length);
    auto words = new_words(c.scales * c.length);
    words.push_back(~0ull);
    x.push_back(narrowed<T>(weight_values(c)));
    controls.push_back(control_of(c));
    results.push_back(
        {std::vector<T>(n), words, std::vector<float>(static_cast<size_t>(c.scales), 0.25f)});
  }
  for (size_t i = 0; i < cases.size(); ++i) {
    weights.push_back({x[i].data(), results[i].y.data(), results[i].inside.data(),
                       results[i].scale.data(), &controls[i], &widest[2 * i],
                       cases[i].scales * cases[i].length, cases[i].scales, kDType<T>});
  }
  auto size = static_cast<int64_t>(weights.size());
  if (at_once) {
    scale_and_fake_quant_weights(WeightScales{weights.data(), size, power_of_two}, where);
  } else {
    weight_scales(WeightScales{weights.data(), size, power_of_two}, where);
    fake_quant_weights(FakeQuantWeights{weights.data(), size}, where);
  }
  return results;
}

template <class T>
void expect_same(const std::vector<QuantizedWeight<T>>& got,
                 const std::vector<QuantizedWeight<T>>& expected, const std::string& what) {
  for (size_t i = 0; i < expected.size(); ++i) {
    std::string which = what + " weight " + std::to_string(i);
    expect_same_bits(got[i].scale, expected[i].scale, which + " scale");
    expect_same_bits(got[i].y, expected[i].y, which);
    expect_same_bits(got[i].inside, expected[i].inside, which + " bits");
  }
}

// Shapes with every way that channels can lie, and tails of every kind.
inline std::vector<Case> layouts() {
  std::vector<Case> cases;
  for (int64_t n : {0, 1, 3, 15, 16, 17, 63, 64, 65, 127, 128, 130, 2047, 5000}) {
    cases.push_back({{1, 1, n}});
  }
  for (ReduceLayout l : {ReduceLayout{1, 7, 64},
                         {2, 3, 100},
                         {3, 5, 49},
                         {4, 11, 9},
                         {1, 960, 9},
                         {5, 6, 2},
                         {9, 3, 1},
                         {70, 16, 1},
                         {130, 33, 1},
                         {3, 1100, 1},
                         {2, 4500, 1},
                         {2, 2, 2500},
                         {1, 40, 128},
                         {0, 4, 5},
                         {3, 4, 0}}) {
    cases.push_back({l});
  }
  return cases;
}

// Each layout, then the other modes on one of them.
inline std::vector<Case> all_cases() {
  std::vector<Case> cases = layouts();
  for (auto rounding : {Rounding::half_up, Rounding::floor, Rounding::ceil, Rounding::toward_zero,
                        Rounding::stochastic}) {
    cases.push_back({{2, 3, 100}, ZeroPoint::integer, rounding});
    cases.push_back({{1, 1, 1000}, ZeroPoint::integer, rounding});
  }
  for (auto zero_point : {ZeroPoint::none, ZeroPoint::learned}) {
    for (bool floored : {false, true}) {
      cases.push_back({{3, 5, 49}, zero_point, Rounding::nearest, floored});
      cases.push_back({{70, 20, 1}, zero_point, Rounding::nearest, floored});
    }
  }
  cases.push_back({{1, 1, 1000}, ZeroPoint::none, Rounding::nearest, false, -32768, 32767});
  cases.push_back({{1, 1, 1000}, ZeroPoint::none, Rounding::nearest, false, 0, 1});
  return cases;
}

template <class F>
void for_each_type(F f) {
  f(float{});
  f(Half{});
  f(BFloat16{});
}

}  // namespace bitpare
