// An integer model that can be run: its weights packed for the kernels, and a memory plan for each
// shape of the inputs. One call runs the whole model.
#pragma once
#include <memory>
#include <mutex>

#include "integer/pack.h"

namespace bitpare::integer {

// The size of an image, or of rows (height and width are 1). Int: int64_t, or c10::SymInt for
// shapes alone.
template <class Int>
struct Extent {
  Int batch, height, width;
};

// The form of a value: bytes on a grid of the spec, floats, or bytes on a grid that is found at
// each run.
enum class Form { codes, floats, dynamic };

// Runs may be concurrent: each allocates memory of its own.
class Program {
 public:
  // tensors: what the spec names, on one device. Throws where they do not fit.
  Program(Spec spec, const Tensors& tensors);

  std::vector<Tensor> run(at::TensorList inputs);
  // Returns what run() would return, without values.
  std::vector<Tensor> shapes(at::TensorList inputs) const;
  const Spec& spec() const { return spec_; }

 private:
  struct Constants {
    ConvWeights conv;
    LinearWeights linear;
    std::vector<Tensor> tables;  // undefined for a copy
    Tensor multiplier, offset;
  };
  struct Place {
    int64_t offset = 0, bytes = 0;
  };
  struct Plan {
    std::vector<Extent<int64_t>> extents;
    std::vector<Place> places;
    int64_t bytes = 0;
  };
  struct Values;
  struct Run;

  void add(const Node& node, const Tensors& tensors);
  void check_forms(const Node& node) const;
  int64_t channels(int64_t value) const { return channels_[static_cast<size_t>(value)]; }
  Form form(int64_t value) const { return forms_[static_cast<size_t>(value)]; }
  int64_t step(int64_t value) const { return math::padded_to(channels(value), kQuad); }
  void check_inputs(at::TensorList inputs) const;
  template <class Int, class Sizes>
  std::vector<Extent<Int>> extents(at::TensorList inputs, Sizes sizes) const;
  template <class Int>
  Extent<Int> extent_of(const Node& node, const std::vector<Extent<Int>>& known) const;
  template <class Int, class Sizes>
  std::vector<Int> result_sizes(const Output& output, const Extent<Int>& extent,
                                at::TensorList inputs, Sizes sizes) const;
  std::vector<int64_t> result_shape(const Output& output, const Plan& plan,
                                    at::TensorList inputs) const;
  std::shared_ptr<const Plan> plan_for(at::TensorList inputs);
  Tensor take_arena(int64_t bytes);
  void give_back(Tensor arena);

  Spec spec_;
  at::Device device_ = at::kCPU;
  // One entry for each value.
  std::vector<int64_t> channels_;
  std::vector<Form> forms_;
  std::vector<bool> per_row_;         // of dynamic ones: whether each row has a grid
  std::vector<size_t> origins_;       // the input that its rows come from
  std::vector<Constants> constants_;  // of each node
  std::mutex mutex_;
  std::map<std::vector<int64_t>, std::shared_ptr<const Plan>> plans_;
  std::vector<Tensor> arenas_;
};

}  // namespace bitpare::integer
