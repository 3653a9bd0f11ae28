// Packs weights for the kernels, from the tensors that a spec names.
#pragma once
#include <ATen/ATen.h>

#include <map>
#include <string>

#include "integer/spec.h"
#include "kernels/int_conv.h"

namespace bitpare::integer {

using at::Tensor;
using Tensors = std::map<std::string, Tensor>;

// The prefix of errors of integer models.
constexpr const char* kOp = "integer model";

struct ConvWeights {
  ConvKind kind = ConvKind::dense;
  int64_t in_channels = 0, out_channels = 0;  // of a group
  int32_t bits = 8;
  bool fits = true;  // results stay far within 32 bits
  Tensor weight, bias, multiplier, padding;
  Tensor sums, offset;  // offset: of a grid found at run time
  Tensor rows;          // of dense ones of one group: [outputs, inputs], tap by tap, padded; else
                        // undefined
};

struct LinearWeights {
  int64_t outputs = 0, group = 0;
  int32_t bits = 8;
  float factor = 0.0f, first = 0.0f;   // of one bit
  Tensor weight, scale, zero, offset;  // zero: undefined where all are 0
};

// The tensor that a node names. Throws where it is missing or of another type.
const Tensor& tensor_of(const Tensors& tensors, const Node& node, const std::string& name,
                        at::ScalarType type);
void check_count(const Node& node, const std::string& name, const Tensor& tensor, int64_t count);
// Checks numbers that codes are multiplied by or moved by: no integer stands for NaN.
void check_finite(const Node& node, const std::string& name, const Tensor& tensor);

// Outputs and inputs of weights in rows are padded to this.
constexpr int64_t kRowPadding = 16;

// channels: of the input. Dense weights of few bits are packed, if sums leave room for it.
// in_rows: for products by a library, too.
ConvWeights pack_conv(const Node& node, const Tensors& tensors, int64_t channels,
                      const at::Device& device, bool in_rows);
LinearWeights pack_linear(const Node& node, const Tensors& tensors, int64_t channels,
                          const at::Device& device);

}  // namespace bitpare::integer
