#include "ops/straight_through.h"

#include "kernels/straight_through.h"
#include "ops/overwrite.h"

namespace bitpare::ops {
namespace {

constexpr const char* kOp = "_straight_through";

// source, dx: dense in one layout; they may be the same.
template <class Device>
void pass(const Tensor& source, const Tensor& inside, const Tensor& dx) {
  Array<uint64_t> bits(inside);
  StraightThrough args = {
      .dy = source.const_data_ptr(),
      .inside = bits.data(),
      .dx = dx.data_ptr(),
      .n = dx.numel(),
      .dtype = dtype_of(kOp, dx),
  };
  Device::run(dx, [&](const auto& where) { bitpare::straight_through(args, where); });
}

void check(const Tensor& dy, const Tensor& inside, at::MemoryFormat format) {
  check_input(kOp, dy);
  check_format(kOp, dy, format, {});
  bool more = inside.sym_numel() == (dy.sym_numel() + 63) / 64 + 1;  // a weight's have one more
  check_bits(kOp, "inside", inside, dy.sym_numel(), more ? 1 : 0);
}

template <class Device>
Tensor body(const Tensor& dy, const Tensor& inside, at::MemoryFormat format) {
  Device::require(kOp, dy);
  check(dy, inside, format);
  Tensor source = dy.contiguous(format), dx = at::empty_like(source);
  pass<Device>(source, inside, dx);
  return dx;
}

Tensor meta(const Tensor& dy, const Tensor& inside, at::MemoryFormat format) {
  check(dy, inside, format);
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
  static auto op = find_op<decltype(meta)>("bitpare::_straight_through");
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
  kernels(m, "_straight_through", body<Cpu>, body<Cuda>, meta);
  implement(m, "_straight_through", c10::DispatchKey::Autograd, autograd);
}

}  // namespace bitpare::ops
