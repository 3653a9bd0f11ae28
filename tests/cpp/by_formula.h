// A second implementation of what kernels compute, which their results must equal: the formulas
// applied element by element, and the order of reductions.
#pragma once
#include "families.h"

namespace bitpare {

template <class T>
float widened_once(float x) {
  T y;
  math::narrow(x, &y);
  return math::widen(y);
}

// The channel of element i.
inline int64_t channel_of(const Case& c, int64_t i) {
  return i / c.layout.inner % c.layout.channels;
}

// y[i] = f(i, x, affine, &inside) by the formula alone.
template <class T, class F>
Elementwise<T> elementwise(const Case& c, const std::vector<float>& x, const Quantizer& q, F f) {
  Elementwise<T> result = {std::vector<T>(x.size()), new_words(c.n()), true};
  for (auto& word : result.bits) word = 0;
  for (int64_t i = 0; i < c.n(); ++i) {
    bool inside = false;
    auto k = static_cast<size_t>(i);
    float y = f(i, widened_once<T>(x[k]), math::affine_of_channel(q, channel_of(c, i)), &inside);
    math::narrow(y, &result.y[k]);
    result.bits[k / 64] |= static_cast<uint64_t>(inside) << (k % 64);
  }
  return result;
}

template <class T>
void expect_same(const Elementwise<T>& got, const Elementwise<T>& expected,
                 const std::string& what) {
  EXPECT_TRUE(got.intact) << what << " wrote outside its range";
  expect_same_bits(got.y, expected.y, what);
  if (!got.bits.empty()) expect_same_bits(got.bits, expected.bits, what + " bits");
}

// A reduction written from the description in math/reduce.h: term(t, i) is element i's term t.
template <class Rule, class Term>
std::vector<float> reduced(const Case& c, int t, Term term) {
  const ReduceLayout& l = c.layout;
  std::vector<float> result;
  for (int64_t channel = 0; channel < l.channels; ++channel) {
    std::vector<float> level;
    if (l.inner == 1 && l.channels > 1) {
      for (int64_t row = 0; row < l.outer; row += kSumRows) {
        float sum = Rule::template identity<float>(t);
        for (int64_t r = row; r < std::min(l.outer, row + kSumRows); ++r) {
          sum = Rule::template combine<float>(t, sum, term(r * l.channels + channel));
        }
        level.push_back(sum);
      }
    } else {
      for (int64_t o = 0; o < l.outer; ++o) {
        for (int64_t first = 0; first < l.inner; first += kSumChunk) {
          std::vector<float> lanes(kSumLanes, Rule::template identity<float>(t));
          for (int64_t k = first; k < std::min(l.inner, first + kSumChunk); ++k) {
            float& lane = lanes[static_cast<size_t>((k - first) % kSumLanes)];
            lane = Rule::template combine<float>(t, lane,
                                                 term((o * l.channels + channel) * l.inner + k));
          }
          for (size_t half = kSumLanes / 2; half > 0; half /= 2) {
            for (size_t i = 0; i < half; ++i) {
              lanes[i] = Rule::template combine<float>(t, lanes[i], lanes[i + half]);
            }
          }
          level.push_back(lanes[0]);
        }
      }
    }
    while (level.size() > 1) {
      std::vector<float> next;
      for (size_t i = 0; i + 1 < level.size(); i += 2) {
        next.push_back(Rule::template combine<float>(t, level[i], level[i + 1]));
      }
      if (level.size() % 2) next.push_back(level.back());
      level = next;
    }
    result.push_back(level.empty() ? Rule::template identity<float>(t) : level[0]);
  }
  return result;
}

}  // namespace bitpare
