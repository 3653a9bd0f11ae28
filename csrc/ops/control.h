// Checks of what a quantizer in training reads and writes on the device: see math/control.h.
#pragma once
#include "math/control.h"
#include "ops/call.h"

namespace bitpare::ops {

inline void check_control(const char* op, const Tensor& control, const c10::Device& device) {
  TORCH_CHECK(control.scalar_type() == at::kInt && control.sym_numel() == kControlSize, op,
              ": control must be an int32 tensor of ", kControlSize, " elements, got ",
              control.scalar_type(), " of ", control.sym_numel());
  TORCH_CHECK(control.device() == device, op, ": control must be on ", device, " like x, got ",
              control.device());
}

// What is written in place lies dense, so that kernels write to it directly.
inline void check_written(const char* op, const char* name, const Tensor& t, at::ScalarType type,
                          const c10::SymInt& elements, const c10::Device& device) {
  TORCH_CHECK(t.scalar_type() == type && t.sym_numel() == elements, op, ": ", name,
              " must be a tensor of ", elements, " elements of type ", type, ", got ",
              t.sym_numel(), " of ", t.scalar_type());
  TORCH_CHECK(t.device() == device, op, ": ", name, " must be on ", device, ", got ", t.device());
  TORCH_CHECK(t.is_contiguous(), op, ": ", name, " must be contiguous");
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

}  // namespace bitpare::ops
