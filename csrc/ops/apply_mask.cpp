#include "kernels/apply_mask.h"

#include "ops/mask.h"

namespace bitpare::ops {
namespace {

constexpr const char* kOp = "apply_mask";

void check(const Tensor& x, const Tensor& mask, at::MemoryFormat format) {
  check_input(kOp, x);
  check_format(kOp, x, format, {});
  check_mask(kOp, mask, x.sym_numel());
}

template <class Device>
Tensor body(const Tensor& x, const Tensor& mask, at::MemoryFormat format) {
  Device::require(kOp, x);
  check(x, mask, format);
  Tensor source = x.contiguous(format), y = at::empty_like(source);
  if (x.numel() == 0) return y;
  Array<uint64_t> words(mask);
  ApplyMask args = {
      .x = source.const_data_ptr(),
      .y = y.data_ptr(),
      .mask = words.data(),
      .dtype = dtype_of(kOp, x),
      .layout = mask_layout(x, format),
  };
  Device::run(x, [&](const auto& where) { bitpare::apply_mask(args, where); });
  return y;
}

Tensor meta(const Tensor& x, const Tensor& mask, at::MemoryFormat format) {
  check(x, mask, format);
  return at::empty_like(x, x.options(), format);
}

Tensor masked(const Tensor& x, const Tensor& mask, at::MemoryFormat format) {
  static auto op = find_op<decltype(meta)>("bitpare::_apply_mask");
  return op.call(x, mask, format);
}

// The op is linear in x: the gradient is masked like x, or passes unchanged.
struct Masked : torch::autograd::Function<Masked> {
  static constexpr bool is_traceable = true;

  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& mask, bool passes,
                        at::MemoryFormat format) {
    at::AutoDispatchBelowADInplaceOrView below;
    if (!passes) context->save_for_backward({mask});
    context->saved_data["format"] = static_cast<int64_t>(format);
    return masked(x, mask, format);
  }

  static variable_list backward(AutogradContext* context, const variable_list& dy) {
    auto saved = context->get_saved_variables();
    if (saved.empty()) return {dy[0], Tensor(), Tensor(), Tensor()};
    BelowAutogradUnlessRecording below;
    auto format = static_cast<at::MemoryFormat>(context->saved_data["format"].toInt());
    return {masked(dy[0], saved[0], format), Tensor(), Tensor(), Tensor()};
  }
};

Tensor autograd(const Tensor& x, const Tensor& mask, at::MemoryFormat format) {
  return Masked::apply(x, mask, false, format);
}

Tensor without_gradient(const Tensor& x, const Tensor& mask, c10::string_view mode) {
  check_input(kOp, x);
  parse_mask_mode(kOp, mode);
  return masked(x, mask, x.suggest_memory_format());
}

Tensor with_gradient(const Tensor& x, const Tensor& mask, c10::string_view mode) {
  if (!needs_gradient(x)) {
    at::AutoDispatchBelowADInplaceOrView below;
    return without_gradient(x, mask, mode);
  }
  bool passes = parse_mask_mode(kOp, mode) == MaskMode::ste;
  return Masked::apply(x, mask, passes, x.suggest_memory_format());
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(bitpare, m) {
  m.def("apply_mask(Tensor x, Tensor mask, *, str mode='hard') -> Tensor", tags());
  m.def("_apply_mask(Tensor x, Tensor mask, MemoryFormat memory_format) -> Tensor", tags());
  composite(m, "apply_mask", without_gradient, with_gradient);
  kernels(m, "_apply_mask", body<Cpu>, body<Cuda>, meta);
  implement(m, "_apply_mask", c10::DispatchKey::Autograd, autograd);
}

}  // namespace bitpare::ops
