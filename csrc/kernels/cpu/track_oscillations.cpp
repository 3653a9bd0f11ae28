#include "kernels/track_oscillations.h"

#include "kernels/cpu/blocks.h"

namespace bitpare {
namespace {

template <bool kWhole, class T>
BITPARE_INLINE Vec read(const T* p, int64_t count) {
  if constexpr (kWhole) return load(p);
  return load_some(p, count);
}

template <bool kWhole, class T>
BITPARE_INLINE void write(T* p, Vec v, int64_t count) {
  if constexpr (kWhole) return store(p, v);
  store_some(p, v, count);
}

struct Limits {
  Vec low, high, momentum, threshold;
};

// A vector, or `count` elements of one, from element i on.
template <bool kWhole, class T>
BITPARE_INLINE void look(const TrackOscillations& args, int64_t i, int64_t count,
                         const math::Affine<Vec>& affine, const Limits& l) {
  T* weight = static_cast<T*>(args.weight) + i;
  math::Oscillation<Vec> o;
  if (args.first) {
    o = math::first_look(read<kWhole>(weight, count), affine, l.low, l.high);
  } else {
    o = {read<kWhole>(weight, count), read<kWhole>(args.code + i, count),
         read<kWhole>(args.turn + i, count), read<kWhole>(args.frequency + i, count),
         read<kWhole>(args.mean + i, count)};
    o = math::next_look(o, affine, l.low, l.high, l.momentum, l.threshold);
    write<kWhole>(weight, o.weight, count);
  }
  write<kWhole>(args.code + i, o.code, count);
  write<kWhole>(args.turn + i, o.turn, count);
  write<kWhole>(args.frequency + i, o.frequency, count);
  write<kWhole>(args.mean + i, o.mean, count);
}

}  // namespace

// Each core works through blocks of 64 values, and updates the weight and its state in place.
template <>
void track_oscillations(const TrackOscillations& args, const OnCpu<BITPARE_ISA>& cpu) {
  if (args.skip && *args.skip > 0) return;
  Limits limits = {math::splat<Vec>(static_cast<float>(args.control->quant_min)),
                   math::splat<Vec>(static_cast<float>(args.control->quant_max)),
                   math::splat<Vec>(args.momentum), math::splat<Vec>(args.threshold)};
  with_type(args.dtype, [&]<class T>(T*) {
    parallel_blocks(cpu.parallel_for, args.n, [&](int64_t begin, int64_t end) {
      for_each_block(args.quantizer, begin, end, [&](int64_t i, const auto& channels) {
        for (int64_t k = 0; k < kVectors && i + k * kWidth < end; ++k) {
          int64_t at = i + k * kWidth, count = end - at;
          if (count >= kWidth) {
            look<true, T>(args, at, kWidth, channels.at(k), limits);
          } else {
            look<false, T>(args, at, count, channels.at(k), limits);
          }
        }
      });
    });
  });
}

}  // namespace bitpare
