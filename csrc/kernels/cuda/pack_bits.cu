#include "kernels/cuda/blocks.h"
#include "kernels/pack_bits.h"
#include "math/pack_bits.h"

namespace bitpare {
namespace {

// A thread takes one packed byte.
__global__ void __launch_bounds__(kThreads) pack_kernel(PackBits args, int64_t row_bytes) {
  int64_t i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  if (i >= args.rows * row_bytes) return;
  int64_t row = i / row_bytes, per_byte = 8 / args.bits, first = (i - row * row_bytes) * per_byte;
  int64_t left = args.columns - first, count = left < per_byte ? left : per_byte;
  args.packed[i] = math::packed_byte(args.codes + row * args.columns + first, count, args.bits);
}

// A thread takes one code.
__global__ void __launch_bounds__(kThreads) unpack_kernel(UnpackBits args, int64_t row_bytes) {
  int64_t i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  if (i >= args.rows * args.columns) return;
  int64_t row = i / args.columns;
  args.codes[i] = math::unpacked_code(args.packed + row * row_bytes, i - row * args.columns,
                                      args.bits, args.is_signed);
}

}  // namespace

void pack_bits(const PackBits& args, const OnCuda& cuda) {
  int64_t row_bytes = (args.columns * args.bits + 7) / 8, count = args.rows * row_bytes;
  if (count == 0) return;
  launch(pack_kernel, blocks_for(count, kThreads), kThreads, cuda.stream, args, row_bytes);
}

void unpack_bits(const UnpackBits& args, const OnCuda& cuda) {
  int64_t row_bytes = (args.columns * args.bits + 7) / 8, count = args.rows * args.columns;
  if (count == 0) return;
  launch(unpack_kernel, blocks_for(count, kThreads), kThreads, cuda.stream, args, row_bytes);
}

}  // namespace bitpare
