#include "kernels/track_oscillations.h"

#include <limits>

#include "ops/control.h"

namespace bitpare::ops {
namespace {

constexpr const char* kOp = "track_oscillations_";

// The state of each element.
struct State {
  const Tensor &code, &turn, &frequency, &mean;
};

// A weight and its state are walked in the order they lie in memory.
void check(const Tensor& weight, const Tensor& scale, const Tensor& control, const State& s,
           double momentum, std::optional<double> threshold, const OptionalTensor& skip) {
  check_input(kOp, weight);
  c10::SymInt n = weight.sym_numel(), scales = scale.sym_numel();
  TORCH_CHECK(weight.is_contiguous(weight.suggest_memory_format()), kOp,
              ": weight must be contiguous or channels_last, since it is written, got strides ",
              weight.sym_strides());
  TORCH_CHECK(scale.scalar_type() == at::kFloat, kOp, ": scale must be float32, got ",
              scale.scalar_type());
  TORCH_CHECK(scales > 0 && n % scales == 0, kOp,
              ": scale must have a number of elements that divides weight's ", n, ", got ", scales);
  check_control(kOp, control);
  check_written(kOp, "code", s.code, at::kShort, n);
  check_written(kOp, "turn", s.turn, at::kChar, n);
  check_written(kOp, "frequency", s.frequency, at::kFloat, n);
  check_written(kOp, "mean", s.mean, at::kFloat, n);
  TORCH_CHECK(momentum > 0 && momentum <= 1, kOp, ": momentum must be in (0, 1], got ", momentum);
  TORCH_CHECK(!threshold || *threshold >= 0, kOp, ": threshold must be 0 or more, got ",
              *threshold);
  if (skip) check_written(kOp, "skip", *skip, at::kFloat, 1);
}

template <class Device>
void body(const Tensor& weight, const Tensor& scale, const Tensor& control, const Tensor& code,
          const Tensor& turn, const Tensor& frequency, const Tensor& mean, double momentum,
          std::optional<double> threshold, bool first, const OptionalTensor& skip) {
  Device::require(kOp, weight);
  check(weight, scale, control, {code, turn, frequency, mean}, momentum, threshold, skip);
  Tensor dense_control = control.contiguous(), dense_scale = scale.contiguous();
  if (Device::kSeesValues) seen_control(kOp, dense_control);
  TrackOscillations args = {};
  args.weight = weight.data_ptr();
  args.dtype = dtype_of(kOp, weight);
  args.n = weight.numel();
  args.quantizer.scale = dense_scale.const_data_ptr<float>();
  args.quantizer.channel = {args.n / scale.numel(), scale.numel()};
  args.quantizer.floored = true;
  args.control = control_of(dense_control);
  args.code = code.data_ptr<int16_t>();
  args.turn = turn.data_ptr<int8_t>();
  args.frequency = frequency.data_ptr<float>();
  args.mean = mean.data_ptr<float>();
  args.skip = skip ? skip->const_data_ptr<float>() : nullptr;
  args.momentum = static_cast<float>(momentum);
  args.threshold = static_cast<float>(threshold.value_or(std::numeric_limits<double>::infinity()));
  args.first = first;
  if (args.n == 0) return;
  Device::run(weight, [&](const auto& where) { track_oscillations(args, where); });
}

void meta(const Tensor& weight, const Tensor& scale, const Tensor& control, const Tensor& code,
          const Tensor& turn, const Tensor& frequency, const Tensor& mean, double momentum,
          std::optional<double> threshold, bool, const OptionalTensor& skip) {
  check(weight, scale, control, {code, turn, frequency, mean}, momentum, threshold, skip);
}

void written(c10::DispatchKeySet keys, const Tensor& weight, const Tensor& scale,
             const Tensor& control, const Tensor& code, const Tensor& turn, const Tensor& frequency,
             const Tensor& mean, double momentum, std::optional<double> threshold, bool first,
             const OptionalTensor& skip) {
  static auto op = find_op<decltype(body<Cpu>)>("bitpare::track_oscillations_");
  for (const Tensor* t : {&weight, &code, &turn, &frequency, &mean}) bump_version(*t);
  op.redispatch(keys & c10::after_ADInplaceOrView_keyset, weight, scale, control, code, turn,
                frequency, mean, momentum, threshold, first, skip);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(bitpare, m) {
  m.def(
      "track_oscillations_(Tensor(a!) weight, Tensor scale, Tensor control, Tensor(b!) code, "
      "Tensor(c!) turn, Tensor(d!) frequency, Tensor(e!) mean, *, float momentum=0.01, "
      "float? threshold=None, bool first=False, Tensor? skip=None) -> ()",
      tags());
  kernels(m, "track_oscillations_", body<Cpu>, body<Cuda>, meta);
  no_gradient(m, "track_oscillations_");
}
TORCH_LIBRARY_IMPL(bitpare, ADInplaceOrView, m) { m.impl("track_oscillations_", written); }

}  // namespace bitpare::ops
