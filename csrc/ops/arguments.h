// Checks users' arguments, and converts them to kernels' arguments. Checks read types and shapes
// only, so they serve real and meta tensors alike; values are checked on the CPU, where a kernel's
// arguments are filled.
#pragma once
#include "math/fake_float.h"
#include "math/fake_quant.h"
#include "math/reduce.h"
#include "ops/device.h"

namespace bitpare::ops {

// How many scales there are: one; one for each index of `axis`; or one for each `group` neighbours
// along the last dimension.
struct Granularity {
  std::optional<int64_t> axis, group;
};

DType dtype_of(const char* op, const Tensor& x);
void check_input(const char* op, const Tensor& x);
void check_granularity(const char* op, const Tensor& x, const Granularity& granularity);
// `name` is how the user calls it: scale, threshold, min.
void check_per_channel(const char* op, const char* name, const Tensor& x, const Tensor& values,
                       const Granularity& granularity);
void check_scale(const char* op, const Tensor& x, const Tensor& scale,
                 const Granularity& granularity);
void check_zero_point(const char* op, const Tensor& x, const OptionalTensor& zero_point,
                      const Granularity& granularity);
void check_grid(const char* op, int64_t quant_min, int64_t quant_max);
void check_rng(const char* op, Rounding rounding, const OptionalTensor& rng);
// Private ops get choices as numbers: from 0 to the last one.
void check_choice(const char* op, const char* name, int64_t value, int64_t last);
template <class Enum>
void check_choice(const char* op, const char* name, int64_t value, Enum last) {
  check_choice(op, name, value, static_cast<int64_t>(last));
}
// A dense layout that x can have; only Contiguous where groups lie along the last dimension.
void check_format(const char* op, const Tensor& x, at::MemoryFormat format,
                  const Granularity& granularity);
// The type and shape of x.
void check_like(const char* op, const char* name, const Tensor& value, const Tensor& x);
// One bit for each of n elements, in words of 64 bits; and `more` words.
void check_bits(const char* op, const char* name, const Tensor& bits, const c10::SymInt& n,
                int64_t more = 0);
// The number of elements of a shape that a user gives; throws where it overflows.
c10::SymInt count_of(const char* op, c10::SymIntArrayRef shape);
Rounding parse_rounding(const char* op, c10::string_view name);
// The position of `name` among `names`; otherwise an error that lists them.
int64_t parse_name(const char* op, const char* argument, c10::string_view name,
                   std::initializer_list<const char*> names);

// Returns the layout in which kernels read x: its own if that is contiguous or channels_last, else
// contiguous. Groups lie along the last dimension, so they always need contiguous.
at::MemoryFormat format_of(const Tensor& x, const Granularity& granularity);
ReduceLayout layout_of(const Tensor& x, const Granularity& granularity, at::MemoryFormat format);

// A scale tensor's shape for x.
c10::SymDimVector scale_shape(const Tensor& x, const Granularity& granularity);

inline const OptionalTensor kNoTensor;

// The arguments that make a quantizer. See math/fake_quant.h for `floored`.
struct QuantizerOptions {
  const OptionalTensor& scale = kNoTensor;
  const OptionalTensor& zero_point = kNoTensor;
  const OptionalTensor& threshold = kNoTensor;
  int64_t quant_min = 0, quant_max = 0;
  bool floored = false;
};

// The tensors a kernel reads of a quantizer, kept alive.
struct QuantizerTensors {
  Tensor scale, zero_point, threshold;
  Quantizer quantizer;
};

// With see_values, scales and zero points are checked.
QuantizerTensors quantizer_of(const char* op, const QuantizerOptions& options,
                              const ReduceLayout& layout, bool see_values);

// The same from the arguments of an op on a grid.
template <class Device, class Options>
QuantizerTensors quantizer_on_grid(const char* op, const Options& o, const ReduceLayout& layout,
                                   bool floored = false) {
  return quantizer_of(op,
                      {.scale = o.scale,
                       .zero_point = o.zero_point,
                       .quant_min = o.quant_min,
                       .quant_max = o.quant_max,
                       .floored = floored},
                      layout, Device::kSeesValues);
}

// Checks x, its grid, scale and zero point, and its layout: what the ops on a grid share.
template <class Options>
void check_on_grid(const char* op, const Options& o) {
  check_input(op, o.x);
  check_grid(op, o.quant_min, o.quant_max);
  check_granularity(op, o.x, o.granularity);
  check_scale(op, o.x, o.scale, o.granularity);
  check_zero_point(op, o.x, o.zero_point, o.granularity);
  check_format(op, o.x, o.format, o.granularity);
}

// Returns space on x's device for the partial sums of a reduction: `terms` floats for each piece.
Tensor new_partial(const Tensor& x, const ReduceLayout& layout, int64_t terms);

// Returns words for one bit per element of x; none unless `wanted`.
Tensor new_bits(const Tensor& x, bool wanted);

// An array that a kernel reads: a contiguous copy of a tensor, or the tensor itself if it is
// contiguous; null if there is none.
template <class T>
class Array {
 public:
  explicit Array(const OptionalTensor& x) {
    if (x) contiguous_ = x->contiguous();
  }
  const T* data() const {
    return contiguous_.defined() ? static_cast<const T*>(contiguous_.const_data_ptr()) : nullptr;
  }

 private:
  Tensor contiguous_;
};

inline bool needs_gradient(const Tensor& x) {
  return at::GradMode::is_enabled() && x.requires_grad();
}

}  // namespace bitpare::ops
