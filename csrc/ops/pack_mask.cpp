#include "kernels/pack_mask.h"

#include "ops/mask.h"

namespace bitpare::ops {
namespace {

at::TensorOptions check_kept(const Tensor& kept) {
  TORCH_CHECK(kept.scalar_type() == at::kBool, "pack_mask: kept must be a tensor of bool, got ",
              kept.scalar_type());
  return kept.options().dtype(at::kLong).memory_format(std::nullopt);
}

template <class Device>
Tensor pack(const Tensor& kept) {
  Device::require("pack_mask", kept);
  auto options = check_kept(kept);
  Tensor source = kept.contiguous(),
         mask = at::empty_symint({mask_words(kept.sym_numel())}, options);
  PackMask args = {static_cast<const uint8_t*>(source.const_data_ptr()),
                   static_cast<uint64_t*>(mask.data_ptr()), kept.numel()};
  Device::run(kept, [&](const auto& where) { bitpare::pack_mask(args, where); });
  return mask;
}

Tensor pack_meta(const Tensor& kept) {
  auto options = check_kept(kept);
  return at::empty_symint({mask_words(kept.sym_numel())}, options);
}

Tensor new_kept(const Tensor& mask, c10::SymIntArrayRef shape) {
  c10::SymInt n = 1;
  for (const auto& size : shape) {
    TORCH_CHECK(size >= 0, "unpack_mask: shape must not be negative, got ", shape);
    n *= size;
  }
  check_mask("unpack_mask", mask, n, mask.device());
  return at::empty_symint(shape, mask.options().dtype(at::kBool).memory_format(std::nullopt));
}

template <class Device>
Tensor unpack(const Tensor& mask, c10::SymIntArrayRef shape) {
  Device::require("unpack_mask", mask);
  Tensor kept = new_kept(mask, shape), words = mask.contiguous();
  UnpackMask args = {static_cast<const uint64_t*>(words.const_data_ptr()),
                     static_cast<uint8_t*>(kept.data_ptr()), kept.numel()};
  Device::run(mask, [&](const auto& where) { bitpare::unpack_mask(args, where); });
  return kept;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(bitpare, m) {
  m.def("pack_mask(Tensor kept) -> Tensor", tags());
  m.def("unpack_mask(Tensor mask, SymInt[] shape) -> Tensor", tags());
}
TORCH_LIBRARY_IMPL(bitpare, CPU, m) {
  m.impl("pack_mask", pack<Cpu>);
  m.impl("unpack_mask", unpack<Cpu>);
}
TORCH_LIBRARY_IMPL(bitpare, CUDA, m) {
  m.impl("pack_mask", pack<Cuda>);
  m.impl("unpack_mask", unpack<Cuda>);
}
TORCH_LIBRARY_IMPL(bitpare, Meta, m) {
  m.impl("pack_mask", pack_meta);
  m.impl("unpack_mask", new_kept);
}
TORCH_LIBRARY_IMPL(bitpare, Autograd, m) {
  m.impl("pack_mask", torch::CppFunction::makeFallthrough());
  m.impl("unpack_mask", torch::CppFunction::makeFallthrough());
}

}  // namespace bitpare::ops
