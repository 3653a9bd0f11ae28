// An integer model that runs: its weights laid out for the kernels, and for each shape of the
// inputs a plan of the memory its values take. One call runs all of it.
#pragma once
#include <ATen/ATen.h>

#include <map>
#include <memory>
#include <mutex>

#include "integer/spec.h"
#include "kernels/int_conv.h"

namespace bitpare::integer {

using at::Tensor;

// Of an image, or of rows (height and width are 1). Int: int64_t, or c10::SymInt for shapes alone.
template <class Int>
struct Extent {
  Int batch, height, width;
};

using Tensors = std::map<std::string, Tensor>;

// Runs may be concurrent: each takes memory of its own.
class Program {
 public:
  // tensors: what the spec names, on one device. Throws where they do not fit.
  Program(Spec spec, const Tensors& tensors);

  std::vector<Tensor> run(at::TensorList inputs);
  // What run() would return, without values.
  std::vector<Tensor> shapes(at::TensorList inputs) const;
  const Spec& spec() const { return spec_; }

 private:
  struct Weights {
    ConvKind kind = ConvKind::dense;
    int64_t in_channels = 0, out_channels = 0;  // of a group
    bool fits = true;                           // results stay far within 32 bits
    Tensor weight, bias, multiplier, padding;
  };
  struct Constants {
    Weights weights;
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
  struct Run;

  void add(const Node& node, const Tensors& tensors);
  Weights pack(const Node& node, const Tensors& tensors) const;
  int64_t channels(int64_t value) const { return channels_[static_cast<size_t>(value)]; }
  int64_t step(int64_t value) const { return math::padded_to(channels(value), kQuad); }
  void check_inputs(at::TensorList inputs) const;
  template <class Int, class Sizes>
  std::vector<Extent<Int>> extents(at::TensorList inputs, Sizes sizes) const;
  template <class Int>
  Extent<Int> extent_of(const Node& node, const std::vector<Extent<Int>>& known) const;
  std::shared_ptr<const Plan> plan_for(at::TensorList inputs);
  Tensor take_arena(int64_t bytes);
  void give_back(Tensor arena);

  Spec spec_;
  at::Device device_ = at::kCPU;
  std::vector<int64_t> channels_;
  std::vector<Constants> constants_;
  std::vector<bool> floats_;  // values that are floats: results of their own
  std::mutex mutex_;
  std::map<std::vector<int64_t>, std::shared_ptr<const Plan>> plans_;
  std::vector<Tensor> arenas_;
};

}  // namespace bitpare::integer
