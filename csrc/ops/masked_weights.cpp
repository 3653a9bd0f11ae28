// bitpare::MaskedWeights keeps masked weights at 0, and masks their gradients before they are
// accumulated.
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/custom_class.h>

#include "ops/control.h"
#include "ops/mask.h"
#include "ops/overwrite.h"
#include "ops/remask.h"

namespace bitpare::ops {
namespace {

using Weight = c10::weak_intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl>;

// noted: the sum of dense gradients, by which pruned weights are chosen to grow back.
struct State {
  Tensor mask, noted;
  bool masks, notes = false;

  const Tensor& mask_on(const at::Device& device) {
    if (mask.device() != device) mask = mask.to(device);
    return mask;
  }
};

Tensor masked(const Tensor& dy, const Tensor& mask) {
  static auto unpack = find_op<Tensor(const Tensor&, c10::SymIntArrayRef)>("bitpare::unpack_mask");
  if (at::GradMode::is_enabled() || at::isTensorSubclassLike(dy))
    return at::where(unpack.call(mask, dy.sym_sizes()), dy, at::zeros({}, dy.options()));
  Tensor y = may_overwrite(dy, dy.suggest_memory_format()) ? dy : dy.clone();
  remask({y}, {mask});
  return y;
}

struct Hook : torch::autograd::FunctionPreHook {
  explicit Hook(std::shared_ptr<State> shared) : state(std::move(shared)) {}

  variable_list operator()(const variable_list& gradients) override {
    const Tensor& dy = gradients[0];
    if (!dy.defined() || dy.layout() != at::kStrided) return gradients;
    if (state->notes) {
      Tensor dense = dy.detach();
      state->noted = state->noted.defined() ? state->noted + dense : dense.clone();
    }
    if (!state->masks) return gradients;
    return {masked(dy, state->mask_on(dy.device()))};
  }

  std::shared_ptr<State> state;
};

// torch's own functions to add such a hook drop either those of Python or those of C++; this one
// keeps both. A first Python hook that is set later still removes it.
std::vector<std::unique_ptr<torch::autograd::FunctionPreHook>>& hooks_of(const Tensor& weight) {
  torch::autograd::impl::materialize_autograd_meta(weight);
  return torch::autograd::impl::hooks(weight);
}

class MaskedWeights : public torch::CustomClassHolder {
 public:
  // hard: whether weights and gradients are masked; otherwise gradients are only noted.
  MaskedWeights(const std::vector<Tensor>& weights, const std::vector<Tensor>& masks, bool hard) {
    TORCH_CHECK(weights.size() == masks.size(), "MaskedWeights: masks must have ", weights.size(),
                " entries like weights, got ", masks.size());
    for (size_t i = 0; i < weights.size(); ++i) {
      check_mask("MaskedWeights", masks[i], weights[i].sym_numel());
      auto state = std::make_shared<State>(State{with_values(masks[i]), Tensor(), hard});
      members_.push_back({Weight(weights[i].getIntrusivePtr()), state});
      if (weights[i].requires_grad() && weights[i].is_leaf())
        hooks_of(weights[i]).push_back(std::make_unique<Hook>(state));
    }
  }

  void set(int64_t i, const Tensor& mask) { state_of(i).mask = with_values(mask); }

  void note(bool on) {
    for (auto& m : members_) {
      m.state->notes = on;
      m.state->noted = Tensor();
    }
  }

  std::optional<Tensor> noted(int64_t i) const {
    const Tensor& gradient = state_of(i).noted;
    return gradient.defined() ? std::optional(gradient) : std::nullopt;
  }

  // Sets what is pruned to 0, with a mask on each weight's device.
  void remask_weights() {
    std::vector<Tensor> weights, masks;
    for (auto& m : members_) {
      auto weight = m.weight.lock();
      if (!weight || !m.state->masks) continue;
      weights.emplace_back(std::move(weight));
      masks.push_back(m.state->mask_on(weights.back().device()));
      bump_version(weights.back());
    }
    at::AutoDispatchBelowADInplaceOrView below;
    remask(weights, masks);
  }

  void remove() {
    for (auto& m : members_) {
      auto weight = m.weight.lock();
      if (!weight) continue;
      std::erase_if(hooks_of(Tensor(std::move(weight))), [&m](const auto& hook) {
        auto* mine = dynamic_cast<Hook*>(hook.get());
        return mine && mine->state == m.state;
      });
    }
    members_.clear();
  }

 private:
  struct Member {
    Weight weight;
    std::shared_ptr<State> state;
  };
  State& state_of(int64_t i) const {
    TORCH_CHECK_INDEX(i >= 0 && i < static_cast<int64_t>(members_.size()),
                      "MaskedWeights: ", members_.size(), " weights, got index ", i);
    return *members_[static_cast<size_t>(i)].state;
  }

  std::vector<Member> members_;
};

}  // namespace

TORCH_LIBRARY_FRAGMENT(bitpare, m) {
  m.class_<MaskedWeights>("MaskedWeights")
      .def(torch::init<const std::vector<Tensor>&, const std::vector<Tensor>&, bool>())
      .def("set", &MaskedWeights::set)
      .def("note", &MaskedWeights::note)
      .def("noted", &MaskedWeights::noted)
      .def("remask", &MaskedWeights::remask_weights)
      .def("remove", &MaskedWeights::remove);
}

}  // namespace bitpare::ops
