#include "integer/program.h"

#include "kernels/int_edge.h"
#include "kernels/int_map.h"
#include "kernels/int_pair.h"
#include "kernels/int_pool.h"
#include "ops/device.h"

namespace bitpare::integer {
namespace {

constexpr const char* kOp = "integer model";
constexpr size_t kMostPlans = 64;

const Tensor& tensor_of(const Tensors& tensors, const Node& node, const std::string& name,
                        at::ScalarType type) {
  auto found = tensors.find(name);
  TORCH_CHECK(found != tensors.end(), kOp, ": ", node.name, ": tensor ", name, " is missing");
  TORCH_CHECK(found->second.scalar_type() == type, kOp, ": ", node.name, ": tensor ", name,
              " must be ", type, ", got ", found->second.scalar_type());
  return found->second;
}

void check_count(const Node& node, const Tensor& tensor, int64_t count) {
  TORCH_CHECK(tensor.numel() == count, kOp, ": ", node.name, ": a tensor of ", count,
              " elements is wanted, got ", tensor.sizes());
}

// Outputs of a window that slides over n elements, as torch counts them.
template <class Int>
Int slides(const Int& n, const Window& w, size_t d) {
  int64_t before = w.padding[d], after = w.padding[d + 2], stride = w.stride[d];
  Int room = n + before + after - w.dilation[d] * (w.kernel[d] - 1) - 1;
  if (!w.ceil) return room / stride + 1;
  Int made = (room + stride - 1) / stride + 1;
  return (made - 1) * stride >= n + before ? made - 1 : made;
}

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

}  // namespace

Program::Program(Spec spec, const Tensors& tensors) : spec_(std::move(spec)) {
  channels_.resize(static_cast<size_t>(spec_.values));
  floats_.resize(static_cast<size_t>(spec_.values));
  if (!tensors.empty()) device_ = tensors.begin()->second.device();
  for (const auto& [name, tensor] : tensors) {
    TORCH_CHECK(tensor.device() == device_, kOp, ": tensor ", name, " is on ", tensor.device(),
                ", others on ", device_);
  }
  for (const Input& input : spec_.inputs) {
    TORCH_CHECK(input.channels > 0, kOp, ": an input without channels");
    channels_[static_cast<size_t>(input.value)] = input.channels;
  }
  for (const Node& node : spec_.nodes) {
    for (int64_t value : node.inputs) {
      TORCH_CHECK(!floats_[static_cast<size_t>(value)], kOp, ": ", node.name,
                  " reads floats, of value ", value);
    }
    add(node, tensors);
  }
  for (const Output& output : spec_.outputs) {
    TORCH_CHECK(floats_[static_cast<size_t>(output.value)] == output.floats, kOp, ": output ",
                output.value, " is ", output.floats ? "of codes" : "of floats");
  }
}

void Program::add(const Node& node, const Tensors& tensors) {
  Constants made;
  int64_t in = channels(node.inputs[0]), out = in;
  switch (node.kind) {
    case Kind::conv: {
      made.weights = pack(node, tensors);
      out = node.groups * made.weights.out_channels;
      break;
    }
    case Kind::pair:
      TORCH_CHECK(channels(node.inputs[1]) == in, kOp, ": ", node.name, ": ", in, " and ",
                  channels(node.inputs[1]), " channels");
      break;
    case Kind::map:
    case Kind::concat:
      for (const std::string& name : node.tables) {
        Tensor table;
        if (!name.empty()) {
          table = tensor_of(tensors, node, name, at::kByte).contiguous();
          check_count(node, table, 256);
        }
        made.tables.push_back(table);
      }
      if (node.kind == Kind::concat) {
        out = 0;
        for (int64_t value : node.inputs) out += channels(value);
      } else if (!node.multiplier.empty()) {
        made.multiplier = tensor_of(tensors, node, node.multiplier, at::kFloat).contiguous();
        made.offset = tensor_of(tensors, node, node.offset, at::kFloat).contiguous();
        check_count(node, made.multiplier, in);
        check_count(node, made.offset, in);
      } else {
        TORCH_CHECK(made.tables.size() == 1, kOp, ": ", node.name, ": one table is wanted");
      }
      break;
    case Kind::pool:
      break;
  }
  channels_[static_cast<size_t>(node.output)] = out;
  floats_[static_cast<size_t>(node.output)] = node.kind == Kind::conv && node.to_float;
  constants_.push_back(std::move(made));
}

Program::Weights Program::pack(const Node& node, const Tensors& tensors) const {
  Tensor codes = tensor_of(tensors, node, node.weight, at::kChar).cpu().contiguous();
  Tensor biases = tensor_of(tensors, node, node.bias, at::kInt).cpu().contiguous();
  Tensor multipliers = tensor_of(tensors, node, node.multiplier, at::kFloat).cpu().contiguous();
  TORCH_CHECK(
      codes.dim() == 4 && codes.numel() > 0 && node.groups > 0 && codes.size(0) % node.groups == 0,
      kOp, ": ", node.name, ": weights must be [outputs, channels of a group, height, ",
      "width], got ", codes.sizes());
  TORCH_CHECK(codes.size(2) == node.window.kernel[0] && codes.size(3) == node.window.kernel[1], kOp,
              ": ", node.name, ": weights ", codes.sizes(), " do not fit the kernel");
  TORCH_CHECK(codes.size(1) * node.groups == channels(node.inputs[0]), kOp, ": ", node.name,
              ": weights for ", codes.size(1) * node.groups, " channels, but there are ",
              channels(node.inputs[0]));
  int64_t outputs = codes.size(0);
  check_count(node, biases, outputs);
  check_count(node, multipliers, outputs);
  ConvShape shape = {};
  shape.groups = node.groups;
  shape.in_channels = codes.size(1);
  shape.out_channels = outputs / node.groups;
  shape.kernel_height = codes.size(2);
  shape.kernel_width = codes.size(3);
  Weights made;
  made.kind = math::is_depthwise(shape) ? ConvKind::depthwise : ConvKind::dense;
  made.in_channels = shape.in_channels;
  made.out_channels = shape.out_channels;
  int64_t numbers = math::padded_outputs(shape, made.kind), taps = math::taps_of(shape);
  Tensor weight = at::zeros({math::weight_bytes(shape, made.kind)}, at::kChar);
  Tensor bias = at::zeros({numbers}, at::kInt), multiplier = at::zeros({numbers}, at::kFloat);
  const int8_t* from = codes.const_data_ptr<int8_t>();
  auto* to = weight.data_ptr<int8_t>();
  for (int64_t o = 0; o < outputs; ++o) {
    int64_t sum = 0, most = 0, place = math::place_of_output(shape, made.kind, o);
    for (int64_t c = 0; c < shape.in_channels; ++c) {
      for (int64_t tap = 0; tap < taps; ++tap, ++from) {
        to[math::place_of_weight(shape, made.kind, o, c, tap)] = *from;
        sum += *from;
        most += 255 * std::abs(int64_t{*from});
      }
    }
    int64_t all = int64_t{biases.const_data_ptr<int32_t>()[o]} - node.zero * sum;
    TORCH_CHECK(all == static_cast<int32_t>(all), kOp, ": ", node.name, ": the bias of output ", o,
                " leaves 32 bits");
    float by = multipliers.const_data_ptr<float>()[o];
    bias.data_ptr<int32_t>()[place] = static_cast<int32_t>(all);
    multiplier.data_ptr<float>()[place] = by;
    // Room for the zero point, and for the rounding of floats.
    most += std::abs(int64_t{biases.const_data_ptr<int32_t>()[o]});
    made.fits = made.fits && static_cast<double>(most) * std::abs(by) < (1 << 30);
  }
  Tensor padding = at::full({channels(node.inputs[0]) + kSlackBytes}, node.zero, at::kByte);
  made.weight = weight.to(device_);
  made.bias = bias.to(device_);
  made.multiplier = multiplier.to(device_);
  made.padding = padding.to(device_);
  return made;
}

// -- shapes

void Program::check_inputs(at::TensorList inputs) const {
  TORCH_CHECK(inputs.size() == spec_.inputs.size(), kOp, ": ", spec_.inputs.size(),
              " inputs are wanted, got ", inputs.size());
  for (size_t i = 0; i < inputs.size(); ++i) {
    const Input& wanted = spec_.inputs[i];
    const Tensor& x = inputs[i];
    TORCH_CHECK(x.scalar_type() == at::kFloat, kOp, ": input ", i, " must be float32, got ",
                x.scalar_type());
    if (wanted.rows) {
      TORCH_CHECK(x.dim() >= 1 && x.sym_size(-1) == wanted.channels, kOp, ": input ", i,
                  " must be [..., ", wanted.channels, "], got ", x.sym_sizes());
    } else {
      TORCH_CHECK(x.dim() == 4 && x.sym_size(1) == wanted.channels, kOp, ": input ", i,
                  " must be [batch, ", wanted.channels, ", height, width], got ", x.sym_sizes());
    }
  }
}

template <class Int>
Extent<Int> Program::extent_of(const Node& node, const std::vector<Extent<Int>>& known) const {
  auto of = [&](size_t i) { return known[static_cast<size_t>(node.inputs[i])]; };
  auto same = [](const Extent<Int>& a, const Extent<Int>& b) {
    return a.batch == b.batch && a.height == b.height && a.width == b.width;
  };
  Extent<Int> in = of(0), made = in;
  bool slid = node.kind == Kind::conv || (node.kind == Kind::pool && !node.adaptive);
  if (slid) {
    made.height = slides(in.height, node.window, 0);
    made.width = slides(in.width, node.window, 1);
    TORCH_CHECK(made.height > 0 && made.width > 0, kOp, ": ", node.name, ": an input of ",
                in.height, " x ", in.width, " is smaller than the kernel");
  } else if (node.kind == Kind::pool) {
    if (node.size[0] > 0) made.height = node.size[0];
    if (node.size[1] > 0) made.width = node.size[1];
  }
  if (node.kind == Kind::conv && node.adds) {
    TORCH_CHECK(same(of(1), made), kOp, ": ", node.name, ": what is added has another shape");
  }
  if (node.kind == Kind::pair) {
    bool broadcast = of(1).batch == in.batch && of(1).height == 1 && of(1).width == 1;
    TORCH_CHECK(broadcast || same(of(1), in), kOp, ": ", node.name,
                ": the two values have shapes that do not go together");
  }
  if (node.kind == Kind::concat) {
    for (size_t i = 1; i < node.inputs.size(); ++i) {
      TORCH_CHECK(same(of(i), in), kOp, ": ", node.name, ": values of different shapes");
    }
  }
  return made;
}

template <class Int, class Sizes>
std::vector<Extent<Int>> Program::extents(at::TensorList inputs, Sizes sizes) const {
  std::vector<Extent<Int>> known(static_cast<size_t>(spec_.values), {0, 0, 0});
  for (size_t i = 0; i < inputs.size(); ++i) {
    auto s = sizes(inputs[i]);
    Extent<Int> extent = {1, 1, 1};
    if (spec_.inputs[i].rows) {
      for (size_t d = 0; d + 1 < s.size(); ++d) extent.batch = extent.batch * s[d];
    } else {
      extent = {s[0], s[2], s[3]};
    }
    known[static_cast<size_t>(spec_.inputs[i].value)] = extent;
  }
  for (const Node& node : spec_.nodes) {
    known[static_cast<size_t>(node.output)] = extent_of<Int>(node, known);
  }
  return known;
}

namespace {

// Rows keep what is before the channels in the first input of rows.
template <class Int, class Sizes>
std::vector<Int> result_sizes(const Spec& spec, const Output& output, const Extent<Int>& extent,
                              int64_t channels, at::TensorList inputs, Sizes sizes) {
  if (!output.rows) return {extent.batch, channels, extent.height, extent.width};
  TORCH_CHECK(extent.height == 1 && extent.width == 1, kOp, ": rows of images of ", extent.height,
              " x ", extent.width);
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (!spec.inputs[i].rows) continue;
    auto s = sizes(inputs[i]);
    std::vector<Int> made(s.begin(), s.end());
    made.back() = channels;
    return made;
  }
  return {extent.batch, channels};
}

auto sizes_of = [](const Tensor& x) { return x.sizes(); };
auto sym_sizes_of = [](const Tensor& x) { return x.sym_sizes(); };

}  // namespace

std::vector<Tensor> Program::shapes(at::TensorList inputs) const {
  check_inputs(inputs);
  auto known = extents<c10::SymInt>(inputs, sym_sizes_of);
  std::vector<Tensor> made;
  for (const Output& output : spec_.outputs) {
    auto sizes = result_sizes<c10::SymInt>(spec_, output, known[static_cast<size_t>(output.value)],
                                           channels(output.value), inputs, sym_sizes_of);
    made.push_back(at::empty_symint(sizes, inputs[0].options().memory_format(std::nullopt)));
  }
  return made;
}

// -- memory

std::shared_ptr<const Program::Plan> Program::plan_for(at::TensorList inputs) {
  std::vector<int64_t> key;
  for (const Tensor& x : inputs) {
    key.push_back(x.dim());
    key.insert(key.end(), x.sizes().begin(), x.sizes().end());
  }
  std::lock_guard<std::mutex> lock(mutex_);
  auto found = plans_.find(key);
  if (found != plans_.end()) return found->second;
  auto plan = std::make_shared<Plan>();
  plan->extents = extents<int64_t>(inputs, sizes_of);
  plan->places.resize(static_cast<size_t>(spec_.values));
  std::vector<size_t> last(static_cast<size_t>(spec_.values), 0);  // node after which it is free
  for (size_t n = 0; n < spec_.nodes.size(); ++n) {
    for (int64_t value : spec_.nodes[n].inputs) last[static_cast<size_t>(value)] = n;
  }
  for (const Output& output : spec_.outputs) {
    last[static_cast<size_t>(output.value)] = spec_.nodes.size();
  }
  std::vector<size_t> held;  // values with a place, by offset
  auto hold = [&](size_t value) {
    const Extent<int64_t>& e = plan->extents[value];
    Place& place = plan->places[value];
    int64_t bytes = e.batch * e.height * e.width * step(static_cast<int64_t>(value));
    place.bytes = math::padded_to(bytes + kSlackBytes, 64);
    size_t at = 0;
    for (; at < held.size(); ++at) {  // the first gap that is wide enough
      const Place& next = plan->places[held[at]];
      if (next.offset - place.offset >= place.bytes) break;
      place.offset = next.offset + next.bytes;
    }
    held.insert(held.begin() + static_cast<std::ptrdiff_t>(at), value);
    plan->bytes = std::max(plan->bytes, place.offset + place.bytes);
  };
  for (const Input& input : spec_.inputs) hold(static_cast<size_t>(input.value));
  for (size_t n = 0; n < spec_.nodes.size(); ++n) {
    auto output = static_cast<size_t>(spec_.nodes[n].output);
    if (!floats_[output]) hold(output);
    std::erase_if(held, [&](size_t value) {
      return last[value] < n || (last[value] == n && value != output);
    });
  }
  if (plans_.size() >= kMostPlans) plans_.clear();
  plans_[key] = plan;
  return plan;
}

Tensor Program::take_arena(int64_t bytes) {
  if (device_.is_cpu()) {
    std::lock_guard<std::mutex> lock(mutex_);
    for (size_t i = 0; i < arenas_.size(); ++i) {
      if (arenas_[i].numel() < bytes) continue;
      Tensor taken = arenas_[i];
      arenas_.erase(arenas_.begin() + static_cast<std::ptrdiff_t>(i));
      return taken;
    }
  }
  return at::empty({bytes}, at::TensorOptions(device_).dtype(at::kByte));
}

void Program::give_back(Tensor arena) {
  if (!device_.is_cpu()) return;
  std::lock_guard<std::mutex> lock(mutex_);
  if (arenas_.size() < 8) arenas_.push_back(std::move(arena));
}

// -- running

// One run: where its values lie, and the arguments of each kernel.
struct Program::Run {
  const Program& program;
  const Plan& plan;
  uint8_t* arena;
  std::vector<Tensor> floats;  // by value
  bool nan = false;

  const Extent<int64_t>& extent(int64_t value) const {
    return plan.extents[static_cast<size_t>(value)];
  }
  uint8_t* codes(int64_t value) const {
    return arena + plan.places[static_cast<size_t>(value)].offset;
  }
  int64_t pixels(int64_t value) const {
    const Extent<int64_t>& e = extent(value);
    return e.batch * e.height * e.width;
  }

  ConvShape shape_of(const Node& node, int64_t groups) const {
    const Extent<int64_t>&in = extent(node.inputs[0]), &out = extent(node.output);
    const Window& w = node.window;
    return {in.batch,
            in.height,
            in.width,
            out.height,
            out.width,
            groups,
            1,
            1,
            w.kernel[0],
            w.kernel[1],
            w.stride[0],
            w.stride[1],
            w.padding[0],
            w.padding[1],
            w.dilation[0],
            w.dilation[1]};
  }

  IntEdge edge(int64_t value, const Extent<int64_t>& e, float scale) const {
    int64_t channels = program.channels(value);
    IntEdge args = {};
    args.codes = codes(value);
    args.images = e.batch;
    args.pixels = e.height * e.width;
    args.channels = channels;
    args.image_step = args.pixels * channels;
    args.pixel_step = 1;
    args.channel_step = args.pixels;
    args.step = program.step(value);
    args.scale = scale;
    return args;
  }

  template <class Where>
  void enter(const Input& input, const Tensor& given, const Where& where) {
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

  template <class Where>
  void leave(const Output& output, const Tensor& result, const Where& where) {
    IntEdge args = edge(output.value, extent(output.value), output.scale);
    args.result = result.data_ptr<float>();
    args.range.zero = output.zero;
    int_edge(args, where);
  }

  template <class Where>
  void conv(const Node& node, const Weights& weights, const Where& where) {
    IntConv args = {};
    args.kind = weights.kind;
    args.shape = shape_of(node, node.groups);
    args.shape.in_channels = weights.in_channels;
    args.shape.out_channels = weights.out_channels;
    args.input = codes(node.inputs[0]);
    args.input_step = program.step(node.inputs[0]);
    args.weight = weights.weight.const_data_ptr<int8_t>();
    args.bias = weights.bias.const_data_ptr<int32_t>();
    args.multiplier = weights.multiplier.const_data_ptr<float>();
    args.padding = weights.padding.const_data_ptr<uint8_t>();
    args.range = node.range;
    args.to_float = node.to_float;
    Tensor made;
    if (node.to_float) {  // pixels of floats, their channels innermost
      const Extent<int64_t>& e = extent(node.output);
      made = at::empty({e.batch, e.height, e.width, program.channels(node.output)},
                       weights.multiplier.options());
      args.output = made.data_ptr<float>();
      args.output_step = program.channels(node.output);
      floats[static_cast<size_t>(node.output)] = made;
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
    int_conv(args, where);
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

  template <class Where>
  void step(const Node& node, const Constants& constants, const Where& where) {
    switch (node.kind) {
      case Kind::conv:
        return conv(node, constants.weights, where);
      case Kind::pool:
        return pool(node, where);
      case Kind::pair:
        return pair(node, where);
      case Kind::map:
      case Kind::concat:
        return map(node, constants, where);
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
  bool empty = plan->extents[static_cast<size_t>(spec_.inputs[0].value)].batch == 0;
  Tensor arena = take_arena(plan->bytes);
  Run run = {*this, *plan, arena.data_ptr<uint8_t>(),
             std::vector<Tensor>(static_cast<size_t>(spec_.values))};
  std::vector<Tensor> results;
  on_device(device_, arena, [&](const auto& where) {
    for (size_t i = 0; i < inputs.size() && !empty; ++i) {
      run.enter(spec_.inputs[i], inputs[i], where);
      TORCH_CHECK_VALUE(!run.nan, kOp, ": input ", i, " holds NaN, which has no integer");
    }
    for (size_t n = 0; n < spec_.nodes.size() && !empty; ++n) {
      run.step(spec_.nodes[n], constants_[n], where);
    }
    for (const Output& output : spec_.outputs) {
      auto sizes = result_sizes<int64_t>(spec_, output, run.extent(output.value),
                                         channels(output.value), inputs, sizes_of);
      Tensor made = run.floats[static_cast<size_t>(output.value)];
      if (made.defined()) {
        results.push_back(output.rows ? made.view(sizes) : made.permute({0, 3, 1, 2}));
        continue;
      }
      Tensor result = at::empty(sizes, inputs[0].options().memory_format(std::nullopt));
      if (!empty) run.leave(output, result, where);
      results.push_back(result);
    }
  });
  give_back(std::move(arena));
  return results;
}

}  // namespace bitpare::integer
