// bn_act_fake_quant on every instruction set, and on CUDA, against math/ and the order of sums that
// math/bn_act_fake_quant.h describes, bit for bit.
#include "bn_family.h"
#include "on_cuda.h"

namespace bitpare {
namespace {

float widened(float x) { return x; }
template <class T>
float widened(T x) {
  return math::widen(x);
}

float in_pairs(std::vector<float> level) {
  while (level.size() > 1) {
    std::vector<float> next;
    for (size_t i = 0; i + 1 < level.size(); i += 2) next.push_back(level[i] + level[i + 1]);
    if (level.size() % 2) next.push_back(level.back());
    level = next;
  }
  return level[0];
}

// The sum of term(i) over the elements i of a channel.
template <class Term>
float sum_of(const ReduceLayout& l, int64_t channel, Term term) {
  std::vector<float> sums;
  if (l.inner == 1 && l.channels > 1) {
    int64_t merged = 1;
    while (l.channels < 128 && (merged * l.channels < 64 || merged * l.channels % 16)) merged *= 2;
    for (int64_t piece = 0; piece < l.outer; piece += 64 * merged) {
      for (int64_t lane = 0; lane < merged; ++lane) {
        float sum = 0;
        for (int64_t wide = 0; wide < 64; ++wide) {
          int64_t row = piece + wide * merged + lane;
          if (row < l.outer) sum += term(row * l.channels + channel);
        }
        sums.push_back(sum);
      }
    }
    return in_pairs(sums);
  }
  for (int64_t row = 0; row < l.outer; ++row) {
    for (int64_t chunk = 0; chunk < l.inner; chunk += 1024) {
      float lanes[32] = {};
      for (int64_t k = chunk; k < std::min(l.inner, chunk + 1024); ++k) {
        lanes[(k - chunk) % 32] += term((row * l.channels + channel) * l.inner + k);
      }
      for (int half = 16; half > 0; half /= 2) {
        for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
      }
      sums.push_back(lanes[0]);
    }
  }
  return in_pairs(sums);
}

// Applies the formulas to one value, with the mode's template picked at run time.
math::Activated<float> activated(const BnCase& c, float v, const math::ActivationGrid<float>& g) {
  bool active = is_mask(c.activation) && c.activation != Activation::none;
  if (c.quantize) {
    return active ? math::activated<true, true>(v, g) : math::activated<false, true>(v, g);
  }
  return active ? math::activated<true, false>(v, g) : math::activated<false, false>(v, g);
}

template <class T>
BnResult<T> expected_of(const BnCase& c, const std::vector<T>& x, const std::vector<T>& dy) {
  const ReduceLayout& l = c.layout;
  int64_t count = l.outer * l.inner;
  BnState s(l.channels);
  Quantizer q;
  q.scale = &s.scale;
  q.quant_min = -8, q.quant_max = 7;
  if (c.zero_point) q.zero_point = &s.zero_point;
  auto grid = math::activation_grid(q, c.activation);
  auto at = [](const std::vector<T>& values, int64_t i) {
    return widened(values[static_cast<size_t>(i)]);
  };
  std::vector<math::Normalization> norm;
  auto channels = static_cast<size_t>(l.channels);
  BnResult<T> r;
  r.statistics.resize(4 * channels + 1, c.of_batch() ? 1.0f : 0.0f);
  for (size_t ch = 0; ch < channels; ++ch) {
    auto channel = static_cast<int64_t>(ch);
    math::Moments m = {s.mean[ch], s.variance[ch]};
    if (c.of_batch()) {
      float shift = at(x, channel * l.inner);
      auto d = [&](int64_t i) { return at(x, i) - shift; };
      m = math::moments_of(shift, sum_of(l, channel, d),
                           sum_of(l, channel, [&](int64_t i) { return d(i) * d(i); }), count);
      s.mean[ch] = math::running(s.mean[ch], m.mean, kMomentum);
      s.variance[ch] = math::running(s.variance[ch], math::unbiased(m.variance, count), kMomentum);
    }
    norm.push_back(
        math::normalization(m, c.affine ? s.weight[ch] : 1.0f, c.affine ? s.bias[ch] : 0.0f, kEps));
    r.statistics[ch] = norm.back().mean;
    r.statistics[channels + ch] = norm.back().inverse_std;
    r.statistics[2 * channels + 1 + ch] = norm.back().slope;
    r.statistics[3 * channels + 1 + ch] = norm.back().offset;
  }
  r.inside.resize(static_cast<size_t>((c.n() + 63) / 64));
  r.y.resize(x.size());
  r.dx.resize(x.size());
  std::vector<float> dv(x.size());
  float range[3] = {INFINITY, -INFINITY, 0.0f};
  for (int64_t i = 0; i < c.n(); ++i) {
    auto k = static_cast<size_t>(i);
    const auto& n = norm[static_cast<size_t>(i / l.inner % l.channels)];
    float v = n.slope * at(x, i) + n.offset, slope = 1.0f;
    if (c.activation == Activation::hardswish) {
      slope = math::activation_slope<Activation::hardswish>(v);
      v = math::activate<Activation::hardswish>(v);
    }
    auto a = activated(c, v, grid);
    math::narrow(a.y, &r.y[k]);
    r.inside[k / 64] |= static_cast<uint64_t>(a.rounded == a.code) << (k % 64);
    dv[k] = (a.rounded == a.code ? at(dy, i) : 0.0f) * slope;
    float w = math::clamp(v, grid.least, grid.most);
    for (int t = 0; t < 3; ++t) range[t] = math::MinMax::combine<float>(t, range[t], w);
  }
  if (c.observe) math::fold_pending(s.pending, s.pending + 1, range);
  for (size_t ch = 0; ch < channels; ++ch) {
    auto channel = static_cast<int64_t>(ch);
    const auto& n = norm[ch];
    float bias = sum_of(l, channel, [&](int64_t i) { return dv[static_cast<size_t>(i)]; });
    float products = sum_of(
        l, channel, [&](int64_t i) { return dv[static_cast<size_t>(i)] * (at(x, i) - n.mean); });
    auto g = math::normalization_gradient(bias, products, c.affine ? s.weight[ch] : 1.0f,
                                          n.inverse_std, count);
    r.weight_gradient.push_back(g.weight);
    r.bias_gradient.push_back(g.bias);
    for (int64_t o = 0; o < l.outer; ++o) {
      for (int64_t j = 0; j < l.inner; ++j) {
        int64_t i = (o * l.channels + channel) * l.inner + j;
        auto k = static_cast<size_t>(i);
        float dx = c.of_batch() ? g.slope * dv[k] + ((at(x, i) - n.mean) * g.tilt + g.offset)
                                : g.slope * dv[k];
        math::narrow(dx, &r.dx[k]);
      }
    }
  }
  r.mean = s.mean, r.variance = s.variance, r.pending = {s.pending[0], s.pending[1]};
  r.batches = s.batches + (c.of_batch() ? 1 : 0);
  return r;
}

TEST(BnActFakeQuant, IsTheFormulaInTheFixedOrder) {
  for_each_type([]<class T>(T) {
    auto check_case = [](const BnCase& c, bool and_cuda) {
      auto x = bn_values(c), dy = finite_values(c.n(), 26);
      auto expected = expected_of(c, narrowed<T>(x), narrowed<T>(dy));
      auto check = [&](const auto& where, const std::string& name) {
        expect_same(run_bn<T>(c, x, dy, where), expected, name + " " + c.name());
      };
      everywhere(and_cuda, check);
    };
    for (const BnCase& c : bn_layouts()) check_case(c, true);
    for (const BnCase& c : bn_modes()) check_case(c, std::is_same_v<T, float>);
  });
}

// Enough pieces for a tile of several, and more tiles than a thread's share.
TEST(BnActFakeQuant, ManyPiecesToATile) {
  for (ReduceLayout l : {ReduceLayout{9000, 128, 1}, {20000, 20, 1}, {3, 4, 30000}}) {
    BnCase c = {l};
    auto x = bn_values(c), dy = finite_values(c.n(), 26);
    auto expected = expected_of(c, x, dy);
    on_every_cpu([&](const auto& cpu, const std::string& name) {
      expect_same(run_bn<float>(c, x, dy, cpu), expected, name + " " + c.name());
    });
  }
}

// More sums than a CUDA block has threads, so that its runs are longer than one.
TEST(BnActFakeQuant, MoreSumsThanThreads) {
  for (ReduceLayout l : {ReduceLayout{17000, 2, 1}, {300, 2, 3}}) {
    BnCase c = {l};
    auto x = bn_values(c), dy = finite_values(c.n(), 26);
    auto expected = expected_of(c, x, dy);
    everywhere([&](const auto& where, const std::string& name) {
      expect_same(run_bn<float>(c, x, dy, where), expected, name + " " + c.name());
    });
  }
}

// dx may lie over dy.
TEST(BnActFakeQuant, GradientInPlace) {
  BnCase c = {{300, 24, 1}};
  auto x = bn_values(c), dy = finite_values(c.n(), 27);
  on_every_cpu([&](const auto& cpu, const std::string& name) {
    auto expected = run_bn<float>(c, x, dy, cpu);
    BnState s(24);
    std::vector<float> over(dy), scratch(static_cast<size_t>(layout::bn_floats(c.layout)));
    std::vector<float> dweight(24), dbias(24);
    bn_act_fake_quant_gradient(
        BnActFakeQuantGradient{over.data(), x.data(), over.data(), expected.inside.data(),
                               DType::float32, c.layout, s.weight.data(),
                               expected.statistics.data(), dweight.data(), dbias.data(),
                               scratch.data(), c.activation},
        cpu);
    expect_same_bits(over, expected.dx, name);
  });
}

TEST(BnMath, MergedRows) {
  for (auto [channels, rows] : std::vector<std::pair<int64_t, int64_t>>{{2, 32},
                                                                        {3, 32},
                                                                        {8, 8},
                                                                        {16, 4},
                                                                        {24, 4},
                                                                        {32, 2},
                                                                        {33, 16},
                                                                        {40, 2},
                                                                        {64, 1},
                                                                        {72, 2},
                                                                        {96, 1},
                                                                        {127, 16},
                                                                        {128, 1},
                                                                        {200, 1},
                                                                        {960, 1}}) {
    EXPECT_EQ(math::merged_rows(channels), rows) << channels;
  }
}

TEST(BnMath, ByHand) {
  // 1, 2, 3, 6 about a shift of 2: sum 4, squares 18.
  math::Moments m = math::moments_of(2.0f, 4.0f, 18.0f, 4);
  EXPECT_EQ(m.mean, 3.0);
  EXPECT_EQ(m.variance, 3.5);
  EXPECT_EQ(math::unbiased(2.0, 5), 2.5);
  EXPECT_EQ(math::running(2.0f, 4.0, 0.25), 2.5f);
  auto n = math::normalization({3.0, 3.0}, 4.0f, 0.5f, 1.0);
  EXPECT_EQ(n.slope, 2.0f);
  EXPECT_EQ(n.offset, -5.5f);
  EXPECT_EQ(n.inverse_std, 0.5f);
  auto g = math::normalization_gradient(8.0f, 2.0f, 4.0f, 0.5f, 4);
  EXPECT_EQ(g.slope, 2.0f);
  EXPECT_EQ(g.tilt, -0.25f);
  EXPECT_EQ(g.offset, -4.0f);
  EXPECT_EQ(g.weight, 1.0f);
  EXPECT_EQ(g.bias, 8.0f);
}

// The gradient passes strictly inside the activation, on its grid, and nowhere else.
TEST(BnMath, WhereTheGradientPasses) {
  float scale = 1.0f, tiny = 1e-45f, below_six = 5.9999995f;
  Quantizer q;
  q.scale = &scale;
  q.quant_min = -8, q.quant_max = 7;
  auto passes = [&]<bool kActive, bool kQuantize>(Activation act, float v) {
    auto a = math::activated<kActive, kQuantize>(v, math::activation_grid(q, act));
    return a.rounded == a.code;
  };
  for (float v : {-INFINITY, -9.0f, -1.0f, -0.0f, 0.0f, tiny, 1.0f, below_six, 6.0f, 7.0f, 7.6f,
                  INFINITY, NAN}) {
    bool on_grid = v >= -8 && v <= 7;
    EXPECT_EQ((passes.operator()<false, true>(Activation::none, v)), on_grid) << v;
    EXPECT_EQ((passes.operator()<true, true>(Activation::relu, v)), v > 0 && on_grid) << v;
    EXPECT_EQ((passes.operator()<true, true>(Activation::relu6, v)), v > 0 && v < 6) << v;
    EXPECT_TRUE((passes.operator()<false, false>(Activation::none, v))) << v;
    EXPECT_EQ((passes.operator()<true, false>(Activation::relu, v)), v > 0) << v;
    EXPECT_EQ((passes.operator()<true, false>(Activation::relu6, v)), v > 0 && v < 6) << v;
  }
}

}  // namespace
}  // namespace bitpare
