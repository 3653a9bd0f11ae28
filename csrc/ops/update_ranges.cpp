#include "kernels/update_ranges.h"

#include <cmath>

#include "ops/control.h"

namespace bitpare::ops {
namespace {

constexpr const char* kOp = "update_ranges_";

using at::TensorList;

// The lists, one entry a quantizer.
struct States {
  TensorList pending, range, scale, zero_point, count, control;
};

UpdateRule parse_rule(c10::string_view rule, double momentum, bool symmetric, bool power_of_two) {
  auto update = static_cast<RangeUpdate>(parse_name(kOp, "rule", rule, {"minmax", "ema", "last"}));
  TORCH_CHECK(update != RangeUpdate::ema || (momentum > 0 && momentum <= 1), kOp,
              ": momentum must be in (0, 1] with rule='ema', got ", momentum);
  return {update, static_cast<float>(momentum), symmetric, power_of_two};
}

void check_lengths(const States& s, bool symmetric, at::ArrayRef<double> limit) {
  size_t quantizers = s.pending.size();
  auto same = [&](const char* name, size_t length, bool may_be_empty) {
    TORCH_CHECK(length == quantizers || (may_be_empty && length == 0), kOp, ": ", name,
                " must have ", quantizers, " entries like pending", may_be_empty ? ", or none" : "",
                ", got ", length);
  };
  same("range", s.range.size(), false);
  same("scale", s.scale.size(), false);
  same("zero_point", s.zero_point.size(), symmetric);
  same("count", s.count.size(), false);
  same("control", s.control.size(), false);
  same("limit", limit.size(), true);
}

void check(const States& s, bool symmetric, at::ArrayRef<double> limit) {
  check_lengths(s, symmetric, limit);
  for (size_t i = 0; i < s.pending.size(); ++i) {
    c10::SymInt n = s.scale[i].sym_numel();
    check_written(kOp, "scale", s.scale[i], at::kFloat, n);
    check_written(kOp, "pending", s.pending[i], at::kFloat, 2 * n);
    check_written(kOp, "range", s.range[i], at::kFloat, 2 * n);
    check_written(kOp, "count", s.count[i], at::kLong, 2);
    if (!s.zero_point.empty()) {
      check_written(kOp, "zero_point", s.zero_point[i], at::kInt, n);
    }
    check_control(kOp, s.control[i]);
    TORCH_CHECK(s.control[i].is_contiguous(), kOp, ": control must be contiguous");
  }
}

// On the CPU: the grid of each quantizer.
void check_values(const States& s, bool symmetric) {
  for (const Tensor& control : s.control) {
    Control c = seen_control(kOp, control);
    TORCH_CHECK(!symmetric || c.quant_max > 0, kOp,
                ": quant_max must be positive with symmetric=True, got ", c.quant_max);
  }
}

template <class Device>
void body(TensorList pending, TensorList range, TensorList scale, TensorList zero_point,
          TensorList count, TensorList control, c10::string_view rule, double momentum,
          bool symmetric, bool power_of_two, at::ArrayRef<double> limit) {
  States s = {pending, range, scale, zero_point, count, control};
  UpdateRule parsed = parse_rule(rule, momentum, symmetric, power_of_two);
  check(s, symmetric, limit);
  if (pending.empty()) return;
  Device::require(kOp, pending[0]);
  if (Device::kSeesValues) check_values(s, symmetric);
  c10::SmallVector<QuantizerState, 64> states;
  for (size_t i = 0; i < pending.size(); ++i) {
    states.push_back({pending[i].data_ptr<float>(), range[i].data_ptr<float>(),
                      scale[i].data_ptr<float>(),
                      zero_point.empty() ? nullptr : zero_point[i].data_ptr<int32_t>(),
                      count[i].data_ptr<int64_t>(), control_of(control[i]), scale[i].numel(),
                      limit.empty() ? 0.0f : static_cast<float>(limit[i])});
  }
  UpdateRanges args = {states.data(), static_cast<int64_t>(states.size()), parsed};
  Device::run(pending[0], [&](const auto& where) { update_ranges(args, where); });
}

void meta(TensorList pending, TensorList range, TensorList scale, TensorList zero_point,
          TensorList count, TensorList control, c10::string_view rule, double momentum,
          bool symmetric, bool power_of_two, at::ArrayRef<double> limit) {
  parse_rule(rule, momentum, symmetric, power_of_two);
  check({pending, range, scale, zero_point, count, control}, symmetric, limit);
}

void written(c10::DispatchKeySet keys, TensorList pending, TensorList range, TensorList scale,
             TensorList zero_point, TensorList count, TensorList control, c10::string_view rule,
             double momentum, bool symmetric, bool power_of_two, at::ArrayRef<double> limit) {
  static auto op = find_op<decltype(meta)>("bitpare::update_ranges_");
  for (TensorList list : {pending, range, scale, zero_point, count}) {
    for (const Tensor& t : list) bump_version(t);
  }
  op.redispatch(keys & c10::after_ADInplaceOrView_keyset, pending, range, scale, zero_point, count,
                control, rule, momentum, symmetric, power_of_two, limit);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(bitpare, m) {
  m.def(
      "update_ranges_(Tensor(a!)[] pending, Tensor(b!)[] range, Tensor(c!)[] scale, "
      "Tensor(d!)[] zero_point, Tensor(e!)[] count, Tensor[] control, *, str rule, float momentum, "
      "bool symmetric, bool power_of_two, float[] limit) -> ()",
      tags());
  kernels(m, "update_ranges_", body<Cpu>, body<Cuda>, meta);
  no_gradient(m, "update_ranges_");
}
TORCH_LIBRARY_IMPL(bitpare, ADInplaceOrView, m) { m.impl("update_ranges_", written); }

}  // namespace bitpare::ops
