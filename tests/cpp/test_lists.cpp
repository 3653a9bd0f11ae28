// Kernels that take lists, on every instruction set and on CUDA, against the formulas in math/, bit
// for bit.
#include "by_formula.h"
#include "list_families.h"
#include "on_cuda.h"

namespace bitpare {
namespace {

// Updates one quantizer as the header describes it.
void update_by_hand(States& s, size_t i, const UpdateRule& rule) {
  auto &pending = s.pending[i], &range = s.range[i];
  size_t n = s.scale[i].size();
  bool any = false, broken = false;
  for (size_t j = 0; j < n; ++j) {
    bool finite = std::isfinite(pending[j]) && std::isfinite(pending[n + j]);
    bool none = pending[j] == INFINITY && pending[n + j] == -INFINITY;
    any |= finite;
    broken |= !finite && !none;
  }
  bool merge = any && !broken, first = s.count[i][0] == 0;
  for (size_t j = 0; j < n; ++j) {
    bool valid = range[j] <= range[n + j];
    if (merge && std::isfinite(pending[j])) {
      for (size_t at : {j, n + j}) {
        int term = at == j ? 0 : 1;
        int64_t merges = valid ? s.count[i][0] : 0;
        range[at] = math::merged_limit(rule, term, range[at], pending[at], merges);
      }
    }
    if ((merge || !first) && range[j] <= range[n + j]) {
      RangeRule grid = {-8, 7, rule.symmetric, rule.power_of_two, i % 2 ? 6.0f : 0.0f};
      auto p = math::qparams(range[j], range[n + j], grid);
      s.scale[i][j] = p.scale;
      if (!rule.symmetric) s.zero_point[i][j] = p.zero_point;
    }
    pending[j] = INFINITY;
    pending[n + j] = -INFINITY;
  }
  s.count[i][0] += merge;
  s.count[i][1] += broken;
}

TEST(UpdateRanges, IsTheFormula) {
  for (const UpdateRule& rule : update_rules()) {
    States expected(150);
    for (size_t i = 0; i < expected.pending.size(); ++i) update_by_hand(expected, i, rule);
    everywhere([&](const auto& where, const std::string& name) {
      expect_same(run_update_ranges(rule, where), expected, name);
    });
  }
}

// Quantizes one weight by the formulas for a single value.
template <class T>
QuantizedWeight<T> weight_by_hand(const WeightCase& c, bool power_of_two) {
  auto x = weight_values(c);
  auto n = static_cast<size_t>(c.scales * c.length), length = static_cast<size_t>(c.length);
  QuantizedWeight<T> result = {std::vector<T>(n), std::vector<uint64_t>((n + 63) / 64 + 1),
                               std::vector<float>(static_cast<size_t>(c.scales), 0.25f)};
  for (size_t i = 0; i < n; ++i) x[i] = widened_once<T>(x[i]);
  if (c.observe && n > 0) {
    for (size_t s = 0; s < result.scale.size(); ++s) {
      float widest = 0;
      for (size_t i = s * length; i < (s + 1) * length; ++i) {
        if (!(std::fabs(x[i]) <= widest)) widest = widest != widest ? widest : std::fabs(x[i]);
      }
      result.scale[s] = math::qparams(-widest, widest, {-8, 7, true, power_of_two}).scale;
    }
  }
  for (size_t i = 0; i < n; ++i) {
    auto a = math::affine(result.scale[i / length], 0.0f, Quantizer{});
    auto code = math::quantize<Rounding::nearest>(x[i], a, -8.0f, 7.0f, 0.0f);
    bool inside = !c.quantize || code.rounded == code.code;
    math::narrow(c.quantize ? math::dequantize(code.code, a) : x[i], &result.y[i]);
    result.inside[i / 64] |= static_cast<uint64_t>(inside) << (i % 64);
    if (!inside) result.inside.back() = 1;
  }
  return result;
}

TEST(FakeQuantWeights, IsTheFormula) {
  for_each_type([]<class T>(T) {
    for (bool power_of_two : {false, true}) {
      std::vector<QuantizedWeight<T>> expected;
      for (const auto& c : weight_cases()) expected.push_back(weight_by_hand<T>(c, power_of_two));
      for (bool at_once : {false, true}) {
        auto check = [&](const auto& where, const std::string& name) {
          expect_same(run_weights<T>(power_of_two, at_once, where), expected, name);
        };
        everywhere(at_once && !power_of_two, check);
      }
    }
  });
}

}  // namespace
}  // namespace bitpare
