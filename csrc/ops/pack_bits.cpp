#include "kernels/pack_bits.h"

#include "ops/call.h"

namespace bitpare::ops {
namespace {

void check_bits(const char* op, int64_t bits) {
  TORCH_CHECK(bits == 1 || bits == 2 || bits == 4, op, ": bits must be 1, 2 or 4, got ", bits);
}

void check_codes(const Tensor& codes, int64_t bits) {
  check_bits("pack_bits", bits);
  TORCH_CHECK(codes.scalar_type() == at::kChar || codes.scalar_type() == at::kByte,
              "pack_bits: codes must be int8 (signed) or uint8, got ", codes.scalar_type());
  TORCH_CHECK(codes.dim() >= 1, "pack_bits: codes must have at least one dimension");
}

// Rows are the last dimension; each is packed to whole bytes.
c10::SymDimVector packed_shape(c10::SymIntArrayRef shape, int64_t bits) {
  c10::SymDimVector packed(shape.begin(), shape.end());
  packed.back() = (packed.back() * bits + 7) / 8;
  return packed;
}

template <class Device>
Tensor pack(const Tensor& codes, int64_t bits) {
  Device::require("pack_bits", codes);
  check_codes(codes, bits);
  Tensor source = codes.contiguous();
  Tensor packed =
      at::empty_symint(packed_shape(codes.sym_sizes(), bits), source.options().dtype(at::kByte));
  if (packed.numel() == 0) return packed;
  int64_t columns = codes.size(-1);
  int32_t out_of_range = 0;
  PackBits args = {
      .codes = static_cast<const uint8_t*>(source.const_data_ptr()),
      .packed = packed.data_ptr<uint8_t>(),
      .rows = codes.numel() / columns,
      .columns = columns,
      .bits = static_cast<int32_t>(bits),
      .is_signed = codes.scalar_type() == at::kChar,
      .out_of_range = &out_of_range,
  };
  Device::run(codes, [&](const auto& where) { bitpare::pack_bits(args, where); });
  TORCH_CHECK(!out_of_range, "pack_bits: codes must fit ", bits, args.is_signed ? " signed" : "",
              " bits, got one that does not");
  return packed;
}

Tensor pack_meta(const Tensor& codes, int64_t bits) {
  check_codes(codes, bits);
  return at::empty_symint(packed_shape(codes.sym_sizes(), bits),
                          codes.options().dtype(at::kByte).memory_format(std::nullopt));
}

at::TensorOptions check_packed(const Tensor& packed, c10::SymIntArrayRef shape, int64_t bits,
                               bool is_signed) {
  check_bits("unpack_bits", bits);
  TORCH_CHECK(packed.scalar_type() == at::kByte, "unpack_bits: packed must be uint8, got ",
              packed.scalar_type());
  TORCH_CHECK(!shape.empty(), "unpack_bits: shape must have at least one dimension");
  count_of("unpack_bits", shape);
  c10::SymDimVector expected = packed_shape(shape, bits);
  TORCH_CHECK(packed.sym_sizes() == c10::SymIntArrayRef(expected),
              "unpack_bits: packed must have shape ", c10::SymIntArrayRef(expected), " for shape ",
              shape, " at ", bits, " bits, got ", packed.sym_sizes());
  return packed.options().dtype(is_signed ? at::kChar : at::kByte).memory_format(std::nullopt);
}

template <class Device>
Tensor unpack(const Tensor& packed, c10::SymIntArrayRef shape, int64_t bits, bool is_signed) {
  Device::require("unpack_bits", packed);
  Tensor codes = at::empty_symint(shape, check_packed(packed, shape, bits, is_signed));
  Tensor source = packed.contiguous();
  if (codes.numel() == 0) return codes;
  int64_t columns = codes.size(-1);
  UnpackBits args = {
      .packed = source.const_data_ptr<uint8_t>(),
      .codes = static_cast<uint8_t*>(codes.data_ptr()),
      .rows = codes.numel() / columns,
      .columns = columns,
      .bits = static_cast<int32_t>(bits),
      .is_signed = is_signed,
  };
  Device::run(packed, [&](const auto& where) { bitpare::unpack_bits(args, where); });
  return codes;
}

Tensor unpack_meta(const Tensor& packed, c10::SymIntArrayRef shape, int64_t bits, bool is_signed) {
  return at::empty_symint(shape, check_packed(packed, shape, bits, is_signed));
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(bitpare, m) {
  m.def("pack_bits(Tensor codes, *, int bits) -> Tensor", tags());
  m.def("unpack_bits(Tensor packed, SymInt[] shape, *, int bits, bool signed=False) -> Tensor",
        tags());
  kernels(m, "pack_bits", pack<Cpu>, pack<Cuda>, pack_meta);
  kernels(m, "unpack_bits", unpack<Cpu>, unpack<Cuda>, unpack_meta);
}

}  // namespace bitpare::ops
