// Cases of quantizers: shapes, the numbers of a quantizer, and memory that shows a write outside of
// its range.
#pragma once
#include "backends.h"
#include "math/fake_quant.h"
#include "math/reduce.h"

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
