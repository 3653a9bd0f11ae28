// Cases of bn_act_fake_quant: forward, then backward with what that saved.
#pragma once
#include "families.h"
#include "kernels/bn_act_fake_quant.h"

namespace bitpare {

struct BnCase {
  ReduceLayout layout;
  Activation activation = Activation::relu6;
  bool training = true, observe = true, quantize = true, freeze = false;
  bool affine = true, zero_point = true;

  int64_t n() const { return layout.outer * layout.channels * layout.inner; }
  Control control() const { return {-8, 7, observe, quantize, freeze}; }
  bool of_batch() const { return training && !freeze; }
  std::string name() const {
    return "[" + std::to_string(layout.outer) + ", " + std::to_string(layout.channels) + ", " +
           std::to_string(layout.inner) + "] activation " +
           std::to_string(static_cast<int>(activation)) + " training " + std::to_string(training) +
           " observe " + std::to_string(observe) + " quantize " + std::to_string(quantize) +
           " freeze " + std::to_string(freeze) + " affine " + std::to_string(affine);
  }
};

// The state of a BatchNorm and a quantizer, before and after.
struct BnState {
  explicit BnState(int64_t channels)
      : weight(finite_values(channels, 21)),
        bias(finite_values(channels, 22, 1.0f)),
        mean(finite_values(channels, 23, 1.0f)),
        variance(finite_values(channels, 24, 1.0f)) {
    for (float& v : variance) v = v * v + 0.1f;
  }
  std::vector<float> weight, bias, mean, variance;
  float scale = 0.37f;
  int32_t zero_point = -2;
  int64_t batches = 41;
  float pending[2] = {0.25f, 0.5f};
};

constexpr double kMomentum = 0.1, kEps = 1e-5;

template <class T>
struct BnResult {
  std::vector<T> y, dx;
  std::vector<uint64_t> inside;
  std::vector<float> mean, variance, pending, statistics, weight_gradient, bias_gradient;
  int64_t batches = 0;
  bool intact = true;
};

template <class T>
void expect_same(const BnResult<T>& got, const BnResult<T>& expected, const std::string& what) {
  EXPECT_TRUE(got.intact) << what << " wrote outside its range";
  expect_same_bits(got.mean, expected.mean, what + " running mean");
  expect_same_bits(got.variance, expected.variance, what + " running variance");
  expect_same_bits(got.statistics, expected.statistics, what + " statistics");
  expect_same_bits(got.y, expected.y, what + " y");
  expect_same_bits(got.inside, expected.inside, what + " bits");
  expect_same_bits(got.pending, expected.pending, what + " pending");
  expect_same_bits(got.weight_gradient, expected.weight_gradient, what + " weight gradient");
  expect_same_bits(got.bias_gradient, expected.bias_gradient, what + " bias gradient");
  expect_same_bits(got.dx, expected.dx, what + " dx");
  EXPECT_EQ(got.batches, expected.batches) << what;
}

template <class T, class Where>
BnResult<T> run_bn(const BnCase& c, const std::vector<float>& x, const std::vector<float>& dy,
                   const Where& where) {
  int64_t channels = c.layout.channels, n = c.n(), floats = layout::bn_floats(c.layout);
  BnState s(channels);
  Control control = c.control();
  Quantizer q;
  q.scale = &s.scale;
  if (c.zero_point) q.zero_point = &s.zero_point;
  Unaligned<T> in(narrowed<T>(x)), gradient(narrowed<T>(dy)), out(n), dx(n);
  Unaligned<float> scratch(std::vector<float>(static_cast<size_t>(floats), NAN));
  Unaligned<float> statistics(layout::bn_statistics_floats(channels));
  auto bits = new_words(n);
  const float* weight = c.affine ? s.weight.data() : nullptr;
  BnActFakeQuant args = {
      .x = in.data(),
      .y = out.data(),
      .inside = bits.data(),
      .dtype = kDType<T>,
      .layout = c.layout,
      .weight = weight,
      .bias = c.affine ? s.bias.data() : nullptr,
      .running_mean = s.mean.data(),
      .running_var = s.variance.data(),
      .num_batches_tracked = &s.batches,
      .quantizer = q,
      .control = &control,
      .pending = s.pending,
      .statistics = statistics.data(),
      .scratch = scratch.data(),
      .activation = c.activation,
      .training = c.training,
      .momentum = kMomentum,
      .eps = kEps,
  };
  bn_act_fake_quant(args, where);
  bool intact = out.intact(n) && scratch.intact(floats) &&
                statistics.intact(layout::bn_statistics_floats(channels));
  scratch = Unaligned<float>(std::vector<float>(static_cast<size_t>(floats), NAN));
  Unaligned<float> dweight(channels), dbias(channels);
  BnActFakeQuantGradient gradient_args = {
      .dy = gradient.data(),
      .x = in.data(),
      .dx = dx.data(),
      .inside = bits.data(),
      .dtype = kDType<T>,
      .layout = c.layout,
      .weight = weight,
      .statistics = statistics.data(),
      .weight_gradient = dweight.data(),
      .bias_gradient = dbias.data(),
      .scratch = scratch.data(),
      .activation = c.activation,
  };
  bn_act_fake_quant_gradient(gradient_args, where);
  intact &=
      dx.intact(n) && scratch.intact(floats) && dweight.intact(channels) && dbias.intact(channels);
  return {out.values(n),
          dx.values(n),
          bits,
          s.mean,
          s.variance,
          {s.pending[0], s.pending[1]},
          statistics.values(layout::bn_statistics_floats(channels)),
          dweight.values(channels),
          dbias.values(channels),
          s.batches,
          intact};
}

// Values of channels with means of their own, so that shifts and statistics matter; with odd ones
// where the statistics are not the batch's.
inline std::vector<float> bn_values(const BnCase& c) {
  auto x = c.of_batch() ? finite_values(c.n(), 25) : test_values(c.n(), 25);
  for (int64_t i = 0; i < c.n(); ++i) {
    x[static_cast<size_t>(i)] += static_cast<float>(i / c.layout.inner % c.layout.channels % 7);
  }
  return x;
}

// Every way channels can lie, tails of every kind, several pieces.
inline std::vector<BnCase> bn_layouts() {
  std::vector<BnCase> cases;
  for (const Case& c : layouts()) {
    if (c.n() > 0) cases.push_back({c.layout});
  }
  for (ReduceLayout l : {ReduceLayout{300, 24, 1},
                         {1030, 16, 1},
                         {70, 100, 1},
                         {40, 136, 1},
                         {2200, 8, 1},
                         {6, 20, 49},
                         {2, 3, 1030},
                         {40, 6, 100}}) {
    cases.push_back({l});
  }
  return cases;
}

// Every switch and activation, in both layouts.
inline std::vector<BnCase> bn_modes() {
  std::vector<BnCase> cases;
  for (ReduceLayout l : {ReduceLayout{130, 12, 1}, {3, 5, 49}}) {
    for (auto activation :
         {Activation::none, Activation::relu, Activation::relu6, Activation::hardswish}) {
      for (int modes = 0; modes < 32; ++modes) {
        auto on = [&](int mode) { return (modes >> mode & 1) != 0; };
        cases.push_back({l, activation, on(0), on(1), on(2), on(3), on(4), on(4)});
      }
    }
  }
  return cases;
}

}  // namespace bitpare
