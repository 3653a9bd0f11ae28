// bitpare::GradientMask: a hook that masks the gradient of a weight before it is accumulated.
#include <torch/custom_class.h>

#include "ops/mask.h"
#include "ops/overwrite.h"

namespace bitpare::ops {
namespace {

// The dense gradient, summed up while it is noted, for those who bring pruned weights back.
struct State {
  Tensor mask, noted;
  bool notes = false, masks = true;
};

// The first hook gets what the engine's list holds, and one reference more; see may_overwrite().
bool only_the_engine_holds(const at::TensorBase& gradient) {
  return gradient.is_cpu() && gradient.use_count() == 2 && gradient.has_storage() &&
         gradient.storage().use_count() == 1;
}

Tensor masked(const at::TensorBase& gradient, const Tensor& mask, bool first) {
  static auto remask = find_op<void(at::TensorList, at::TensorList)>("bitpare::remask_");
  static auto unpack = find_op<Tensor(const Tensor&, c10::SymIntArrayRef)>("bitpare::unpack_mask");
  bool overwrite = first && only_the_engine_holds(gradient);
  Tensor dy(gradient);
  if (at::GradMode::is_enabled() || at::isTensorSubclassLike(dy))
    return at::where(unpack.call(mask, dy.sym_sizes()), dy, at::zeros({}, dy.options()));
  Tensor y = overwrite ? dy : dy.clone();
  remask.call({y}, {mask});
  return y;
}

class GradientMask : public torch::CustomClassHolder {
 public:
  // masks: whether the gradient is masked, or only noted.
  GradientMask(const Tensor& weight, const Tensor& mask, bool masks)
      : weight_(weight.getIntrusivePtr()), state_(std::make_shared<State>()) {
    TORCH_CHECK(weight.requires_grad(), "GradientMask: weight must require a gradient");
    state_->mask = mask;
    state_->masks = masks;
    auto state = state_;
    auto place = std::make_shared<unsigned>(0);
    const at::TensorBase& base = weight;
    position_ = base.register_hook([state, place](const at::TensorBase& gradient) {
      return run(*state, gradient, *place == 0);
    });
    *place = position_;
  }

  void set(const Tensor& mask) { state_->mask = mask; }

  void note(bool on) {
    state_->notes = on;
    state_->noted = Tensor();
  }

  std::optional<Tensor> noted() const {
    return state_->noted.defined() ? std::optional(state_->noted) : std::nullopt;
  }

  void remove() {
    if (auto weight = weight_.lock()) Tensor(std::move(weight)).remove_hook(position_);
    weight_.reset();
  }

 private:
  static at::TensorBase run(State& state, const at::TensorBase& gradient, bool first) {
    if (!gradient.defined() || gradient.layout() != at::kStrided) return gradient;
    if (state.notes) {
      Tensor dy = Tensor(gradient).detach();
      state.noted = state.noted.defined() ? state.noted + dy : dy.clone();
    }
    if (!state.masks) return gradient;
    if (state.mask.device() != gradient.device()) state.mask = state.mask.to(gradient.device());
    return masked(gradient, state.mask, first);
  }

  c10::weak_intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl> weight_;
  std::shared_ptr<State> state_;
  unsigned position_ = 0;
};

}  // namespace

TORCH_LIBRARY_FRAGMENT(bitpare, m) {
  m.class_<GradientMask>("GradientMask")
      .def(torch::init<const Tensor&, const Tensor&, bool>())
      .def("set", &GradientMask::set)
      .def("note", &GradientMask::note)
      .def("noted", &GradientMask::noted)
      .def("remove", &GradientMask::remove);
}

}  // namespace bitpare::ops
