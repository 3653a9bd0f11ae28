// Dense products by a library (torch's _int_mm), between our own kernels.
#pragma once
#include <cstdlib>
#include <string_view>

#include "integer/pack.h"
#include "kernels/int_product.h"

namespace bitpare::integer {

constexpr int64_t kFewRows = 32;  // with fewer a kernel of ours is used
constexpr int64_t kPatchBytes = int64_t{1} << 26;

// On CUDA, and for tests where BITPARE_INTEGER_PRODUCTS=library is set.
inline bool uses_library(const at::Device& device) {
  static const bool wanted = [] {
    const char* products = std::getenv("BITPARE_INTEGER_PRODUCTS");
    return products && std::string_view(products) == "library";
  }();
  return device.is_cuda() || wanted;
}

// Works in parts, so that the patches do not take much memory.
template <class Where>
void by_library(const IntConv& conv, const Tensor& weight, const Where& where) {
  const ConvShape& s = conv.shape;
  int64_t rows = s.batch * s.out_height * s.out_width, inputs = weight.size(1);
  int64_t each = std::max<int64_t>(kPatchBytes / inputs, 2 * kFewRows);
  Tensor patches = at::empty({std::min(rows, each + kFewRows), inputs}, weight.options());
  for (int64_t first = 0; first < rows;) {
    // The last part must not have few rows, which the library does not support.
    int64_t here = rows - first <= each + kFewRows ? rows - first : each;
    IntProduct args = {conv,   first, here, inputs, weight.size(0), patches.data_ptr<int8_t>(),
                       nullptr};
    int_patches(args, where);
    Tensor sums = at::_int_mm(patches.narrow(0, 0, here), weight.t());
    args.sums = sums.const_data_ptr<int32_t>();
    int_finish(args, where);
    first += here;
  }
}

}  // namespace bitpare::integer
