#include "ops/arguments.h"

#include <ATen/WrapDimUtils.h>

namespace bitpare::ops {

DType dtype_of(const char* op, const Tensor& x) {
  if (x.scalar_type() == at::kFloat) return DType::float32;
  if (x.scalar_type() == at::kHalf) return DType::float16;
  if (x.scalar_type() == at::kBFloat16) return DType::bfloat16;
  TORCH_CHECK(false, op, ": x must be float32, float16 or bfloat16, got ", x.scalar_type());
}

void check_input(const char* op, const Tensor& x) {
  dtype_of(op, x);
  TORCH_CHECK(x.layout() == at::kStrided, op, ": x must be a dense tensor, got layout ",
              x.layout());
}

void check_granularity(const char* op, const Tensor& x, const Granularity& g) {
  TORCH_CHECK(!(g.axis && g.group), op,
              ": axis and group cannot be given together, got axis=", *g.axis,
              " and group=", *g.group);
  if (g.axis) {
    TORCH_CHECK(*g.axis >= -x.dim() && *g.axis < x.dim(), op, ": axis must be in [", -x.dim(), ", ",
                x.dim() - 1, "] for x with ", x.dim(), " dimensions, got ", *g.axis);
  }
  if (g.group) {
    TORCH_CHECK(*g.group >= 1, op, ": group must be at least 1, got ", *g.group);
    TORCH_CHECK(x.dim() >= 1, op, ": group needs x with at least one dimension, got none");
    TORCH_CHECK(x.sym_size(-1) % *g.group == 0, op, ": group must divide the last dimension of x (",
                x.sym_size(-1), "), got ", *g.group);
  }
}

c10::SymDimVector scale_shape(const Tensor& x, const Granularity& g) {
  if (g.axis) return {x.sym_size(*g.axis)};
  if (!g.group) return {};
  c10::SymDimVector shape(x.sym_sizes().begin(), x.sym_sizes().end());
  shape.back() = shape.back() / *g.group;
  return shape;
}

void check_per_channel(const char* op, const char* name, const Tensor& x, const Tensor& values,
                       const Granularity& g) {
  if (g.group) {
    c10::SymDimVector expected = scale_shape(x, g);
    TORCH_CHECK(values.sym_sizes() == c10::SymIntArrayRef(expected), op, ": ", name,
                " must have shape ", c10::SymIntArrayRef(expected), " (groups of ", *g.group,
                " along the last dimension of x), got ", values.sym_sizes());
  } else if (g.axis) {
    TORCH_CHECK(values.sym_numel() == x.sym_size(*g.axis), op, ": ", name, " must have ",
                x.sym_size(*g.axis), " elements (channels of x along axis ", *g.axis, "), got ",
                values.sym_numel());
    TORCH_CHECK(values.dim() <= 1, op, ": ", name, " must have one dimension, got shape ",
                values.sym_sizes());
  } else {
    TORCH_CHECK(values.sym_numel() == 1, op, ": ", name,
                " must have 1 element (give axis or group for more), got ", values.sym_numel());
  }
}

void check_scale(const char* op, const Tensor& x, const Tensor& scale, const Granularity& g) {
  TORCH_CHECK(scale.scalar_type() == at::kFloat, op, ": scale must be float32, got ",
              scale.scalar_type());
  check_per_channel(op, "scale", x, scale, g);
}

void check_zero_point(const char* op, const Tensor& x, const OptionalTensor& zero_point,
                      const Granularity& g) {
  if (!zero_point) return;
  auto type = zero_point->scalar_type();
  TORCH_CHECK(type == at::kInt || type == at::kFloat, op,
              ": zero_point must be int32, or float32 where it is learned, got ", type);
  check_per_channel(op, "zero_point", x, *zero_point, g);
}

void check_grid(const char* op, int64_t quant_min, int64_t quant_max) {
  TORCH_CHECK(quant_min < quant_max, op, ": quant_min must be below quant_max, got ", quant_min,
              " and ", quant_max);
  TORCH_CHECK(quant_min >= -65536 && quant_max <= 65536 && quant_max - quant_min <= 65535, op,
              ": quant_min and quant_max must span at most 16 bits, got ", quant_min, " and ",
              quant_max);
}

void check_rng(const char* op, Rounding rounding, const OptionalTensor& rng) {
  if (rounding != Rounding::stochastic) return;
  TORCH_CHECK(rng, op, ": rounding='stochastic' needs rng, an int64 tensor of a seed and a step");
  TORCH_CHECK(rng->scalar_type() == at::kLong && rng->sym_numel() == 2, op,
              ": rng must be an int64 tensor of 2 elements, seed and step, got ",
              rng->scalar_type(), " of ", rng->sym_numel());
}

void check_choice(const char* op, const char* name, int64_t value, int64_t last) {
  TORCH_CHECK(value >= 0 && value <= last, op, ": ", name, " must be in [0, ", last, "], got ",
              value);
}

void check_format(const char* op, const Tensor& x, at::MemoryFormat format, const Granularity& g) {
  bool fits = format == at::MemoryFormat::Contiguous ||
              (format == at::MemoryFormat::ChannelsLast && x.dim() == 4) ||
              (format == at::MemoryFormat::ChannelsLast3d && x.dim() == 5);
  TORCH_CHECK(fits && (!g.group || format == at::MemoryFormat::Contiguous), op,
              ": memory_format must be a dense format for ", x.dim(), " dimensions",
              g.group ? ", and contiguous with group" : "", ", got ", format);
}

void check_like(const char* op, const char* name, const Tensor& value, const Tensor& x) {
  TORCH_CHECK(value.scalar_type() == x.scalar_type(), op, ": ", name, " must be ", x.scalar_type(),
              " like x, got ", value.scalar_type());
  TORCH_CHECK(value.sym_sizes() == x.sym_sizes(), op, ": ", name, " must have shape ",
              x.sym_sizes(), " like x, got ", value.sym_sizes());
}

void check_bits(const char* op, const char* name, const Tensor& bits, const c10::SymInt& n,
                int64_t more) {
  c10::SymInt words = (n + 63) / 64 + more;
  TORCH_CHECK(bits.scalar_type() == at::kLong && bits.sym_numel() == words, op, ": ", name,
              " must have ", words, " words of int64, got ", bits.sym_numel(), " of ",
              bits.scalar_type());
}

c10::SymInt count_of(const char* op, c10::SymIntArrayRef shape) {
  constexpr int64_t kMost = int64_t{1} << 48;
  c10::SymInt n = 1;
  for (const c10::SymInt& size : shape) {
    TORCH_CHECK(size >= 0, op, ": shape must not be negative, got ", shape);
    auto before = n.maybe_as_int(), by = size.maybe_as_int();
    if (before && by) {
      int64_t product = 0;
      TORCH_CHECK(
          *by <= kMost && !__builtin_mul_overflow(*before, *by, &product) && product <= kMost, op,
          ": shape must have at most ", kMost, " elements, got ", shape);
      n = product;
    } else {
      n *= size;
    }
  }
  return n;
}

int64_t parse_name(const char* op, const char* argument, c10::string_view name,
                   std::initializer_list<const char*> names) {
  int64_t index = 0;
  for (const char* candidate : names) {
    if (name == candidate) return index;
    ++index;
  }
  std::string known;
  for (const char* candidate : names)
    known += (known.empty() ? "'" : ", '") + std::string(candidate) + "'";
  TORCH_CHECK(false, op, ": ", argument, " must be one of ", known, ", got '", name, "'");
}

Rounding parse_rounding(const char* op, c10::string_view name) {
  return static_cast<Rounding>(parse_name(
      op, "rounding", name, {"nearest", "half_up", "floor", "ceil", "toward_zero", "stochastic"}));
}

at::MemoryFormat format_of(const Tensor& x, const Granularity& g) {
  return g.group ? at::MemoryFormat::Contiguous : x.suggest_memory_format();
}

ReduceLayout layout_of(const Tensor& x, const Granularity& g, at::MemoryFormat format) {
  int64_t n = x.numel();
  if (g.group) return {1, n / *g.group, *g.group};
  if (!g.axis) return {1, 1, n};
  int64_t axis = at::maybe_wrap_dim(*g.axis, x.dim()), outer = 1, inner = 1;
  // The place of a dimension in memory: channels_last moves dimension 1 to the end.
  bool channels_last = format != at::MemoryFormat::Contiguous;
  auto place = [&](int64_t d) { return channels_last && d == 1 ? x.dim() : d; };
  for (int64_t d = 0; d < x.dim(); ++d) {
    if (place(d) < place(axis)) outer *= x.size(d);
    if (place(d) > place(axis)) inner *= x.size(d);
  }
  return {outer, x.size(axis), inner};
}

namespace {

void check_scale_values(const char* op, const Tensor& scale, bool floored) {
  const float* s = scale.const_data_ptr<float>();
  int64_t n = scale.numel();
  for (int64_t i = 0; i < n; ++i) {
    bool good = std::isfinite(s[i]) && (floored || s[i] > 0);
    TORCH_CHECK(good, op, ": scale must be ", floored ? "finite" : "positive and finite", ", got ",
                s[i], " at index ", i);
  }
}

void check_zero_point_values(const char* op, const Tensor& zero_point, int64_t quant_min,
                             int64_t quant_max) {
  const int32_t* z = zero_point.const_data_ptr<int32_t>();
  int64_t n = zero_point.numel();
  for (int64_t i = 0; i < n; ++i) {
    TORCH_CHECK(z[i] >= quant_min && z[i] <= quant_max, op, ": zero_point must be in [", quant_min,
                ", ", quant_max, "], got ", z[i], " at index ", i);
  }
}

}  // namespace

QuantizerTensors quantizer_of(const char* op, const QuantizerOptions& o, const ReduceLayout& layout,
                              bool see_values) {
  QuantizerTensors t;
  Quantizer& q = t.quantizer;
  q.channel = {layout.inner, layout.channels};
  q.quant_min = static_cast<float>(o.quant_min);
  q.quant_max = static_cast<float>(o.quant_max);
  q.floored = o.floored;
  if (o.scale) {
    t.scale = o.scale->contiguous();
    if (see_values) check_scale_values(op, t.scale, o.floored);
    q.scale = t.scale.const_data_ptr<float>();
  }
  if (o.zero_point) {
    t.zero_point = o.zero_point->contiguous();
    if (t.zero_point.scalar_type() == at::kInt) {
      if (see_values) check_zero_point_values(op, t.zero_point, o.quant_min, o.quant_max);
      q.zero_point = t.zero_point.const_data_ptr<int32_t>();
    } else {
      q.learned_zero_point = t.zero_point.const_data_ptr<float>();
    }
  }
  if (o.threshold) {
    t.threshold = o.threshold->contiguous();
    q.threshold = t.threshold.const_data_ptr<float>();
  }
  return t;
}

Tensor new_partial(const Tensor& x, const ReduceLayout& layout, int64_t terms) {
  auto options = x.options().dtype(at::kFloat).memory_format(std::nullopt);
  return at::empty({terms * math::pieces_of(layout) * layout.channels}, options);
}

Tensor new_bits(const Tensor& x, bool wanted) {
  c10::SymInt words = wanted ? (x.sym_numel() + 63) / 64 : c10::SymInt(0);
  return at::empty_symint({words}, x.options().dtype(at::kLong).memory_format(std::nullopt));
}

}  // namespace bitpare::ops
