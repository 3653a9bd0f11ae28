// bitpare::GradientMask: a hook that masks the gradient of a weight before it is accumulated.
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/custom_class.h>

#include "ops/mask.h"
#include "ops/overwrite.h"

namespace bitpare::ops {
namespace {

// noted: the dense gradient, summed up, for those who bring pruned weights back.
struct State {
  Tensor mask, noted;
  bool masks, notes = false;
};

Tensor masked(const Tensor& dy, const Tensor& mask) {
  static auto remask = find_op<void(at::TensorList, at::TensorList)>("bitpare::remask_");
  static auto unpack = find_op<Tensor(const Tensor&, c10::SymIntArrayRef)>("bitpare::unpack_mask");
  if (at::GradMode::is_enabled() || at::isTensorSubclassLike(dy))
    return at::where(unpack.call(mask, dy.sym_sizes()), dy, at::zeros({}, dy.options()));
  Tensor y = may_overwrite(dy, dy.suggest_memory_format()) ? dy : dy.clone();
  remask.call({y}, {mask});
  return y;
}

struct Hook : torch::autograd::FunctionPreHook {
  explicit Hook(std::shared_ptr<State> held) : state(std::move(held)) {}

  variable_list operator()(const variable_list& gradients) override {
    const Tensor& dy = gradients[0];
    if (!dy.defined() || dy.layout() != at::kStrided) return gradients;
    if (state->notes) {
      Tensor dense = dy.detach();
      state->noted = state->noted.defined() ? state->noted + dense : dense.clone();
    }
    if (!state->masks) return gradients;
    if (state->mask.device() != dy.device()) state->mask = state->mask.to(dy.device());
    return {masked(dy, state->mask)};
  }

  std::shared_ptr<State> state;
};

// torch's own ways to add such a hook leave either those of Python or those of C++: this one joins
// what is there. A first hook in Python, set later, still removes it.
class GradientMask : public torch::CustomClassHolder {
 public:
  // masks: whether the gradient is masked, or only noted.
  GradientMask(const Tensor& weight, const Tensor& mask, bool masks)
      : weight_(weight.getIntrusivePtr()), state_(std::make_shared<State>()) {
    TORCH_CHECK(weight.requires_grad() && weight.is_leaf(),
                "GradientMask: weight must be a parameter that requires a gradient");
    state_->mask = mask;
    state_->masks = masks;
    torch::autograd::impl::materialize_autograd_meta(weight);
    hooks(weight).push_back(std::make_unique<Hook>(state_));
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
    auto held = weight_.lock();
    if (!held) return;
    std::erase_if(hooks(Tensor(std::move(held))), [this](const auto& hook) {
      auto* mine = dynamic_cast<Hook*>(hook.get());
      return mine && mine->state == state_;
    });
  }

 private:
  static std::vector<std::unique_ptr<torch::autograd::FunctionPreHook>>& hooks(
      const Tensor& weight) {
    return torch::autograd::impl::hooks(weight);
  }

  c10::weak_intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl> weight_;
  std::shared_ptr<State> state_;
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
