// The devices that a kernel runs on, and the types that kernels' arguments share.
//
// Each family declares its arguments as one struct, and each kernel as
//   template <class Isa> void op(const Op&, const OnCpu<Isa>&);   one for each instruction set
//   void op(const Op&, const OnCuda&);
// so that a caller written once runs on both.
#pragma once
#include <cstdint>

namespace bitpare {

enum class DType : int32_t { float32, float16, bfloat16 };
enum class IntType : int32_t { int8, uint8, int16, int32 };

// Calls body(context, begin, end) over [begin, end), in pieces of at least `grain` where it can.
using RangeBody = void (*)(void* context, int64_t begin, int64_t end);
using ParallelFor = void (*)(int64_t begin, int64_t end, int64_t grain, RangeBody body,
                             void* context);

// Instruction sets: the compiler's default target; AVX2 with FMA and F16C; AVX-512 F, BW, DQ and
// VL; the last with VNNI, for the families on bytes (int_*).
struct Baseline {};
struct Avx2 {};
struct Avx512 {};
struct Avx512Vnni {};

template <class Isa>
struct OnCpu {
  ParallelFor parallel_for;
};

// stream: a cudaStream_t.
struct OnCuda {
  void* stream;
};

}  // namespace bitpare
