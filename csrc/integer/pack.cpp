#include "integer/pack.h"

#include "kernels/int_weights.h"

namespace bitpare::integer {

const Tensor& tensor_of(const Tensors& tensors, const Node& node, const std::string& name,
                        at::ScalarType type) {
  auto found = tensors.find(name);
  TORCH_CHECK(found != tensors.end(), kOp, ": ", node.name, ": tensor ", name, " is missing");
  TORCH_CHECK(found->second.scalar_type() == type, kOp, ": ", node.name, ": tensor ", name,
              " must be ", type, ", got ", found->second.scalar_type());
  return found->second;
}

void check_count(const Node& node, const std::string& name, const Tensor& tensor, int64_t count) {
  TORCH_CHECK(tensor.numel() == count, kOp, ": ", node.name, ": tensor ", name, " must have ",
              count, " elements, got ", tensor.sizes());
}

void check_finite(const Node& node, const std::string& name, const Tensor& tensor) {
  TORCH_CHECK(tensor.isfinite().all().item<bool>(), kOp, ": ", node.name, ": tensor ", name,
              " holds NaN or infinity");
}

namespace {

// Returns the tensor on the CPU, in logical order.
Tensor plain(const Tensors& tensors, const Node& node, const std::string& name,
             at::ScalarType type) {
  return tensor_of(tensors, node, name, type).cpu().contiguous();
}

ConvShape weight_shape(const Node& node, const Tensor& codes, int64_t channels) {
  TORCH_CHECK(
      codes.dim() == 4 && codes.numel() > 0 && node.groups > 0 && codes.size(0) % node.groups == 0,
      kOp, ": ", node.name, ": weights must be [outputs, channels of a group, height, ",
      "width], got ", codes.sizes());
  TORCH_CHECK(codes.size(2) == node.window.kernel[0] && codes.size(3) == node.window.kernel[1], kOp,
              ": ", node.name, ": weights ", codes.sizes(), " do not fit the kernel");
  TORCH_CHECK(codes.size(1) * node.groups == channels, kOp, ": ", node.name, ": weights for ",
              codes.size(1) * node.groups, " channels, but there are ", channels);
  ConvShape shape = {};
  shape.groups = node.groups;
  shape.in_channels = codes.size(1);
  shape.out_channels = codes.size(0) / node.groups;
  shape.kernel_height = codes.size(2);
  shape.kernel_width = codes.size(3);
  return shape;
}

// How dense weights are packed: each is a field of `bits` bits times 2^shift. Kernels read a field
// as the highest bits of a byte, so all sums are 2^up times too large.
struct Packing {
  int32_t bits = 8, shift = 0, up = 0;
};

// The largest sum of an output: of 255 times each weight, and of its bias.
struct Reach {
  int64_t weights = 0, bias = 0;
  int64_t all() const { return weights + bias; }
};

std::vector<Reach> reaches_of(const Tensor& codes, const Tensor* biases) {
  int64_t outputs = codes.size(0), each = codes.numel() / outputs;
  std::vector<Reach> made(static_cast<size_t>(outputs));
  const int8_t* from = codes.const_data_ptr<int8_t>();
  for (int64_t o = 0; o < outputs; ++o) {
    Reach& reach = made[static_cast<size_t>(o)];
    for (int64_t i = 0; i < each; ++i) reach.weights += 255 * std::abs(int64_t{*from++});
    if (biases) reach.bias = std::abs(int64_t{biases->const_data_ptr<int32_t>()[o]});
  }
  return made;
}

Packing packing_of(const Tensor& codes, const ConvShape& shape, const std::vector<Reach>& reaches) {
  const int8_t* at = codes.const_data_ptr<int8_t>();
  int used = 0, low = 0, high = 0;
  for (int64_t i = 0; i < codes.numel(); ++i) {
    used |= std::abs(int{at[i]});
    low = std::min(low, int{at[i]});
    high = std::max(high, int{at[i]});
  }
  Packing made;
  int32_t zeros = used == 0 ? 0 : __builtin_ctz(static_cast<unsigned>(used));
  for (int32_t bits : {2, 4}) {
    int32_t shift = std::min(zeros, 8 - bits), most = 1 << (bits - 1);
    if ((low >> shift) < -most || (high >> shift) >= most) continue;
    made = {bits, shift, 8 - bits - shift};
    break;
  }
  // Blocks that are mostly padding cost more than they save.
  bool small = shape.in_channels < kQuad * (8 / made.bits);
  for (const Reach& e : reaches) small |= e.all() << made.up >= int64_t{1} << 31;
  return small ? Packing{} : made;
}

}  // namespace

ConvWeights pack_conv(const Node& node, const Tensors& tensors, int64_t channels,
                      const at::Device& device, bool in_rows) {
  Tensor codes = plain(tensors, node, node.weight, at::kChar);
  Tensor multipliers = plain(tensors, node, node.multiplier, at::kFloat);
  ConvShape shape = weight_shape(node, codes, channels);
  int64_t outputs = codes.size(0);
  Tensor biases, offsets;
  if (node.dynamic) {
    offsets = plain(tensors, node, node.offset, at::kFloat);
    check_count(node, node.offset, offsets, outputs);
  } else {
    biases = plain(tensors, node, node.bias, at::kInt);
    check_count(node, node.bias, biases, outputs);
  }
  check_count(node, node.multiplier, multipliers, outputs);
  if (!node.to_float) check_finite(node, node.multiplier, multipliers);
  ConvWeights made;
  made.kind = math::is_depthwise(shape) ? ConvKind::depthwise : ConvKind::dense;
  made.in_channels = shape.in_channels;
  made.out_channels = shape.out_channels;
  std::vector<Reach> reaches = reaches_of(codes, node.dynamic ? nullptr : &biases);
  Packing packing;
  if (made.kind == ConvKind::dense) packing = packing_of(codes, shape, reaches);
  made.bits = packing.bits;
  int64_t numbers = math::padded_outputs(shape, made.kind), taps = math::taps_of(shape);
  Tensor weight = at::zeros({math::weight_bytes(shape, made.kind, made.bits)}, at::kByte);
  Tensor bias = at::zeros({numbers}, at::kInt), sums = at::zeros({numbers}, at::kInt);
  Tensor multiplier = at::zeros({numbers}, at::kFloat), offset = at::zeros({numbers}, at::kFloat);
  const int8_t* from = codes.const_data_ptr<int8_t>();
  auto* to = weight.data_ptr<uint8_t>();
  for (int64_t o = 0; o < outputs; ++o) {
    int64_t sum = 0, place = math::place_of_output(shape, made.kind, o);
    for (int64_t c = 0; c < shape.in_channels; ++c) {
      for (int64_t tap = 0; tap < taps; ++tap, ++from) {
        auto at = math::place_of_weight(shape, made.kind, made.bits, o, c, tap);
        unsigned field = static_cast<unsigned>(*from >> packing.shift) & ((1u << made.bits) - 1);
        to[at.byte] = static_cast<uint8_t>(to[at.byte] | field << at.shift);
        sum += *from;
      }
    }
    const Reach& reach = reaches[static_cast<size_t>(o)];
    int64_t given = node.dynamic ? 0 : int64_t{biases.const_data_ptr<int32_t>()[o]};
    int64_t all = (given - node.zero * sum) * (int64_t{1} << packing.up);
    // With a dynamic grid the zero point's share is up to 255 times the weights, too.
    bool leaves =
        node.dynamic ? 2 * reach.weights >= int64_t{1} << 31 : all != static_cast<int32_t>(all);
    TORCH_CHECK(!leaves, kOp, ": ", node.name, ": the sum of output ", o, " leaves 32 bits");
    float by = multipliers.const_data_ptr<float>()[o] / static_cast<float>(1 << packing.up);
    bias.data_ptr<int32_t>()[place] = static_cast<int32_t>(all);
    sums.data_ptr<int32_t>()[place] = static_cast<int32_t>(sum * (int64_t{1} << packing.up));
    multiplier.data_ptr<float>()[place] = by;
    if (node.dynamic) offset.data_ptr<float>()[place] = offsets.const_data_ptr<float>()[o];
    // Leaves a margin for the zero point and for the rounding of floats.
    double most = static_cast<double>(reach.all()) * (1 << packing.up) * std::abs(by);
    made.fits = made.fits && most < (1 << 30);
  }
  Tensor padding = at::full({channels + kSlackBytes}, node.zero, at::kByte);
  made.weight = weight.to(device);
  made.bias = bias.to(device);
  made.multiplier = multiplier.to(device);
  made.padding = padding.to(device);
  made.sums = sums.to(device);
  made.offset = offset.to(device);
  if (in_rows && made.kind == ConvKind::dense && node.groups == 1) {
    int64_t inputs = channels * taps;
    made.rows = at::zeros(
        {math::padded_to(outputs, kRowPadding), math::padded_to(inputs, kRowPadding)}, at::kChar);
    Tensor by_tap = codes.permute({0, 2, 3, 1}).reshape({outputs, inputs});
    made.rows.narrow(0, 0, outputs).narrow(1, 0, inputs).copy_(by_tap * (1 << packing.up));
    made.rows = made.rows.to(device);
  }
  return made;
}

namespace {

// The fewest bits for linear weights. Two values are one bit, whatever they are.
void choose_bits(const Tensor& codes, LinearWeights* made) {
  const int8_t* at = codes.const_data_ptr<int8_t>();
  auto [low, high] = std::minmax_element(at, at + codes.numel());
  bool two = std::all_of(at, at + codes.numel(), [&](int8_t c) { return c == *low || c == *high; });
  made->factor = static_cast<float>(*high - *low);
  made->first = *high;
  made->bits = two ? 1 : *low >= -2 && *high <= 1 ? 2 : *low >= -8 && *high <= 7 ? 4 : 8;
}

// [outputs, groups] as [panels, groups, kPanel].
Tensor in_panels(const Tensor& numbers) {
  int64_t outputs = numbers.size(0), groups = numbers.size(1);
  Tensor made = at::zeros({math::padded_to(outputs, kPanel), groups}, numbers.options());
  made.narrow(0, 0, outputs).copy_(numbers);
  return made.view({-1, kPanel, groups}).transpose(1, 2).contiguous();
}

}  // namespace

LinearWeights pack_linear(const Node& node, const Tensors& tensors, int64_t channels,
                          const at::Device& device) {
  Tensor codes = plain(tensors, node, node.weight, at::kChar);
  Tensor scale = plain(tensors, node, node.multiplier, at::kFloat);
  TORCH_CHECK(codes.dim() == 2 && codes.numel() > 0, kOp, ": ", node.name,
              ": weights must be [outputs, inputs], got ", codes.sizes());
  int64_t outputs = codes.size(0), inputs = codes.size(1);
  TORCH_CHECK(inputs == channels, kOp, ": ", node.name, ": weights for ", inputs,
              " inputs, but there are ", channels);
  LinearWeights made;
  made.outputs = outputs;
  made.group = node.group;
  int64_t groups = node.group > 0 ? (inputs + node.group - 1) / node.group : 0;
  TORCH_CHECK(groups > 0 && scale.dim() == 2 && scale.size(0) == outputs && scale.size(1) == groups,
              kOp, ": ", node.name, ": scales must be [", outputs, ", ", groups, "], got ",
              scale.sizes());
  choose_bits(codes, &made);
  Tensor weight =
      at::zeros({math::padded_to(outputs, kPanel) / kPanel * math::field_bytes(inputs, made.bits)},
                at::kByte);
  auto* to = weight.data_ptr<uint8_t>();
  const int8_t* from = codes.const_data_ptr<int8_t>();
  for (int64_t o = 0; o < outputs; ++o) {
    for (int64_t k = 0; k < inputs; ++k, ++from) {
      auto at = math::place_of_field(inputs, made.bits, o, k);
      unsigned field = static_cast<unsigned>(*from) & ((1u << made.bits) - 1);
      if (made.bits == 1) field = static_cast<float>(*from) == made.first ? 0 : 1;
      to[at.byte] = static_cast<uint8_t>(to[at.byte] | field << at.shift);
    }
  }
  made.weight = weight.to(device);
  made.scale = in_panels(scale).to(device);
  if (!node.zeros.empty()) {
    Tensor zeros = plain(tensors, node, node.zeros, at::kChar);
    check_count(node, node.zeros, zeros, outputs * groups);
    made.zero = in_panels(zeros.view({outputs, groups}).to(at::kFloat)).to(device);
  }
  Tensor offset = at::zeros({math::padded_to(outputs, kPanel)}, at::kFloat);
  if (!node.offset.empty()) {
    Tensor given = plain(tensors, node, node.offset, at::kFloat);
    check_count(node, node.offset, given, outputs);
    offset.narrow(0, 0, outputs).copy_(given);
  }
  made.offset = offset.to(device);
  return made;
}

}  // namespace bitpare::integer
