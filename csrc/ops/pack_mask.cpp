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
  check_mask("unpack_mask", mask, count_of("unpack_mask", shape));
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
  kernels(m, "pack_mask", pack<Cpu>, pack<Cuda>, pack_meta);
  no_gradient(m, "pack_mask");
  kernels(m, "unpack_mask", unpack<Cpu>, unpack<Cuda>, new_kept);
  no_gradient(m, "unpack_mask");
}

}  // namespace bitpare::ops
