// Runs the kernels that take lists, of quantizers and of weights, on a given device.
#pragma once
#include "cases.h"
#include "kernels/fake_quant_weights.h"
#include "kernels/update_ranges.h"

namespace bitpare {

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

}  // namespace bitpare
