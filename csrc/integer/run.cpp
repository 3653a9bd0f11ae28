// Runs a program: fills the arguments of each kernel.
#include "integer/library.h"
#include "integer/values.h"
#include "kernels/int_dynamic.h"
#include "kernels/int_edge.h"
#include "kernels/int_map.h"
#include "kernels/int_pair.h"
#include "kernels/int_pool.h"
#include "kernels/int_weights.h"
#include "ops/call.h"
#include "ops/device.h"

namespace bitpare::integer {
namespace {

// f(where) with what runs kernels on bytes.
template <class F>
void on_device(const at::Device& device, const Tensor& any, F f) {
  if (device.is_cpu()) {
    on_cpu_bytes(cpu_capability(), true, ops::parallel_for, f);
  } else {
    ops::Cuda::require(kOp, any);
    ops::Cuda::run(any, f);
  }
}

// Ops of the core, as they are called.
auto minmax(const Tensor& x, std::optional<int64_t> axis) {
  static auto op = ops::find_op<std::tuple<Tensor, Tensor>(const Tensor&, std::optional<int64_t>)>(
      "bitpare::minmax");
  return op.call(x, axis);
}

auto qparams(const Tensor& low, const Tensor& high, const Node& node) {
  static auto op = ops::find_op<std::tuple<Tensor, Tensor>(
      const Tensor&, const Tensor&, int64_t, int64_t, bool, bool)>("bitpare::qparams");
  return op.call(low, high, node.quant_min, node.quant_max, node.symmetric, node.power_of_two);
}

}  // namespace

// Runs each node: fills the arguments of its kernel.
struct Program::Run : Values {
  bool nan = false;

  template <class Where>
  void enter(const Input& input, const Tensor& given, const Where& where) {
    if (input.floats) {
      const Extent<int64_t>& e = extent(input.value);
      Tensor x = (input.rows ? given : given.permute({0, 2, 3, 1})).contiguous();
      floats_of(input.value) = x.view({e.batch, e.height, e.width, input.channels});
      return;
    }
    if (pixels(input.value) == 0) return;
    // Floats are taken as they lie, if pixels or channels are neighbours.
    bool last = !input.rows && given.is_contiguous(at::MemoryFormat::ChannelsLast);
    Tensor x = last ? given : given.contiguous();
    IntEdge args = edge(input.value, extent(input.value), input.scale);
    if (last || input.rows) {
      args.pixel_step = args.channels;
      args.channel_step = 1;
    }
    args.floats = x.const_data_ptr<float>();
    args.range = input.range;
    args.nan = &nan;
    int_edge(args, where);
  }

  // Computes the range of the values, the grid for it, and their codes.
  template <class Where>
  void find_grid(const Node& node, const Where& where) {
    Tensor x = floats_of(node.inputs[0]).view({-1, program.channels(node.inputs[0])});
    auto [low, high] = minmax(x, node.per_row ? std::optional<int64_t>(0) : std::nullopt);
    if (program.device_.is_cpu()) {
      bool finite = low.isfinite().all().item<bool>() && high.isfinite().all().item<bool>();
      TORCH_CHECK_VALUE(finite, kOp, ": ", node.name, ": its input holds NaN or infinity");
    }
    auto bounded = [&](const Tensor& limit) {
      return limit.clamp(node.lowest, node.highest) * node.stretch;
    };
    auto [scale, zero] = qparams(bounded(low), bounded(high), node);
    grid_of(node.output) = {scale, zero + up_of(node), &node};
    IntDynamic args = on_found_grid(node.output);
    args.floats = x.const_data_ptr<float>();
    args.least = node.lowest;
    args.most = node.highest;
    int_dynamic(args, where);
  }

  template <class Where>
  void linear(const Node& node, const LinearWeights& weights, const Where& where) {
    IntWeights args = {};
    args.x = floats_of(node.inputs[0]).template const_data_ptr<float>();
    args.y = new_floats(node.output);
    args.rows = pixels(node.output);
    args.inputs = args.x_step = program.channels(node.inputs[0]);
    args.outputs = args.y_step = weights.outputs;
    args.group = weights.group;
    args.weight = weights.weight.const_data_ptr<uint8_t>();
    args.bits = weights.bits;
    args.factor = weights.factor;
    args.first = weights.first;
    args.scale = weights.scale.const_data_ptr<float>();
    if (weights.zero.defined()) args.zero = weights.zero.const_data_ptr<float>();
    args.offset = weights.offset.const_data_ptr<float>();
    args.least = node.lowest;
    args.most = node.highest;
    int_weights(args, where);
  }

  template <class Where>
  void quantize(const Node& node, const Where& where) {
    IntEdge args = edge(node.output, extent(node.output), node.scale);
    args.pixel_step = args.channels;
    args.channel_step = 1;
    args.floats = floats_of(node.inputs[0]).template const_data_ptr<float>();
    args.range = node.range;
    args.nan = &nan;
    int_edge(args, where);
  }

  template <class Where>
  void leave(const Output& output, const Tensor& result, const Where& where) {
    if (pixels(output.value) == 0) return;
    IntEdge args = edge(output.value, extent(output.value), output.scale);
    args.result = result.data_ptr<float>();
    args.range.zero = output.zero;
    int_edge(args, where);
  }

  template <class Where>
  void conv(const Node& node, const ConvWeights& weights, const Where& where) {
    IntConv args = {};
    args.kind = weights.kind;
    args.shape = shape_of(node, node.groups);
    args.shape.in_channels = weights.in_channels;
    args.shape.out_channels = weights.out_channels;
    args.input = codes(node.inputs[0]);
    args.input_step = program.step(node.inputs[0]);
    args.weight = static_cast<const int8_t*>(weights.weight.const_data_ptr());
    args.bits = weights.bits;
    args.bias = weights.bias.const_data_ptr<int32_t>();
    args.weight_sums = weights.sums.const_data_ptr<int32_t>();
    args.multiplier = weights.multiplier.const_data_ptr<float>();
    args.fits = weights.fits;
    Tensor padding = weights.padding;
    if (node.dynamic) {
      const FoundGrid& grid = grid_of(node.inputs[0]);
      args.scales = grid.scale.const_data_ptr<float>();
      args.zeros = grid.zero.const_data_ptr<int32_t>();
      args.scale_step = grid.node->per_row ? 1 : 0;
      args.offset = weights.offset.const_data_ptr<float>();
      bool pads = false;
      for (int64_t side : node.window.padding) pads |= side > 0;
      if (pads) padding = grid.zero.to(at::kByte).expand({padding.numel()}).contiguous();
    }
    args.padding = padding.const_data_ptr<uint8_t>();
    args.range = node.range;
    args.to_float = node.to_float;
    args.least = node.lowest;
    args.most = node.highest;
    if (node.to_float) {
      args.output = new_floats(node.output);
      args.output_step = program.channels(node.output);
    } else {
      args.output = codes(node.output);
      args.output_step = program.step(node.output);
    }
    if (node.adds) {
      args.other = codes(node.inputs[1]);
      args.other_step = program.step(node.inputs[1]);
      args.pairing = node.pairing;
      args.sum_range = node.sum_range;
    }
    if (weights.rows.defined() && pixels(node.output) > kFewRows) {
      by_library(args, weights.rows, where);
    } else {
      int_conv(args, where);
    }
  }

  template <class Where>
  void pool(const Node& node, const Where& where) {
    IntPool args = {};
    args.shape = shape_of(node, program.channels(node.inputs[0]));
    args.maximum = node.maximum;
    args.adaptive = node.adaptive;
    args.count_padding = node.count_padding;
    args.pad_bottom = node.window.padding[2];
    args.pad_right = node.window.padding[3];
    args.divisor = node.divisor;
    args.input = codes(node.inputs[0]);
    args.input_step = program.step(node.inputs[0]);
    args.output = codes(node.output);
    args.output_step = program.step(node.output);
    args.least = node.least;
    args.scale = node.scale;
    args.new_scale = node.new_scale;
    args.zero = node.zero;
    args.range = node.range;
    int_pool(args, where);
    grid_of(node.output) = grid_of(node.inputs[0]);  // of a maximum, if it has one
  }

  template <class Where>
  void pair(const Node& node, const Where& where) {
    IntPair args = {};
    args.first = codes(node.inputs[0]);
    args.second = codes(node.inputs[1]);
    args.output = codes(node.output);
    args.pixels = pixels(node.output);
    args.channels = program.channels(node.output);
    args.first_step = program.step(node.inputs[0]);
    args.second_step = program.step(node.inputs[1]);
    args.output_step = program.step(node.output);
    args.repeat = args.pixels / std::max<int64_t>(pixels(node.inputs[1]), 1);
    args.pairing = node.pairing;
    args.range = node.range;
    int_pair(args, where);
  }

  // A map, or a concatenation: one for each input, side by side.
  template <class Where>
  void map(const Node& node, const Constants& constants, const Where& where) {
    int64_t first = 0;
    for (size_t i = 0; i < node.inputs.size(); ++i) {
      IntMap args = {};
      args.input = codes(node.inputs[i]);
      args.output = codes(node.output) + first;
      args.pixels = pixels(node.output);
      args.channels = program.channels(node.inputs[i]);
      args.input_step = program.step(node.inputs[i]);
      args.output_step = program.step(node.output);
      if (i < constants.tables.size() && constants.tables[i].defined()) {
        args.table = constants.tables[i].const_data_ptr<uint8_t>();
      }
      if (constants.multiplier.defined()) {
        args.multiplier = constants.multiplier.const_data_ptr<float>();
        args.offset = constants.offset.const_data_ptr<float>();
      }
      args.zero = node.zero;
      args.range = node.range;
      int_map(args, where);
      first += args.channels;
    }
  }

  // A value without pixels runs no kernel. A dynamic grid then has no range, so any grid will do.
  void make_empty(const Node& node) {
    if (program.form(node.output) == Form::floats) new_floats(node.output);
    grid_of(node.output) = grid_of(node.inputs[0]);
    if (node.kind != Kind::dynamic) return;
    auto options = floats_of(node.inputs[0]).options();
    Tensor one = at::ones({1}, options), zero = at::full({1}, up_of(node), options.dtype(at::kInt));
    grid_of(node.output) = {one, zero, &node};
  }

  template <class Where>
  void step(const Node& node, const Constants& constants, const Where& where) {
    if (pixels(node.output) == 0) return make_empty(node);
    switch (node.kind) {
      case Kind::conv:
        return conv(node, constants.conv, where);
      case Kind::pool:
        return pool(node, where);
      case Kind::pair:
        return pair(node, where);
      case Kind::map:
      case Kind::concat:
        return map(node, constants, where);
      case Kind::dynamic:
        return find_grid(node, where);
      case Kind::quantize:
        return quantize(node, where);
      case Kind::weights:
        return linear(node, constants.linear, where);
    }
  }
};

std::vector<Tensor> Program::run(at::TensorList inputs) {
  check_inputs(inputs);
  for (size_t i = 0; i < inputs.size(); ++i) {
    TORCH_CHECK(inputs[i].device() == device_, kOp, ": input ", i, " is on ", inputs[i].device(),
                ", the model on ", device_);
  }
  std::shared_ptr<const Plan> plan = plan_for(inputs);
  Tensor arena = take_arena(plan->bytes);
  auto values = static_cast<size_t>(spec_.values);
  Run run = {{*this, *plan, arena.data_ptr<uint8_t>(), std::vector<Tensor>(values),
              std::vector<FoundGrid>(values)}};
  std::vector<Tensor> results;
  on_device(device_, arena, [&](const auto& where) {
    for (size_t i = 0; i < inputs.size(); ++i) {
      run.enter(spec_.inputs[i], inputs[i], where);
      TORCH_CHECK_VALUE(!run.nan, kOp, ": input ", i, " holds NaN, which has no integer");
    }
    for (size_t n = 0; n < spec_.nodes.size(); ++n) {
      run.step(spec_.nodes[n], constants_[n], where);
    }
    TORCH_CHECK_VALUE(!run.nan, kOp, ": a value became NaN, which has no integer");
    std::vector<bool> given(values);  // results do not share memory, with inputs or each other
    for (const Input& input : spec_.inputs) given[static_cast<size_t>(input.value)] = true;
    for (const Output& output : spec_.outputs) {
      auto sizes = result_shape(output, *plan, inputs);
      if (form(output.value) == Form::codes) {
        results.push_back(at::empty(sizes, inputs[0].options().memory_format(std::nullopt)));
        run.leave(output, results.back(), where);
        continue;
      }
      if (form(output.value) == Form::dynamic) {
        IntDynamic args = run.on_found_grid(output.value);
        args.result = run.new_floats(output.value);
        if (args.rows > 0) int_dynamic(args, where);
      }
      Tensor made = run.floats_of(output.value);
      if (given[static_cast<size_t>(output.value)]) made = made.clone();
      given[static_cast<size_t>(output.value)] = true;
      results.push_back(output.rows ? made.view(sizes) : made.permute({0, 3, 1, 2}));
    }
  });
  give_back(std::move(arena));
  return results;
}

}  // namespace bitpare::integer
