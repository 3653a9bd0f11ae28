#include "kernels/update_ranges.h"

#include <cmath>

#include "ops/control.h"

namespace bitpare::ops {
namespace {

constexpr const char* kOp = "update_ranges_";

using at::TensorList;

// The arguments: lists with one entry for each quantizer, and the rule.
struct Options {
  TensorList pending, range, scale, zero_point, count, control;
  c10::string_view rule;
  double momentum;
  bool symmetric, power_of_two;
  at::ArrayRef<double> limit;

  auto fields() const {
    return std::tie(pending, range, scale, zero_point, count, control, rule, momentum, symmetric,
                    power_of_two, limit);
  }
};

UpdateRule parse_rule(const Options& o) {
  auto update =
      static_cast<RangeUpdate>(parse_name(kOp, "rule", o.rule, {"minmax", "ema", "last"}));
  TORCH_CHECK(update != RangeUpdate::ema || (o.momentum > 0 && o.momentum <= 1), kOp,
              ": momentum must be in (0, 1] with rule='ema', got ", o.momentum);
  return {update, static_cast<float>(o.momentum), o.symmetric, o.power_of_two};
}

void check_lengths(const Options& o) {
  size_t quantizers = o.pending.size();
  auto same = [&](const char* name, size_t length, bool may_be_empty) {
    TORCH_CHECK(length == quantizers || (may_be_empty && length == 0), kOp, ": ", name,
                " must have ", quantizers, " entries like pending", may_be_empty ? ", or none" : "",
                ", got ", length);
  };
  same("range", o.range.size(), false);
  same("scale", o.scale.size(), false);
  same("zero_point", o.zero_point.size(), o.symmetric);
  same("count", o.count.size(), false);
  same("control", o.control.size(), false);
  same("limit", o.limit.size(), true);
}

void check(const Options& o) {
  check_lengths(o);
  for (size_t i = 0; i < o.pending.size(); ++i) {
    c10::SymInt n = o.scale[i].sym_numel();
    check_written(kOp, "scale", o.scale[i], at::kFloat, n);
    check_written(kOp, "pending", o.pending[i], at::kFloat, 2 * n);
    check_written(kOp, "range", o.range[i], at::kFloat, 2 * n);
    check_written(kOp, "count", o.count[i], at::kLong, 2);
    if (!o.zero_point.empty()) check_written(kOp, "zero_point", o.zero_point[i], at::kInt, n);
    check_control(kOp, o.control[i]);
    TORCH_CHECK(o.control[i].is_contiguous(), kOp, ": control must be contiguous");
  }
}

// Checks the grid of each quantizer, on the CPU.
void check_values(const Options& o) {
  for (const Tensor& control : o.control) {
    Control c = seen_control(kOp, control);
    TORCH_CHECK(!o.symmetric || c.quant_max > 0, kOp,
                ": quant_max must be positive with symmetric=True, got ", c.quant_max);
  }
}

template <class Device>
void body(const Options& o) {
  UpdateRule rule = parse_rule(o);
  check(o);
  if (o.pending.empty()) return;
  Device::require(kOp, o.pending[0]);
  if (Device::kSeesValues) check_values(o);
  c10::SmallVector<QuantizerState, 64> states;
  for (size_t i = 0; i < o.pending.size(); ++i) {
    states.push_back({
        .pending = o.pending[i].data_ptr<float>(),
        .range = o.range[i].data_ptr<float>(),
        .scale = o.scale[i].data_ptr<float>(),
        .zero_point = o.zero_point.empty() ? nullptr : o.zero_point[i].data_ptr<int32_t>(),
        .count = o.count[i].data_ptr<int64_t>(),
        .control = control_of(o.control[i]),
        .n = o.scale[i].numel(),
        .limit = o.limit.empty() ? 0.0f : static_cast<float>(o.limit[i]),
    });
  }
  UpdateRanges args = {states.data(), static_cast<int64_t>(states.size()), rule};
  Device::run(o.pending[0], [&](const auto& where) { update_ranges(args, where); });
}

void meta(const Options& o) {
  parse_rule(o);
  check(o);
}

void note_written(const Options& o) {
  for (TensorList list : {o.pending, o.range, o.scale, o.zero_point, o.count}) {
    for (const Tensor& t : list) bump_version(t);
  }
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
  writes<meta, note_written>(m, "update_ranges_");
}

}  // namespace bitpare::ops
