#include "kernels/fake_quant_weights.h"

#include <ATen/TensorSubclassLikeUtils.h>
#include <ATen/record_function.h>

#include "ops/control.h"
#include "ops/overwrite.h"
#include "ops/straight_through.h"

namespace bitpare::ops {
namespace {

constexpr const char* kOp = "fake_quant_weights";

using at::TensorList;
using Quantized = std::tuple<std::vector<Tensor>, std::vector<Tensor>>;

void check(TensorList x, TensorList scale, TensorList control) {
  TORCH_CHECK(scale.size() == x.size(), kOp, ": scale must have ", x.size(),
              " entries like x, got ", scale.size());
  TORCH_CHECK(control.size() == x.size(), kOp, ": control must have ", x.size(),
              " entries like x, got ", control.size());
  for (size_t i = 0; i < x.size(); ++i) {
    check_input(kOp, x[i]);
    auto scales = scale[i].sym_numel();
    TORCH_CHECK(scales == 1 || (x[i].dim() > 0 && scales == x[i].sym_size(0)), kOp,
                ": scale must have 1 element or one for each index of dimension 0 of x, got ",
                scales, " for x of shape ", x[i].sym_sizes());
    check_written(kOp, "scale", scale[i], at::kFloat, scales);
    check_control(kOp, control[i]);
    TORCH_CHECK(control[i].is_contiguous(), kOp, ": control must be contiguous");
  }
}

template <class Device>
void check_values(TensorList x, TensorList control) {
  if (x.empty()) return;
  Device::require(kOp, x[0]);
  if (!Device::kSeesValues) return;
  for (const Tensor& c : control) {
    Control seen = seen_control(kOp, c);
    TORCH_CHECK(seen.quant_max > 0, kOp, ": quant_max must be positive, got ", seen.quant_max);
  }
}

// Returns x in a dense layout with dimension 0 outermost.
Tensor in_rows(const Tensor& x) { return x.contiguous(x.suggest_memory_format()); }

Weight weight_of(const Tensor& source, const Tensor& scale, const Tensor& control) {
  Weight w = {};
  w.x = source.const_data_ptr();
  w.scale = const_cast<float*>(scale.const_data_ptr<float>());  // written by weight_scales alone
  w.control = control_of(control);
  w.n = source.numel();
  w.scales = scale.numel();
  w.dtype = dtype_of(kOp, source);
  return w;
}

// Words for one bit per element, and one more.
Tensor new_words(const Tensor& x) {
  return at::empty_symint({(x.sym_numel() + 63) / 64 + 1},
                          x.options().dtype(at::kLong).memory_format(std::nullopt));
}

// The weights as kernels read them, and the tensors that own their memory.
struct Worklist {
  std::vector<Tensor> sources, y, inside;
  Tensor widest;
  std::vector<Weight> weights;

  int64_t size() const { return static_cast<int64_t>(weights.size()); }
};

template <class Device>
Worklist worklist(TensorList x, TensorList scale, TensorList control) {
  check(x, scale, control);
  check_values<Device>(x, control);
  Worklist list;
  for (size_t i = 0; i < x.size(); ++i) {
    list.sources.push_back(in_rows(x[i]));
    list.weights.push_back(weight_of(list.sources[i], scale[i], control[i]));
  }
  return list;
}

void add_scratch(Worklist& list, const at::TensorOptions& int32) {
  list.widest = at::zeros({2 * list.size()}, int32);
  int32_t* widest = list.widest.data_ptr<int32_t>();
  for (Weight& w : list.weights) {
    w.widest = widest;
    widest += 2;
  }
}

void add_results(Worklist& list) {
  for (size_t i = 0; i < list.weights.size(); ++i) {
    list.y.push_back(at::empty_like(list.sources[i]));
    list.inside.push_back(new_words(list.sources[i]));
    list.weights[i].y = list.y[i].data_ptr();
    list.weights[i].inside = static_cast<uint64_t*>(list.inside[i].data_ptr());
  }
}

template <class Device>
void weight_scales(TensorList x, TensorList scale, TensorList control, bool power_of_two) {
  Worklist list = worklist<Device>(x, scale, control);
  if (x.empty()) return;
  add_scratch(list, control[0].options());
  WeightScales args = {list.weights.data(), list.size(), power_of_two};
  Device::run(x[0], [&](const auto& where) { bitpare::weight_scales(args, where); });
}

void weight_scales_meta(TensorList x, TensorList scale, TensorList control, bool) {
  check(x, scale, control);
}

void note_written(TensorList, TensorList scale, TensorList, bool) {
  for (const Tensor& t : scale) bump_version(t);
}

template <class Device>
Quantized quantize(TensorList x, TensorList scale, TensorList control) {
  Worklist list = worklist<Device>(x, scale, control);
  if (x.empty()) return {};
  add_results(list);
  FakeQuantWeights args = {list.weights.data(), list.size()};
  Device::run(x[0], [&](const auto& where) { bitpare::fake_quant_weights(args, where); });
  return {list.y, list.inside};
}

Quantized quantize_meta(TensorList x, TensorList scale, TensorList control) {
  check(x, scale, control);
  std::vector<Tensor> y, inside;
  for (const Tensor& w : x) {
    y.push_back(at::empty_like(w, w.options(), w.suggest_memory_format()));
    inside.push_back(new_words(w));
  }
  return {y, inside};
}

// Computes scales and quantizes in one pass.
template <class Device>
Quantized scale_and_quantize(TensorList x, TensorList scale, TensorList control,
                             bool power_of_two) {
  RECORD_FUNCTION("bitpare::_scale_and_fake_quant_weights", {});
  at::AutoDispatchBelowADInplaceOrView below;
  Worklist list = worklist<Device>(x, scale, control);
  add_scratch(list, control[0].options());
  add_results(list);
  WeightScales args = {list.weights.data(), list.size(), power_of_two};
  for (const Tensor& s : scale) bump_version(s);
  Device::run(x[0], [&](const auto& where) { scale_and_fake_quant_weights(args, where); });
  return {list.y, list.inside};
}

// torch.compile supports no op that both mutates and returns lists, so it sees two ops.
Quantized fake_quant_weights(TensorList x, TensorList scale, TensorList control,
                             bool power_of_two) {
  bool plain = !x.empty();
  for (TensorList list : {x, scale, control}) {
    plain &= std::all_of(list.begin(), list.end(), shows_memory);
  }
  if (plain && x[0].is_cpu()) return scale_and_quantize<Cpu>(x, scale, control, power_of_two);
  if (plain && x[0].is_cuda()) return scale_and_quantize<Cuda>(x, scale, control, power_of_two);
  static auto scales = find_op<decltype(weight_scales_meta)>("bitpare::_weight_scales_");
  static auto quantized = find_op<decltype(quantize_meta)>("bitpare::_fake_quant_weights");
  scales.call(x, scale, control, power_of_two);
  return quantized.call(x, scale, control);
}

// Returns whether the last word says that no value was clipped, if it can be looked at.
bool nothing_clipped(const Tensor& inside) {
  if (!inside.is_cpu() || !shows_memory(inside) || !inside.is_contiguous()) return false;
  return inside.const_data_ptr<int64_t>()[inside.numel() - 1] == 0;
}

// The same memory and version counter, without the cost of an op.
Tensor alias_of(const Tensor& value) {
  auto* impl = value.unsafeGetTensorImpl();
  return Tensor(impl->shallow_copy_and_detach(impl->version_counter(), false));
}

struct Use : torch::autograd::Function<Use> {
  static constexpr bool is_traceable = true;

  static Tensor forward(AutogradContext* context, const Tensor&, const Tensor& value,
                        const Tensor& inside) {
    context->save_for_backward({inside});
    auto format = value.suggest_memory_format();
    if (format != at::MemoryFormat::Contiguous) {  // the dictionary costs 0.2 us
      context->saved_data["format"] = static_cast<int64_t>(format);
    }
    return at::isTensorSubclassLike(value) ? value : alias_of(value);
  }

  static variable_list backward(AutogradContext* context, const variable_list& dy) {
    Tensor inside = context->get_saved_variables()[0];
    BelowAutogradUnlessRecording below;
    if (nothing_clipped(inside)) return {dy[0], Tensor(), Tensor()};
    auto saved = context->saved_data.find("format");
    auto format = saved == context->saved_data.end()
                      ? at::MemoryFormat::Contiguous
                      : static_cast<at::MemoryFormat>(saved->second.toInt());
    return {straight_through_or_over(dy[0], inside, format), Tensor(), Tensor()};
  }
};

Tensor use_weight(const Tensor& weight, const Tensor& value, const Tensor& inside) {
  TORCH_CHECK(value.sym_sizes() == weight.sym_sizes(), "use_weight: value must have shape ",
              weight.sym_sizes(), " like weight, got ", value.sym_sizes());
  auto words = (value.sym_numel() + 63) / 64 + 1;
  check_input("use_weight", value);
  TORCH_CHECK(inside.scalar_type() == at::kLong && inside.sym_numel() == words &&
                  inside.layout() == at::kStrided,
              "use_weight: inside must have ", words,
              " words of int64, as fake_quant_weights gives, got ", inside.sym_numel(), " of ",
              inside.scalar_type());
  if (!needs_gradient(weight)) return value;
  if (at::isTensorSubclassLike(weight) || at::isTensorSubclassLike(value) ||
      !nothing_clipped(inside)) {
    return Use::apply(weight, value, inside);
  }
  // The gradient of the value is that of the weight: a node would only pass it on, for 10 us.
  Tensor used = alias_of(value);
  torch::autograd::impl::set_gradient_edge(used, torch::autograd::impl::gradient_edge(weight));
  return used;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(bitpare, m) {
  m.def(
      "fake_quant_weights(Tensor[] x, Tensor(a!)[] scale, Tensor[] control, *, "
      "bool power_of_two=False) -> (Tensor[] y, Tensor[] inside)",
      tags());
  m.def(
      "_weight_scales_(Tensor[] x, Tensor(a!)[] scale, Tensor[] control, bool power_of_two) -> ()",
      tags());
  m.def(
      "_fake_quant_weights(Tensor[] x, Tensor[] scale, Tensor[] control) -> "
      "(Tensor[] y, Tensor[] inside)",
      tags());
  m.def("use_weight(Tensor weight, Tensor(a) value, Tensor inside) -> Tensor(a)", tags());
  composite(m, "fake_quant_weights", fake_quant_weights);
  kernels(m, "_weight_scales_", weight_scales<Cpu>, weight_scales<Cuda>, weight_scales_meta);
  no_gradient(m, "_weight_scales_");
  writes<weight_scales_meta, note_written>(m, "_weight_scales_");
  kernels(m, "_fake_quant_weights", quantize<Cpu>, quantize<Cuda>, quantize_meta);
  no_gradient(m, "_fake_quant_weights");
  composite(m, "use_weight", use_weight);
}

}  // namespace bitpare::ops
