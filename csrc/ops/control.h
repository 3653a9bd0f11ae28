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

// Checks a tensor that is written in place: it must be contiguous, so that kernels write to it
// directly.
inline void check_written(const char* op, const char* name, const Tensor& t, at::ScalarType type,
                          const c10::SymInt& elements) {
  TORCH_CHECK(t.scalar_type() == type && t.sym_numel() == elements, op, ": ", name,
              " must be a tensor of ", elements, " elements of type ", type, ", got ",
              t.sym_numel(), " of ", t.scalar_type());
  TORCH_CHECK(t.is_contiguous(), op, ": ", name,
              " must be contiguous, since it is written, got strides ", t.sym_strides());
}

// Tells autograd that a tensor was written to: it may be saved for a backward pass.
inline void bump_version(const Tensor& t) {
  if (!t.is_inference()) t.unsafeGetTensorImpl()->bump_version();
}

// Stands above the kernels of an op that writes to its arguments: kNote bumps their versions.
template <auto kFunction, auto kNote, class = Signature<std::remove_pointer_t<decltype(kFunction)>>>
struct Writer;
template <auto kFunction, auto kNote, class Result, class... Arguments>
struct Writer<kFunction, kNote, Result(Arguments...)> {
  std::string name;

  Result operator()(c10::DispatchKeySet keys, Arguments... arguments) const {
    static auto op = find_op<Result(Arguments...)>(name.c_str());
    call_by_signature(kNote, arguments...);
    return op.redispatch(keys & c10::after_ADInplaceOrView_keyset,
                         std::forward<Arguments>(arguments)...);
  }
};

// Registers kNote, which takes the arguments of kFunction, an implementation of the op.
template <auto kFunction, auto kNote>
void writes(torch::Library& m, const char* op) {
  m.impl(op, torch::dispatch(c10::DispatchKey::ADInplaceOrView,
                             Writer<kFunction, kNote>{std::string("bitpare::") + op}));
}

// Checks a quantizer of one scale, in training.
template <class Options>
void check_state(const char* op, const Options& o) {
  check_scale(op, o.x, o.scale, {});
  check_zero_point(op, o.x, o.zero_point, {});
  TORCH_CHECK(!o.zero_point || o.zero_point->scalar_type() == at::kInt, op,
              ": zero_point must be int32, got ", o.zero_point->scalar_type());
  check_control(op, o.control);
  if (o.pending) check_written(op, "pending", *o.pending, at::kFloat, 2);
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

// Returns the tensors that a kernel reads of such a quantizer. On the CPU values are checked, if it
// quantizes.
template <class Device>
QuantizerTensors quantizer_in(const char* op, const OptionalTensor& scale,
                              const OptionalTensor& zero_point, const Tensor& contiguous_control) {
  QuantizerOptions options = {.scale = scale, .zero_point = zero_point};
  if constexpr (!Device::kSeesValues) return quantizer_of(op, options, {}, false);
  Control c = seen_control(op, contiguous_control);
  options.quant_min = c.quant_min;
  options.quant_max = c.quant_max;
  return quantizer_of(op, options, {}, c.quantize);
}

}  // namespace bitpare::ops
