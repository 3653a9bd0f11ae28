// The statistics that bn_act_fake_quant leaves for its backward pass, and its workspace.
#pragma once
#include "math/bn_act_fake_quant.h"

namespace bitpare::layout {

template <class Float>
struct BnStatistics {
  Float* mean;         // [channels]
  Float* inverse_std;  // [channels]: 1 / sqrt(variance + eps)
  Float* of_batch;     // [1]: 1 where those are the batch's, 0 where they are the running ones
  Float* slope;        // [channels]: v = slope * x + offset
  Float* offset;       // [channels]
};

template <class Int>
BITPARE_INLINE Int bn_statistics_floats(const Int& channels) {
  return channels * 4 + 1;
}

template <class Float>
BITPARE_INLINE BnStatistics<Float> bn_statistics(Float* statistics, int64_t channels) {
  Float* slope = statistics + 2 * channels + 1;
  return {statistics, statistics + channels, statistics + 2 * channels, slope, slope + channels};
}

// Up to kBnTables values for each channel: on the CPU a table holds them for each column of a wide
// row, and for as many more as a block of 64 elements can reach beyond its end.
constexpr int kBnTables = 6;
// Elements that have a range of their own.
constexpr int64_t kBnPart = 2048;

struct BnWorkspace {
  float* partial;  // [2, channel_sums, channels]
  float* tables;   // [kBnTables, table]
  float* ranges;   // [parts, 3]
  int64_t table;   // floats of a table
  int64_t period;  // columns of a wide row
};

BITPARE_INLINE BnWorkspace bn_workspace(float* scratch, const ReduceLayout& l) {
  int64_t period = math::merged_rows(l.channels) * l.channels, table = period + 64;
  float* tables = scratch + 2 * math::channel_sums(l) * l.channels;
  return {scratch, tables, tables + kBnTables * table, table, period};
}

BITPARE_INLINE int64_t bn_floats(const ReduceLayout& l) {
  int64_t n = l.outer * l.channels * l.inner, period = math::merged_rows(l.channels) * l.channels;
  return 2 * math::channel_sums(l) * l.channels + kBnTables * (period + 64) +
         3 * ((n + kBnPart - 1) / kBnPart);
}

}  // namespace bitpare::layout
