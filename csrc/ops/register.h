// Registers the implementations of ops. Every implementation is called through a Door, which checks
// that all tensors are on one device, whether the implementation reads them or not. Otherwise a
// tensor that is not read could decide which implementation runs.
#pragma once
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include "ops/options.h"

namespace bitpare::ops {

// The tags that every op of this library declares.
inline const std::vector<at::Tag>& tags() {
  static const std::vector<at::Tag> all = {at::Tag::pt2_compliant_tag};
  return all;
}

// Throws an error: the argument of that number is not on the device of the first tensor.
[[noreturn]] void wrong_device(const char* op, size_t argument, size_t first,
                               const c10::Device& expected, const c10::Device& got);

// Returns x, or a copy with the values of a lazily negated or conjugated tensor or a zero tensor.
Tensor with_values(const Tensor& x);

// Checks that all tensors it sees are on one device.
class SameDevice {
 public:
  explicit SameDevice(const char* op) : op_(op) {}

  void see(size_t argument, const Tensor& x) {
    if (!x.defined()) return;
    c10::Device device = x.device();
    if (!first_) {
      first_ = device;
      number_ = argument;
    }
    if (device != *first_) wrong_device(op_, argument, number_, *first_, device);
  }
  void see(size_t argument, const OptionalTensor& x) {
    if (x) see(argument, *x);
  }
  void see(size_t argument, at::TensorList list) {
    for (const Tensor& x : list) see(argument, x);
  }
  void see(size_t argument, const std::optional<at::TensorList>& list) {
    if (list) see(argument, *list);
  }
  template <class Other>
  void see(size_t, const Other&) {}

 private:
  const char* op_;
  std::optional<c10::Device> first_;
  size_t number_ = 0;
};

template <class Function, class = Signature<Function>>
class Door;

template <class Function, class Result, class... Arguments>
class Door<Function, Result(Arguments...)> {
 public:
  Door(const char* op, Function* body) : op_(op), body_(body) {}

  Result operator()(Arguments... arguments) const {
    SameDevice devices(op_);
    size_t number = 0;
    (devices.see(number++, arguments), ...);
    return call_by_signature(body_, std::forward<Arguments>(arguments)...);
  }

 private:
  const char* op_;
  Function* body_;
};

template <class Function>
void implement(torch::Library& m, const char* op, c10::DispatchKey key, Function* body) {
  m.impl(op, torch::dispatch(key, Door<Function>(op, body)));
}

// Lazily negated or conjugated tensors and zero tensors are replaced by what they stand for, or
// refused where they would be written: torch's own fallback corrupts its stack where an op that
// writes returns nothing.
void resolve_lazy_arguments(torch::Library& m, const char* op);

// Registers an op with kernels: on a CPU, on CUDA, and for shapes alone.
template <class Body, class Meta>
void kernels(torch::Library& m, const char* op, Body* cpu, Body* cuda, Meta* meta) {
  implement(m, op, c10::DispatchKey::CPU, cpu);
  implement(m, op, c10::DispatchKey::CUDA, cuda);
  implement(m, op, c10::DispatchKey::Meta, meta);
  resolve_lazy_arguments(m, op);
}

// Registers an op that calls others: its implementations without and with autograd.
template <class Body>
void composite(torch::Library& m, const char* op, Body* without_autograd, Body* autograd) {
  implement(m, op, c10::DispatchKey::CompositeExplicitAutograd, without_autograd);
  implement(m, op, c10::DispatchKey::Autograd, autograd);
  resolve_lazy_arguments(m, op);
}

// Registers an op that is differentiated through the ops it calls.
template <class Body>
void composite(torch::Library& m, const char* op, Body* body) {
  implement(m, op, c10::DispatchKey::CompositeImplicitAutograd, body);
  resolve_lazy_arguments(m, op);
}

// Registers that results carry no gradient, whatever the arguments require.
inline void no_gradient(torch::Library& m, const char* op) {
  m.impl(op, torch::dispatch(c10::DispatchKey::Autograd, torch::CppFunction::makeFallthrough()));
}

// Registers that an op has no derivative: asking for one is an error.
inline void no_derivative(torch::Library& m, const char* op) {
  m.impl(op, torch::dispatch(c10::DispatchKey::Autograd,
                             torch::autograd::autogradNotImplementedFallback()));
}

}  // namespace bitpare::ops
