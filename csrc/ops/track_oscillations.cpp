#include "kernels/track_oscillations.h"

#include <limits>

#include "ops/control.h"

namespace bitpare::ops {
namespace {

constexpr const char* kOp = "track_oscillations_";

// code, turn, frequency, mean: the state of each element of weight.
struct Options {
  const Tensor& weight;
  const Tensor& scale;
  const Tensor& control;
  const Tensor& code;
  const Tensor& turn;
  const Tensor& frequency;
  const Tensor& mean;
  double momentum;
  std::optional<double> threshold;
  bool first;
  const OptionalTensor& skip;

  auto fields() const {
    return std::tie(weight, scale, control, code, turn, frequency, mean, momentum, threshold, first,
                    skip);
  }
};

// A weight and its state are read in memory order, so their layouts must agree.
void check(const Options& o) {
  check_input(kOp, o.weight);
  c10::SymInt n = o.weight.sym_numel(), scales = o.scale.sym_numel();
  TORCH_CHECK(o.weight.is_contiguous(o.weight.suggest_memory_format()), kOp,
              ": weight must be contiguous or channels_last, since it is written, got strides ",
              o.weight.sym_strides());
  TORCH_CHECK(o.scale.scalar_type() == at::kFloat, kOp, ": scale must be float32, got ",
              o.scale.scalar_type());
  TORCH_CHECK(scales > 0 && n % scales == 0, kOp,
              ": scale must have a number of elements that divides weight's ", n, ", got ", scales);
  check_control(kOp, o.control);
  check_written(kOp, "code", o.code, at::kShort, n);
  check_written(kOp, "turn", o.turn, at::kChar, n);
  check_written(kOp, "frequency", o.frequency, at::kFloat, n);
  check_written(kOp, "mean", o.mean, at::kFloat, n);
  TORCH_CHECK(o.momentum > 0 && o.momentum <= 1, kOp, ": momentum must be in (0, 1], got ",
              o.momentum);
  TORCH_CHECK(!o.threshold || *o.threshold >= 0, kOp, ": threshold must be 0 or more, got ",
              *o.threshold);
  if (o.skip) check_written(kOp, "skip", *o.skip, at::kFloat, 1);
}

template <class Device>
void body(const Options& o) {
  Device::require(kOp, o.weight);
  check(o);
  Tensor control = o.control.contiguous(), scale = o.scale.contiguous();
  if (Device::kSeesValues) seen_control(kOp, control);
  int64_t n = o.weight.numel();
  constexpr double kNever = std::numeric_limits<double>::infinity();
  TrackOscillations args = {
      .weight = o.weight.data_ptr(),
      .dtype = dtype_of(kOp, o.weight),
      .n = n,
      .quantizer = {.scale = scale.const_data_ptr<float>(),
                    .channel = {n / scale.numel(), scale.numel()},
                    .floored = true},
      .control = control_of(control),
      .code = o.code.data_ptr<int16_t>(),
      .turn = o.turn.data_ptr<int8_t>(),
      .frequency = o.frequency.data_ptr<float>(),
      .mean = o.mean.data_ptr<float>(),
      .skip = o.skip ? o.skip->const_data_ptr<float>() : nullptr,
      .momentum = static_cast<float>(o.momentum),
      .threshold = static_cast<float>(o.threshold.value_or(kNever)),
      .first = o.first,
  };
  if (n == 0) return;
  Device::run(o.weight, [&](const auto& where) { track_oscillations(args, where); });
}

void note_written(const Options& o) {
  for (const Tensor* t : {&o.weight, &o.code, &o.turn, &o.frequency, &o.mean}) bump_version(*t);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(bitpare, m) {
  m.def(
      "track_oscillations_(Tensor(a!) weight, Tensor scale, Tensor control, Tensor(b!) code, "
      "Tensor(c!) turn, Tensor(d!) frequency, Tensor(e!) mean, *, float momentum=0.01, "
      "float? threshold=None, bool first=False, Tensor? skip=None) -> ()",
      tags());
  kernels(m, "track_oscillations_", body<Cpu>, body<Cuda>, check);
  no_gradient(m, "track_oscillations_");
  writes<check, note_written>(m, "track_oscillations_");
}

}  // namespace bitpare::ops
