#include "kernels/fake_quant_weights.h"

#include "kernels/cpu/pieces.h"
#include "kernels/cpu/reduce.h"

namespace bitpare {
namespace {

constexpr int64_t kUnit = 1024;

// f(i, first, last) for elements first .. last - 1 of weight i, in parallel.
template <class F>
void parallel_weights(ParallelFor parallel_for, const Weight* weights, int64_t size, F f) {
  parallel_pieces<kUnit>(parallel_for, size, [=](int64_t i) { return weights[i].n; }, f);
}

BITPARE_INLINE VecInt larger(VecInt a, VecInt b) { return a > b ? a : b; }

BITPARE_INLINE VecInt magnitudes(Vec x) { return math::magnitude_bits(x); }

// The largest magnitude_bits of n values, of `readable` that may be read.
template <class T>
int32_t widest_of(const T* x, int64_t n, int64_t readable) {
  constexpr int64_t kRunning = 4;
  VecInt most[kRunning] = {};
  int64_t i = 0;
  for (; i + kRunning * kWidth <= n; i += kRunning * kWidth) {
#pragma GCC unroll 4
    for (int64_t k = 0; k < kRunning; ++k) {
      most[k] = larger(most[k], magnitudes(load(x + i + k * kWidth)));
    }
  }
  for (; i + kWidth <= n; i += kWidth) most[0] = larger(most[0], magnitudes(load(x + i)));
  if (i < n) {
    Vec rest = i + kWidth <= readable ? load(x + i) : load_some(x + i, n - i);
    VecInt valid = lane_numbers() < static_cast<int32_t>(n - i);
    most[1] = larger(most[1], magnitudes(rest) & valid);
  }
  VecInt all = larger(larger(most[0], most[1]), larger(most[2], most[3]));
#pragma GCC unroll 4
  for (int32_t half = kWidth / 2; half > 0; half /= 2) {
    all = larger(all, shuffled(all, lane_numbers() ^ half));
  }
  return all[0];
}

void raise(int32_t* target, int32_t value) {
  int32_t seen = __atomic_load_n(target, __ATOMIC_RELAXED);
  while (seen < value && !__atomic_compare_exchange_n(target, &seen, value, true, __ATOMIC_RELAXED,
                                                      __ATOMIC_RELAXED)) {
  }
}

// Merges elements first .. last - 1 into the largest magnitude of a weight with one scale.
template <class T>
void widen(const Weight& w, int64_t first, int64_t last) {
  raise(w.widest, widest_of(static_cast<const T*>(w.x) + first, last - first, last - first));
}

int64_t rows_before(int64_t element, int64_t length) { return (element + length - 1) / length; }

// The scales of rows begin .. end - 1, each of which has its own.
template <class T>
void scale_rows(const Weight& w, int64_t begin, int64_t end, bool power_of_two) {
  int64_t length = w.n / w.scales;
  for (int64_t r = begin; r < end; ++r) {
    const T* row = static_cast<const T*>(w.x) + r * length;
    int32_t widest = widest_of(row, length, w.n - r * length);
    w.scale[r] = math::weight_scale(widest, *w.control, power_of_two);
  }
}

// Writes the scales of weights that have one, from their largest magnitudes.
void scale_wholes(const WeightScales& args) {
  for (int64_t i = 0; i < args.size; ++i) {
    const Weight& w = args.weights[i];
    if (w.scales != 1 || w.n == 0 || !w.control->observe) continue;
    w.scale[0] = math::weight_scale(*w.widest, *w.control, args.power_of_two);
  }
}

uint64_t* clipped_flag(const Weight& w) { return w.inside + (w.n + kBlock - 1) / kBlock; }

// Returns whether results are written past the cache, because they would not fit into it.
bool leaves_cache(const Weight* weights, int64_t size) {
  int64_t bytes = 0;
  for (int64_t i = 0; i < size; ++i) {
    bytes += weights[i].n * (weights[i].dtype == DType::float32 ? 4 : 2);
  }
  return bytes > kStreamBytes;
}

// Writes y and bits of elements first .. last - 1, and sets the flag if any bit is 0. first is a
// multiple of 64.
template <class T>
void quantize_part(const Weight& w, int64_t first, int64_t last, bool streamed) {
  Quantizer q;
  q.scale = w.scale;
  q.channel = {w.n / w.scales, w.scales};
  Vec low = math::splat<Vec>(static_cast<float>(w.control->quant_min));
  Vec high = math::splat<Vec>(static_cast<float>(w.control->quant_max));
  auto quantized = [=](Place& place, Vec x) [[gnu::always_inline]] {
    auto c = math::quantize<Rounding::nearest>(x, place.affine, low, high, Vec{});
    place.inside = equal_bits(c.rounded, c.code);
    return math::dequantize(c.code, place.affine);
  };
  auto copied = [](Place& place, Vec x) [[gnu::always_inline]] {
    place.inside = ~0ull >> (kBlock - kWidth);
    return x;
  };
  auto x = static_cast<const T*>(w.x);
  if (w.control->quantize) {
    map(q, first, last, streamed, quantized, static_cast<T*>(w.y), w.inside, x);
  } else {
    map(Quantizer{}, first, last, streamed, copied, static_cast<T*>(w.y), w.inside, x);
  }
  uint64_t all = ~0ull;
  for (int64_t i = first; i < last; i += kBlock) {
    uint64_t none = last - i >= kBlock ? 0 : ~0ull << (last - i);
    all &= w.inside[i / kBlock] | none;
  }
  if (~all != 0) __atomic_store_n(clipped_flag(w), 1, __ATOMIC_RELAXED);
}

// The least number of whole rows that fills whole blocks, and enough of them.
int64_t rows_in_blocks(const Weight& w) {
  constexpr int64_t kEnough = 4 * kUnit;
  int64_t length = w.n / w.scales, rows = 1;
  while (rows * length % kBlock != 0 || rows * length < kEnough) rows *= 2;
  return rows;
}

}  // namespace

// Each core takes a share of all units. For a weight with many scales these are the rows that begin
// there; for a weight with one scale they are elements, whose largest is merged by an atomic
// maximum.
template <>
void weight_scales(const WeightScales& args, const OnCpu<BITPARE_ISA>& cpu) {
  auto part = [&](int64_t i, int64_t first, int64_t last) {
    const Weight& w = args.weights[i];
    if (!w.control->observe) return;
    with_type(w.dtype, [&]<class T>(T*) {
      if (w.scales == 1) return widen<T>(w, first, last);
      int64_t length = w.n / w.scales;
      scale_rows<T>(w, rows_before(first, length), rows_before(last, length), args.power_of_two);
    });
  };
  parallel_weights(cpu.parallel_for, args.weights, args.size, part);
  scale_wholes(args);
}

// Each core takes a share of all units: it reads x, and writes y and bits.
template <>
void fake_quant_weights(const FakeQuantWeights& args, const OnCpu<BITPARE_ISA>& cpu) {
  for (int64_t i = 0; i < args.size; ++i) *clipped_flag(args.weights[i]) = 0;
  bool streamed = leaves_cache(args.weights, args.size);
  auto part = [&](int64_t i, int64_t first, int64_t last) {
    const Weight& w = args.weights[i];
    with_type(w.dtype, [&]<class T>(T*) { quantize_part<T>(w, first, last, streamed); });
  };
  parallel_weights(cpu.parallel_for, args.weights, args.size, part);
}

// Each core takes a share of all units. For a weight with many scales these are the groups of rows
// that begin there, each quantized while it is in the cache. Weights with one scale come first,
// because the scale has to be known.
template <>
void scale_and_fake_quant_weights(const WeightScales& args, const OnCpu<BITPARE_ISA>& cpu) {
  auto find_whole = [&](int64_t i, int64_t first, int64_t last) {
    const Weight& w = args.weights[i];
    if (w.scales != 1 || !w.control->observe) return;
    with_type(w.dtype, [&]<class T>(T*) { widen<T>(w, first, last); });
  };
  bool any_whole = false;
  for (int64_t i = 0; i < args.size; ++i) {
    *clipped_flag(args.weights[i]) = 0;
    any_whole |= args.weights[i].scales == 1;
  }
  if (any_whole) parallel_weights(cpu.parallel_for, args.weights, args.size, find_whole);
  scale_wholes(args);
  bool streamed = leaves_cache(args.weights, args.size);
  auto part = [&](int64_t i, int64_t first, int64_t last) {
    const Weight& w = args.weights[i];
    with_type(w.dtype, [&]<class T>(T*) {
      if (w.scales == 1) return quantize_part<T>(w, first, last, streamed);
      int64_t length = w.n / w.scales, rows = rows_in_blocks(w), group = rows * length;
      for (int64_t g = rows_before(first, group); g < rows_before(last, group); ++g) {
        int64_t begin = g * rows, end = at_most(begin + rows, w.scales);
        if (w.control->observe) scale_rows<T>(w, begin, end, args.power_of_two);
        quantize_part<T>(w, begin * length, end * length, streamed);
      }
    });
  };
  parallel_weights(cpu.parallel_for, args.weights, args.size, part);
}

}  // namespace bitpare
