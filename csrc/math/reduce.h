// One order of addition for every sum of floats, so that CPU and GPU give the same bits whatever
// the number of threads.
//
// The elements of one sum lie in rows: runs of neighbours in memory. A row is cut into chunks of
// kSumChunk from its start. In a chunk, element k is added to lane k % kSumLanes in ascending
// order, starting from 0; the lanes are folded by halves (lane l + lane l + 16, then 8, 4, 2, 1).
// The sums of the chunks, row after row, are then added in pairs of neighbours, level by level; an
// odd one at the end of a level goes up as it is.
//
// If neighbours in memory belong to different sums (channels innermost), a chunk is
// kSumRows rows, added in ascending order, channel by channel; the chunks are added in pairs.
// math/bn_act_fake_quant.h merges rows of few channels first.
#pragma once
#include "math/value.h"

namespace bitpare {

constexpr int64_t kSumLanes = 32;
constexpr int64_t kSumChunk = 1024;
constexpr int64_t kSumRows = 64;

// How the elements of a reduction lie in memory: element (o, c, i) at (o * channels + c) * inner +
// i belongs to result c.
struct ReduceLayout {
  int64_t outer = 1;
  int64_t channels = 1;
  int64_t inner = 1;
};

namespace math {

BITPARE_INLINE bool channels_innermost(const ReduceLayout& l) {
  return l.inner == 1 && l.channels > 1;
}

BITPARE_INLINE int64_t chunks_of(int64_t n) { return (n + kSumChunk - 1) / kSumChunk; }

BITPARE_INLINE int64_t chunks_per_row(const ReduceLayout& l) { return chunks_of(l.inner); }

// Partial results of each channel.
BITPARE_INLINE int64_t pieces_of(const ReduceLayout& l) {
  if (channels_innermost(l)) return (l.outer + kSumRows - 1) / kSumRows;
  return l.outer * chunks_per_row(l);
}

// The way terms are accumulated: `identity` and `combine` for each of a formula's terms.
struct Sum {
  template <class V>
  BITPARE_INLINE V identity(int) {
    return splat<V>(0.0f);
  }
  template <class V>
  BITPARE_INLINE V combine(int, V a, V b) {
    return a + b;
  }
};

// lanes: kSumLanes partial results, overwritten.
template <class Rule>
BITPARE_INLINE float fold_lanes(int term, float* lanes) {
  for (int64_t half = kSumLanes / 2; half > 0; half /= 2) {
    for (int64_t l = 0; l < half; ++l) {
      lanes[l] = Rule::template combine<float>(term, lanes[l], lanes[l + half]);
    }
  }
  return lanes[0];
}

// Folds count values `stride` apart in pairs, overwriting them.
template <class Rule>
BITPARE_INLINE float fold_pairs(int term, float* values, int64_t count, int64_t stride) {
  if (count == 0) return Rule::template identity<float>(term);
  for (; count > 1; count = (count + 1) / 2) {
    for (int64_t i = 0; i < count / 2; ++i) {
      values[i * stride] =
          Rule::template combine<float>(term, values[2 * i * stride], values[(2 * i + 1) * stride]);
    }
    if (count % 2) values[(count / 2) * stride] = values[(count - 1) * stride];
  }
  return values[0];
}

}  // namespace math
}  // namespace bitpare
