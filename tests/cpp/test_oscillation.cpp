// track_oscillations: the formula by hand, every CPU kernel and the CUDA one on the host against
// it.
#include "families.h"
#include "kernels/track_oscillations.h"
#include "on_cuda.h"

namespace bitpare {
namespace {

const Control kGrid = {-4, 3, 1, 1, 0};

// Weights of one moment, in units of the scale, and the states they lead to.
math::Oscillation<float> after(const std::vector<float>& weights, float threshold) {
  math::Affine<float> unit = {1.0f, 1.0f, 0.0f};
  auto o = math::first_look(weights[0], unit, -4.0f, 3.0f);
  for (size_t i = 1; i < weights.size(); ++i) {
    o.weight = weights[i];
    o = math::next_look(o, unit, -4.0f, 3.0f, 0.5f, threshold);
  }
  return o;
}

TEST(Oscillation, ByHand) {
  auto still = after({0.2f, 0.3f, -0.4f}, 0.1f);
  EXPECT_EQ(still.frequency, 0.0f);
  EXPECT_EQ(still.turn, 0.0f);
  auto rising = after({0.2f, 0.8f, 1.9f}, 0.1f);  // two changes of one direction
  EXPECT_EQ(rising.frequency, 0.0f);
  EXPECT_EQ(rising.turn, 1.0f);
  EXPECT_EQ(rising.code, 2.0f);
  EXPECT_EQ(rising.mean, 1.25f);                      // of 0, 1, 2 at a half
  auto back = after({0.2f, 0.8f, 0.7f, 0.4f}, 0.6f);  // the direction is remembered over a pause
  EXPECT_EQ(back.frequency, 0.5f);
  EXPECT_EQ(back.turn, -1.0f);
  EXPECT_EQ(back.weight, 0.4f);
  auto frozen = after({0.2f, 0.8f, 0.4f, 9.0f}, 0.4f);
  EXPECT_EQ(frozen.turn, math::kFrozen);
  EXPECT_EQ(frozen.code, 0.0f);  // the mean of 0, 1, 0 at a half is 0.25
  EXPECT_EQ(frozen.weight, 0.0f);
  EXPECT_EQ(frozen.frequency, 0.5f);
  auto odd = after({NAN, NAN, 1.2f}, 0.1f);
  EXPECT_EQ(odd.code, 1.0f);
  EXPECT_EQ(odd.turn, 1.0f);
}

template <class T>
struct Tracked {
  std::vector<T> weight;
  std::vector<int16_t> code;
  std::vector<int8_t> turn;
  std::vector<float> frequency, mean;
  bool intact = true;
};

template <class T>
void expect_same(const Tracked<T>& got, const Tracked<T>& expected, const std::string& what) {
  EXPECT_TRUE(got.intact) << what << " wrote outside its range";
  expect_same_bits(got.weight, expected.weight, what + " weight");
  EXPECT_EQ(got.code, expected.code) << what;
  EXPECT_EQ(got.turn, expected.turn) << what;
  expect_same_bits(got.frequency, expected.frequency, what + " frequency");
  expect_same_bits(got.mean, expected.mean, what + " mean");
}

constexpr int kLooks = 6;
constexpr float kMomentum = 0.3f, kThreshold = 0.35f;

// The weights at a look: near a step, moved to and fro.
std::vector<float> weights_at(const Case& c, int look) {
  auto x = look == 2 ? test_values(c.n(), 5) : finite_values(c.n(), 5, 2.0f);
  for (size_t i = 0; i < x.size(); ++i) {
    x[i] += (look % 2 ? 0.4f : -0.4f) * static_cast<float>(i % 3);
  }
  return x;
}

template <class T, class Where>
Tracked<T> run_track(const Case& c, const Where& where) {
  Numbers numbers(c);
  int64_t n = c.n();
  Unaligned<T> weight(n);
  Unaligned<int16_t> code(n);
  Unaligned<int8_t> turn(n);
  Unaligned<float> frequency(n), mean(n);
  Control control = kGrid;
  float skip[2] = {0.0f, 1.0f};
  for (int look = 0; look < kLooks; ++look) {
    auto x = narrowed<T>(weights_at(c, look));
    // Frozen weights stay; the optimizer moved the rest.
    if (!x.empty()) std::memcpy(weight.data(), x.data(), x.size() * sizeof(T));
    TrackOscillations args = {weight.data(), kDType<T>,        n,           numbers.quantizer,
                              &control,      code.data(),      turn.data(), frequency.data(),
                              mean.data(),   &skip[look == 3], kMomentum,   kThreshold,
                              look == 0};
    track_oscillations(args, where);
  }
  bool intact =
      weight.intact(n) && code.intact(n) && turn.intact(n) && frequency.intact(n) && mean.intact(n);
  return {weight.values(n),    code.values(n), turn.values(n),
          frequency.values(n), mean.values(n), intact};
}

template <class T>
Tracked<T> expected_of(const Case& c) {
  Numbers numbers(c);
  auto n = static_cast<size_t>(c.n());
  Tracked<T> r = {std::vector<T>(n), std::vector<int16_t>(n), std::vector<int8_t>(n),
                  std::vector<float>(n), std::vector<float>(n)};
  for (int look = 0; look < kLooks; ++look) {
    auto x = narrowed<T>(weights_at(c, look));
    for (size_t i = 0; i < n; ++i) {
      auto channel = static_cast<int64_t>(i) / c.layout.inner % c.layout.channels;
      auto a = math::affine_of_channel(numbers.quantizer, channel);
      float w;
      if constexpr (std::is_same_v<T, float>) {
        w = x[i];
      } else {
        w = math::widen(x[i]);
      }
      r.weight[i] = x[i];
      if (look == 3) continue;
      math::Oscillation<float> o = {w, static_cast<float>(r.code[i]), static_cast<float>(r.turn[i]),
                                    r.frequency[i], r.mean[i]};
      o = look == 0 ? math::first_look(w, a, -4.0f, 3.0f)
                    : math::next_look(o, a, -4.0f, 3.0f, kMomentum, kThreshold);
      r.code[i] = static_cast<int16_t>(o.code);
      r.turn[i] = static_cast<int8_t>(o.turn);
      r.frequency[i] = o.frequency;
      r.mean[i] = o.mean;
      if (look > 0) math::narrow(o.weight, &r.weight[i]);
    }
  }
  return r;
}

TEST(Oscillation, IsTheFormulaEverywhere) {
  for_each_type([]<class T>(T) {
    bool any_frozen = false;
    for (Case c : layouts()) {
      c.zero_point = ZeroPoint::none;
      c.layout.outer = 1;  // weights: the scales' dimension is outermost
      auto expected = expected_of<T>(c);
      for (int8_t turn : expected.turn) any_frozen |= turn == 2;
      on_every_cpu([&](const auto& cpu, const std::string& name) {
        expect_same(run_track<T>(c, cpu), expected, name + " " + c.name());
      });
      if (c.n() > 3000) continue;
      on_cuda([&](const OnCuda& cuda, const std::string& order) {
        expect_same(run_track<T>(c, cuda), expected, order + " " + c.name());
      });
    }
    EXPECT_TRUE(any_frozen);
  });
}

}  // namespace
}  // namespace bitpare
