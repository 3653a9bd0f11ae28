#include "kernels/cuda/blocks.h"
#include "kernels/track_oscillations.h"

namespace bitpare {
namespace {

// Each thread takes eight neighbours, and updates the weight and its state in place.
template <class T>
__global__ void __launch_bounds__(kThreads) track_kernel(TrackOscillations args) {
  int64_t first = blockIdx.x * kPerBlock + static_cast<int64_t>(threadIdx.x) * kPerThread;
  if (first >= args.n || (args.skip && *args.skip > 0)) return;
  T* weights = static_cast<T*>(args.weight);
  float weight[kPerThread], code[kPerThread], turn[kPerThread], frequency[kPerThread],
      mean[kPerThread];
  load_pack(weights, first, args.n, weight);
  if (!args.first) {
    load_pack(args.code, first, args.n, code);
    load_pack(args.turn, first, args.n, turn);
    load_pack(args.frequency, first, args.n, frequency);
    load_pack(args.mean, first, args.n, mean);
  }
  ChannelWalk walk = ChannelWalk::at(args.quantizer, first, args.n);
  float low = static_cast<float>(args.control->quant_min);
  float high = static_cast<float>(args.control->quant_max);
#pragma unroll
  for (int e = 0; e < kPerThread; ++e) {
    math::Oscillation<float> o;
    if (args.first) {
      o = math::first_look(weight[e], walk.affine, low, high);
    } else {
      o = {weight[e], code[e], turn[e], frequency[e], mean[e]};
      o = math::next_look(o, walk.affine, low, high, args.momentum, args.threshold);
    }
    weight[e] = o.weight;
    code[e] = o.code;
    turn[e] = o.turn;
    frequency[e] = o.frequency;
    mean[e] = o.mean;
    ChannelWalk::next(args.quantizer, &walk);
  }
  if (!args.first) store_pack(weights, first, args.n, weight);
  store_pack(args.code, first, args.n, code);
  store_pack(args.turn, first, args.n, turn);
  store_pack(args.frequency, first, args.n, frequency);
  store_pack(args.mean, first, args.n, mean);
}

}  // namespace

void track_oscillations(const TrackOscillations& args, const OnCuda& cuda) {
  if (args.n == 0) return;
  with_type(args.dtype, [&]<class T>(T*) {
    launch(track_kernel<T>, blocks_for(args.n, kPerBlock), kThreads, cuda.stream, args);
  });
}

}  // namespace bitpare
