#include "ops/straight_through.h"

#include "kernels/straight_through.h"
#include "ops/overwrite.h"

namespace bitpare::ops {
namespace {

// source, dx: dense in one layout; they may be the same.
template <class Device>
void pass(const Tensor& source, const Tensor& inside, const Tensor& dx) {
  StraightThrough args = {source.const_data_ptr(),
                          static_cast<const uint64_t*>(inside.const_data_ptr()), dx.data_ptr(),
                          dx.numel(), dtype_of("_straight_through", dx)};
  Device::run(dx, [&](const auto& where) { bitpare::straight_through(args, where); });
}

template <class Device>
Tensor body(const Tensor& dy, const Tensor& inside, at::MemoryFormat format) {
  Device::require("_straight_through", dy);
  int64_t words = (dy.numel() + 63) / 64;  // a weight's bits have one more
  TORCH_CHECK(inside.numel() == words || inside.numel() == words + 1,
              "_straight_through: inside must have ", words, " words, or one more, got ",
              inside.numel());
  Tensor source = dy.contiguous(format), dx = at::empty_like(source);
  pass<Device>(source, inside, dx);
  return dx;
}

Tensor meta(const Tensor& dy, const Tensor&, at::MemoryFormat format) {
  return at::empty_like(dy, dy.options(), format);
}

// Linear in dy, so it is its own derivative.
struct Differentiable : torch::autograd::Function<Differentiable> {
  static constexpr bool is_traceable = true;

  static Tensor forward(AutogradContext* context, const Tensor& dy, const Tensor& inside,
                        at::MemoryFormat format) {
    at::AutoDispatchBelowADInplaceOrView below;
    context->save_for_backward({inside});
    context->saved_data["format"] = static_cast<int64_t>(format);
    return straight_through(dy, inside, format);
  }

  static variable_list backward(AutogradContext* context, const variable_list& dy) {
    auto format = static_cast<at::MemoryFormat>(context->saved_data["format"].toInt());
    Tensor inside = context->get_saved_variables()[0];
    BelowAutogradUnlessRecording below;
    return {straight_through_or_over(dy[0], inside, format), Tensor(), Tensor()};
  }
};

struct Masked : torch::autograd::Function<Masked> {
  static constexpr bool is_traceable = true;

  static Tensor forward(AutogradContext* context, const Tensor&, at::MemoryFormat format,
                        const MaskedForward& run) {
    at::AutoDispatchBelowADInplaceOrView below;
    auto [y, inside] = run();
    context->save_for_backward({inside});
    context->saved_data["format"] = static_cast<int64_t>(format);
    return y;
  }

  static variable_list backward(AutogradContext* context, const variable_list& dy) {
    return Differentiable::backward(context, dy);
  }
};

Tensor autograd(const Tensor& dy, const Tensor& inside, at::MemoryFormat format) {
  return Differentiable::apply(dy, inside, format);
}

}  // namespace

Tensor straight_through(const Tensor& dy, const Tensor& inside, at::MemoryFormat format) {
  static auto op =
      find_op<Tensor(const Tensor&, const Tensor&, at::MemoryFormat)>("bitpare::_straight_through");
  return op.call(dy, inside, format);
}

Tensor straight_through_or_over(const Tensor& dy, const Tensor& inside, at::MemoryFormat format) {
  if (!may_overwrite(dy, format)) return straight_through(dy, inside, format);
  RECORD_FUNCTION("bitpare::_straight_through in place", {});
  pass<Cpu>(dy, inside, dy);
  return dy;
}

Tensor with_straight_through(const Tensor& x, at::MemoryFormat format,
                             const MaskedForward& forward) {
  return Masked::apply(x, format, forward);
}

TORCH_LIBRARY_FRAGMENT(bitpare, m) {
  m.def("_straight_through(Tensor dy, Tensor inside, MemoryFormat memory_format) -> Tensor",
        tags());
}
TORCH_LIBRARY_IMPL(bitpare, CPU, m) { m.impl("_straight_through", body<Cpu>); }
TORCH_LIBRARY_IMPL(bitpare, CUDA, m) { m.impl("_straight_through", body<Cuda>); }
TORCH_LIBRARY_IMPL(bitpare, Meta, m) { m.impl("_straight_through", meta); }
TORCH_LIBRARY_IMPL(bitpare, Autograd, m) { m.impl("_straight_through", autograd); }

}  // namespace bitpare::ops
