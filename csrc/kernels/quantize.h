// Converts values to the integers of a grid, and back.
//   q[i] = clamp(round(x[i] / scale) + zero_point, quant_min, quant_max)
//   y[i] = (q[i] - zero_point) * scale
#pragma once
#include "kernels/backend.h"
#include "math/fake_quant.h"

namespace bitpare {

// x: [n] of dtype. q: [n] of int_type, which holds the grid. NaN becomes the zero point, and sets
// *saw_nan where that is not null (CPU only).
struct Quantize {
  const void* x;
  void* q;
  int64_t n;
  DType dtype;
  IntType int_type;
  Quantizer quantizer;
  int32_t* saw_nan;
};

// q: [n] of int_type. y: [n] of dtype.
struct Dequantize {
  const void* q;
  void* y;
  int64_t n;
  DType dtype;
  IntType int_type;
  Quantizer quantizer;
};

template <class Isa>
void quantize(const Quantize& args, const OnCpu<Isa>& cpu);
void quantize(const Quantize& args, const OnCuda& cuda);

template <class Isa>
void dequantize(const Dequantize& args, const OnCpu<Isa>& cpu);
void dequantize(const Dequantize& args, const OnCuda& cuda);

}  // namespace bitpare
