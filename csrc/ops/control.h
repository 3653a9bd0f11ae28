// Checks of what a quantizer in training reads and writes on the device: see math/control.h.
#pragma once
#include "math/control.h"
#include "ops/call.h"

namespace bitpare::ops {

inline void check_control(const char* op, const Tensor& control) {
  TORCH_CHECK(control.scalar_type() == at::kInt && control.sym_numel() == kControlSize, op,
              ": control must be an int32 tensor of ", kControlSize, " elements, got ",
              control.scalar_type(), " of ", control.sym_numel());
}

// Tensors that are written in place lie dense, so that kernels write to them directly.
inline void check_written(const char* op, const char* name, const Tensor& t, at::ScalarType type,
                          const c10::SymInt& elements) {
  TORCH_CHECK(t.scalar_type() == type && t.sym_numel() == elements, op, ": ", name,
              " must be a tensor of ", elements, " elements of type ", type, ", got ",
              t.sym_numel(), " of ", t.scalar_type());
  TORCH_CHECK(t.is_contiguous(), op, ": ", name,
              " must be contiguous, since it is written, got strides ", t.sym_strides());
}

// Tells autograd that the values are others now: a user may have kept them for a backward pass.
inline void bump_version(const Tensor& t) {
  if (!t.is_inference()) t.unsafeGetTensorImpl()->bump_version();
}

// A quantizer of one scale, in training.
inline void check_state(const char* op, const Tensor& x, const Tensor& scale,
                        const OptionalTensor& zero_point, const Tensor& control,
                        const OptionalTensor& pending) {
  check_scale(op, x, scale, {});
  check_zero_point(op, x, zero_point, {});
  TORCH_CHECK(!zero_point || zero_point->scalar_type() == at::kInt, op,
              ": zero_point must be int32, got ", zero_point->scalar_type());
  check_control(op, control);
  if (pending) check_written(op, "pending", *pending, at::kFloat, 2);
}

// The values of a control tensor on the CPU.
inline Control seen_control(const char* op, const Tensor& control) {
  Control c = *reinterpret_cast<const Control*>(control.const_data_ptr<int32_t>());
  check_grid(op, c.quant_min, c.quant_max);
  return c;
}

inline const Control* control_of(const Tensor& contiguous) {
  return reinterpret_cast<const Control*>(contiguous.const_data_ptr<int32_t>());
}

// The tensors a kernel reads of such a quantizer. On the CPU values are checked, if it quantizes.
template <class Device>
QuantizerTensors quantizer_in(const char* op, const Tensor& scale, const OptionalTensor& zero_point,
                              const Tensor& contiguous_control) {
  if constexpr (Device::kSeesValues) {
    Control c = seen_control(op, contiguous_control);
    return quantizer_of(op, scale, zero_point, c.quant_min, c.quant_max, {}, false, c.quantize);
  }
  return quantizer_of(op, scale, zero_point, 0, 0, {}, false, false);
}

}  // namespace bitpare::ops
