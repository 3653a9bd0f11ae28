#include "kernels/mse_range.h"

#include "kernels/cpu/reduce.h"

namespace bitpare {
namespace {

struct Codes {
  Vec least, most;
};

// Adds up one chunk of a row: values has kSumChunk elements, which are 0 from `count` on.
float price_row(const float* values, int64_t count, const math::Affine<Vec>& a,
                const Codes& codes) {
  Vec sums[kLaneVectors] = {};
  int64_t j = 0;
  for (; j + kSumLanes <= count; j += kSumLanes) {
#pragma GCC unroll 8
    for (int64_t v = 0; v < kLaneVectors; ++v) {
      sums[v] += math::squared_error(load(values + j + v * kWidth), a, codes.least, codes.most);
    }
  }
  for (int64_t v = 0; j + v * kWidth < count; ++v) {
    int64_t first = j + v * kWidth;
    Vec error = math::squared_error(load(values + first), a, codes.least, codes.most);
    sums[v] += lane_numbers() < static_cast<int32_t>(count - first) ? error : Vec{};
  }
  float lanes[kSumLanes];
  for (int64_t v = 0; v < kLaneVectors; ++v) store(lanes + v * kWidth, sums[v]);
  return math::fold_lanes<math::Sum>(0, lanes);
}

// Computes the cost of every candidate over chunk `task`, counted row after row.
template <class T>
void price_chunk(const MseRange& args, int64_t task, const Codes& codes) {
  const ReduceLayout& l = args.layout;
  int64_t chunks = math::chunks_per_row(l), pieces = math::pieces_of(l);
  int64_t row = task / chunks, chunk = task % chunks;
  int64_t channel = row % l.channels, piece = row / l.channels * chunks + chunk;
  int64_t count = at_most(l.inner - chunk * kSumChunk, kSumChunk);
  const T* x = static_cast<const T*>(args.x) + row * l.inner + chunk * kSumChunk;
  float values[kSumChunk];
  Vec inverse_unit = math::splat<Vec>(math::inverse_unit_of(args, channel));
  for (int64_t i = 0; i < count; i += kWidth) {
    int64_t left = count - i;
    store(values + i, (left < kWidth ? load_some(x + i, left) : load(x + i)) * inverse_unit);
  }
  for (int64_t k = 1; k <= args.steps; ++k) {
    args.partial[((k - 1) * pieces + piece) * l.channels + channel] =
        price_row(values, count, splat_affine(math::read_grid(args, k, channel)), codes);
  }
}

// Computes the cost of every candidate of a vector of channels, over kSumRows rows, channels
// innermost.
template <class T>
void price_columns(const MseRange& args, int64_t piece, int64_t first, const Codes& codes) {
  const ReduceLayout& l = args.layout;
  int64_t pieces = math::pieces_of(l);
  layout::MseGrids grids = math::grids_of(args);
  int64_t count = at_most(l.channels - first, kWidth), begin = piece * kSumRows;
  int64_t rows = at_most(l.outer - begin, kSumRows);
  auto read = [&](const auto* p) { return count < kWidth ? load_some(p, count) : load(p); };
  auto write = [&](float* p, Vec v) { count < kWidth ? store_some(p, v, count) : store(p, v); };
  const T* x = static_cast<const T*>(args.x) + begin * l.channels + first;
  Vec values[kSumRows], inverse_unit = read(grids.inverse_unit + first);
  for (int64_t r = 0; r < rows; ++r) values[r] = read(x + r * l.channels) * inverse_unit;
  for (int64_t k = 0; k < args.steps; ++k) {
    int64_t at = k * l.channels + first;
    math::Affine<Vec> a = {read(grids.scale + at), read(grids.inverse + at),
                           read(grids.zero_point + at)};
    Vec sum = {};
#pragma GCC unroll 4
    for (int64_t r = 0; r < rows; ++r) {
      sum += math::squared_error(values[r], a, codes.least, codes.most);
    }
    write(args.partial + (k * pieces + piece) * l.channels + first, sum);
  }
}

// Chooses for channels first .. last - 1, a cache line of sums at a time.
void choose(const MseRange& args, int64_t first, int64_t last) {
  constexpr int64_t kLine = 16;
  int64_t pieces = math::pieces_of(args.layout), channels = args.layout.channels;
  for (int64_t line = first; line < last; line += kLine) {
    int64_t count = at_most(last - line, kLine);
    math::Choice best[kLine];
    for (int64_t c = 0; c < count; ++c) best[c] = {__builtin_inff(), 0};
    for (int64_t k = 1; k <= args.steps; ++k) {
      float* sums = args.partial + (k - 1) * pieces * channels + line;
      for (int64_t c = 0; c < count; ++c) {
        float cost = math::fold_pairs<math::Sum>(0, sums + c, pieces, channels);
        best[c] = math::better_of(best[c], math::priced(cost, k));
      }
    }
    for (int64_t c = 0; c < count; ++c) math::narrow_range(args, line + c, best[c]);
  }
}

// The more candidates a task has, the fewer tasks make a fair share for a thread.
int64_t grain_of(const MseRange& args, int64_t values) {
  int64_t work = values * args.steps;
  return work >= kGrain ? 1 : kGrain / (work > 0 ? work : 1);
}

}  // namespace

// Each core takes a chunk of x, or kSumRows values of a few channels, and computes the cost of
// every candidate while it is in the first cache; then the candidates of a channel are compared.
template <>
void mse_range(const MseRange& args, const OnCpu<BITPARE_ISA>& cpu) {
  const ReduceLayout& l = args.layout;
  Codes codes = {math::splat<Vec>(args.rule.quant_min), math::splat<Vec>(args.rule.quant_max)};
  parallel(cpu.parallel_for, l.channels, grain_of(args, 8), [&](int64_t first, int64_t last) {
    for (int64_t k = 1; k <= args.steps; ++k) {
      for (int64_t c = first; c < last; ++c) math::write_grid(args, k, c);
    }
  });
  with_type(args.dtype, [&]<class T>(T*) {
    if (math::channels_innermost(l)) {
      int64_t blocks = (l.channels + kWidth - 1) / kWidth, tasks = math::pieces_of(l) * blocks;
      parallel(cpu.parallel_for, tasks, grain_of(args, kSumRows * kWidth),
               [&](int64_t first, int64_t last) {
                 for (int64_t t = first; t < last; ++t) {
                   price_columns<T>(args, t / blocks, t % blocks * kWidth, codes);
                 }
               });
    } else {
      parallel(cpu.parallel_for, tasks_of(l), grain_of(args, at_most(l.inner, kSumChunk)),
               [&](int64_t first, int64_t last) {
                 for (int64_t t = first; t < last; ++t) price_chunk<T>(args, t, codes);
               });
    }
  });
  parallel(cpu.parallel_for, l.channels, grain_of(args, math::pieces_of(l)),
           [&](int64_t first, int64_t last) { choose(args, first, last); });
}

}  // namespace bitpare
