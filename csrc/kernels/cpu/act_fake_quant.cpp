#include "kernels/act_fake_quant.h"

#include "kernels/cpu/blocks.h"

namespace bitpare {
namespace {

// The most ranges that threads keep apart.
constexpr int64_t kMostPieces = 256;

// The range of the values quantized so far, as three terms for each lane.
struct Seen {
  Vec terms[kActTerms];

  [[gnu::always_inline]] Seen() {
    for (int t = 0; t < kActTerms; ++t) terms[t] = math::MinMax::identity<Vec>(t);
  }

  // Lanes from `count` on are ignored.
  [[gnu::always_inline]] void add(Vec w, int64_t count) {
    for (int t = 0; t < kActTerms; ++t) {
      Vec term = w, none = math::MinMax::identity<Vec>(t);
      if (count < kWidth) term = lane_numbers() < static_cast<int32_t>(count) ? w : none;
      terms[t] = math::MinMax::combine<Vec>(t, terms[t], term);
    }
  }

  [[gnu::always_inline]] void fold(float* folded) const {
    for (int t = 0; t < kActTerms; ++t) {
      folded[t] = math::MinMax::identity<float>(t);
      float lanes[kWidth];
      store(lanes, terms[t]);
      for (float lane : lanes) folded[t] = math::MinMax::combine<float>(t, folded[t], lane);
    }
  }
};

template <Activation kActivation>
struct Formula {
  math::Affine<Vec> affine;
  Vec quant_min, quant_max;
  bool quantizes;

  // w = act(v); inside: one bit per lane.
  [[gnu::always_inline]] Vec operator()(Vec v, Vec w, uint64_t* inside) const {
    Vec y = w;
    *inside = ~0ull >> (kBlock - kWidth);
    if (quantizes) {
      auto c = math::quantize<Rounding::nearest>(w, affine, quant_min, quant_max, Vec{});
      *inside = equal_bits(c.rounded, c.code);
      y = math::dequantize(c.code, affine);
    }
    if constexpr (kActivation == Activation::relu || kActivation == Activation::relu6) {
      auto less = [](Vec a, Vec b) [[gnu::always_inline]] { return less_bits(a, b); };
      *inside &= math::activation_passes<kActivation>(v, less);
    }
    return y;
  }
};

template <bool kHasOther, bool kObserves, class T, Activation kActivation>
void walk(const ActFakeQuant& args, Formula<kActivation> formula, int64_t begin, int64_t end,
          bool streamed, float* folded) {
  auto x = static_cast<const T*>(args.x), other = static_cast<const T*>(args.other);
  T* y = static_cast<T*>(args.y);
  Seen seen;
  auto one = [&](int64_t at, int64_t count, Vec* result) [[gnu::always_inline]] {
    bool whole = count == kWidth;
    Vec v = whole ? load(x + at) : load_some(x + at, count);
    if (kHasOther) v = v + (whole ? load(other + at) : load_some(other + at, count));
    Vec w = math::activate<kActivation>(v);
    if (kObserves) seen.add(w, count);
    uint64_t inside = 0;
    *result = formula(v, w, &inside);
    return inside;
  };
  Vec result;
  for (int64_t i = begin; i < end; i += kBlock) {
    uint64_t word = 0;
    if (end - i >= kBlock) {
#pragma GCC unroll 4
      for (int64_t k = 0; k < kVectors; ++k) {
        word |= one(i + k * kWidth, kWidth, &result) << (k * kWidth);
        if (streamed) {
          stream(y + i + k * kWidth, result);
        } else {
          store(y + i + k * kWidth, result);
        }
      }
    } else {
      for (int64_t k = 0; i + k * kWidth < end; ++k) {
        int64_t at = i + k * kWidth, count = end - at < kWidth ? end - at : kWidth;
        word |= one(at, count, &result) << (k * kWidth);
        store_some(y + at, result, count);
      }
      word &= ~0ull >> (kBlock - (end - i));
    }
    if (args.inside) args.inside[i / kBlock] = word;
  }
  if (streamed) fence();
  if (kObserves) seen.fold(folded);
}

// f.template operator()<a, b>()
template <class F>
void with_flags(bool a, bool b, F f) {
  if (a) return b ? f.template operator()<true, true>() : f.template operator()<true, false>();
  b ? f.template operator()<false, true>() : f.template operator()<false, false>();
}

}  // namespace

// Each core works through blocks of 64 values: it reads x, writes y and a word of bits, and keeps
// the range so far in registers; the ranges of all pieces are merged at the end.
template <>
void act_fake_quant(const ActFakeQuant& args, const OnCpu<BITPARE_ISA>& cpu) {
  if (args.n == 0) return;
  Control control = *args.control;
  bool observes = args.pending && control.observe;
  Quantizer q;
  q.scale = args.scale;
  q.zero_point = args.zero_point;
  int64_t chunks = (args.n + kChunk - 1) / kChunk;
  int64_t pieces = chunks < kMostPieces ? chunks : kMostPieces;
  float folded[kMostPieces][kActTerms];
  with_type(args.dtype, [&]<class T>(T*) {
    bool streamed = args.n * static_cast<int64_t>(sizeof(T)) > kStreamBytes &&
                    reinterpret_cast<uint64_t>(args.y) % 64 == 0;
    with_activation(args.activation, [&]<Activation kActivation>() {
      Formula<kActivation> formula = {splat_affine(math::affine_of_channel(q, 0)),
                                      math::splat<Vec>(static_cast<float>(control.quant_min)),
                                      math::splat<Vec>(static_cast<float>(control.quant_max)),
                                      control.quantize != 0};
      with_flags(args.other, observes, [&]<bool kHasOther, bool kObserves>() {
        int64_t grain = chunks > pieces ? 1 : kGrainChunks;
        parallel(cpu.parallel_for, pieces, grain, [&](int64_t first, int64_t last) {
          for (int64_t p = first; p < last; ++p) {
            int64_t begin = chunks * p / pieces * kChunk, end = chunks * (p + 1) / pieces * kChunk;
            walk<kHasOther, kObserves, T>(args, formula, begin, end < args.n ? end : args.n,
                                          streamed, folded[p]);
          }
        });
      });
    });
  });
  if (!observes) return;
  for (int64_t p = 0; p < pieces; ++p) {
    math::fold_pending(args.pending, args.pending + 1, folded[p]);
  }
}

// Like straight_through(), but reads x as well.
template <>
void act_fake_quant_gradient(const ActFakeQuantGradient& args, const OnCpu<BITPARE_ISA>& cpu) {
  with_type(args.dtype, [&]<class T>(T*) {
    with_shaped_activation(args.activation, [&]<Activation kActivation>() {
      bool streamed = args.n * static_cast<int64_t>(sizeof(T)) > kStreamBytes;
      parallel_blocks(cpu.parallel_for, args.n, [&](int64_t begin, int64_t end) {
        auto formula = [inside = args.inside](Place& place, Vec dy, Vec x) [[gnu::always_inline]] {
          Vec slope = math::activation_slope<kActivation>(x);
          return keep(dy * slope, inside[place.block / kBlock] >> (place.k * kWidth));
        };
        map(Quantizer{}, begin, end, streamed, formula, static_cast<T*>(args.dx), nullptr,
            static_cast<const T*>(args.dy), static_cast<const T*>(args.x));
      });
    });
  });
}

}  // namespace bitpare
