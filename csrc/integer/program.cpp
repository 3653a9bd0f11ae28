#include "integer/program.h"

#include "integer/library.h"

namespace bitpare::integer {
namespace {

constexpr size_t kMostPlans = 64;

auto sizes_of = [](const Tensor& x) { return x.sizes(); };
auto sym_sizes_of = [](const Tensor& x) { return x.sym_sizes(); };

// The most elements of a value: what is counted from it stays far within 64 bits.
constexpr int64_t kMostElements = int64_t{1} << 48;

// Sizes of a user's tensor may have any product where one of them is 0.
int64_t times(int64_t a, int64_t b) {
  int64_t made = 0;
  TORCH_CHECK(!__builtin_mul_overflow(a, b, &made) && made <= kMostElements, kOp,
              ": a value of more than ", kMostElements, " elements");
  return made;
}
c10::SymInt times(const c10::SymInt& a, const c10::SymInt& b) { return a * b; }

// Outputs of a window that slides over n elements, as torch counts them; 0 where it does not fit.
template <class Int>
Int slides(const Int& n, const Window& w, size_t d) {
  int64_t before = w.padding[d], after = w.padding[d + 2], stride = w.stride[d];
  Int room = n + before + after - w.dilation[d] * (w.kernel[d] - 1) - 1;
  if (w.ceil) room = room + stride - 1;
  if (room < 0) return Int(0);
  Int made = room / stride + 1;
  return w.ceil && (made - 1) * stride >= n + before ? made - 1 : made;
}

// Returns a copy, which later writes to the tensor do not change.
Tensor own(const Tensor& tensor) { return tensor.clone(at::MemoryFormat::Contiguous); }

}  // namespace

Program::Program(Spec spec, const Tensors& tensors) : spec_(std::move(spec)) {
  channels_.resize(static_cast<size_t>(spec_.values));
  forms_.resize(static_cast<size_t>(spec_.values), Form::codes);
  per_row_.resize(static_cast<size_t>(spec_.values));
  origins_.resize(static_cast<size_t>(spec_.values));
  if (!tensors.empty()) device_ = tensors.begin()->second.device();
  for (const auto& [name, tensor] : tensors) {
    TORCH_CHECK(tensor.device() == device_, kOp, ": tensor ", name, " is on ", tensor.device(),
                ", others on ", device_);
  }
  for (size_t i = 0; i < spec_.inputs.size(); ++i) {
    const Input& input = spec_.inputs[i];
    auto value = static_cast<size_t>(input.value);
    TORCH_CHECK(input.channels > 0, kOp, ": an input without channels");
    channels_[value] = input.channels;
    origins_[value] = i;
    if (input.floats) forms_[value] = Form::floats;
  }
  for (const Node& node : spec_.nodes) {
    check_forms(node);
    add(node, tensors);
  }
  for (const Output& output : spec_.outputs) {
    TORCH_CHECK((form(output.value) == Form::floats) == output.floats, kOp, ": output ",
                output.value, " is ", output.floats ? "of codes" : "of floats");
  }
}

// Checks that an operation reads values of the form that it needs.
void Program::check_forms(const Node& node) const {
  Form wanted = Form::codes;
  bool reads_floats =
      node.kind == Kind::dynamic || node.kind == Kind::weights || node.kind == Kind::quantize;
  if (reads_floats) wanted = Form::floats;
  if (node.dynamic) wanted = Form::dynamic;
  bool moves = node.kind == Kind::pool && node.maximum;
  for (int64_t value : node.inputs) {
    Form got = form(value);
    bool fits = got == wanted || (moves && got == Form::dynamic);
    TORCH_CHECK(fits, kOp, ": ", node.name, " cannot read value ", value, ", which is ",
                got == Form::floats    ? "floats"
                : got == Form::dynamic ? "codes of a grid found at run time"
                                       : "codes of a fixed grid");
    const Window& w = node.window;
    bool single = node.kind == Kind::conv && w.kernel == Pair{1, 1} && w.stride == Pair{1, 1} &&
                  w.padding == std::array<int64_t, 4>{};
    TORCH_CHECK(single || !per_row_[static_cast<size_t>(value)], kOp, ": ", node.name, ": value ",
                value, " has a grid for each row, which linear layers alone can read");
  }
}

void Program::add(const Node& node, const Tensors& tensors) {
  Constants made;
  int64_t in = channels(node.inputs[0]), out = in;
  Form made_form = node.kind == Kind::pool ? form(node.inputs[0]) : Form::codes;
  switch (node.kind) {
    case Kind::conv:
      made.conv = pack_conv(node, tensors, in, device_, uses_library(device_));
      out = node.groups * made.conv.out_channels;
      TORCH_CHECK(!node.adds || channels(node.inputs[1]) == out, kOp, ": ", node.name, ": ", out,
                  " channels, but what is added has ", channels(node.inputs[1]));
      made_form = node.to_float ? Form::floats : Form::codes;
      break;
    case Kind::weights:
      made.linear = pack_linear(node, tensors, in, device_);
      out = made.linear.outputs;
      made_form = Form::floats;
      break;
    case Kind::dynamic:
      made_form = Form::dynamic;
      break;
    case Kind::pair:
      TORCH_CHECK(channels(node.inputs[1]) == in, kOp, ": ", node.name, ": ", in, " and ",
                  channels(node.inputs[1]), " channels");
      break;
    case Kind::map:
    case Kind::concat:
      for (const std::string& name : node.tables) {
        Tensor table;
        if (!name.empty()) {
          table = own(tensor_of(tensors, node, name, at::kByte));
          check_count(node, name, table, 256);
        }
        made.tables.push_back(table);
      }
      if (node.kind == Kind::concat) {
        out = 0;
        for (int64_t value : node.inputs) out += channels(value);
        TORCH_CHECK(out <= kMostChannels, kOp, ": ", node.name, ": more than ", kMostChannels,
                    " channels");
      } else if (!node.multiplier.empty()) {
        made.multiplier = own(tensor_of(tensors, node, node.multiplier, at::kFloat));
        made.offset = own(tensor_of(tensors, node, node.offset, at::kFloat));
        for (const auto& [name, tensor] :
             {std::pair(node.multiplier, made.multiplier), std::pair(node.offset, made.offset)}) {
          check_count(node, name, tensor, in);
          check_finite(node, name, tensor);
        }
      } else {
        TORCH_CHECK(made.tables.size() == 1, kOp, ": ", node.name, ": tables must name one");
      }
      break;
    case Kind::pool:
    case Kind::quantize:
      break;
  }
  auto output = static_cast<size_t>(node.output);
  channels_[output] = out;
  forms_[output] = made_form;
  per_row_[output] = node.kind == Kind::dynamic && node.per_row;
  origins_[output] = origins_[static_cast<size_t>(node.inputs[0])];
  constants_.push_back(std::move(made));
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
  // A batch may be empty but its images may not, as in torch.
  TORCH_CHECK(
      (node.kind != Kind::pool && node.kind != Kind::conv) || (in.height > 0 && in.width > 0), kOp,
      ": ", node.name, ": an image of ", in.height, " x ", in.width, " has no pixels");
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
      for (size_t d = 0; d + 1 < s.size(); ++d) extent.batch = times(extent.batch, s[d]);
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

// Rows keep the dimensions before the channels of the input that they come from.
template <class Int, class Sizes>
std::vector<Int> Program::result_sizes(const Output& output, const Extent<Int>& extent,
                                       at::TensorList inputs, Sizes sizes) const {
  int64_t made_channels = channels(output.value);
  if (!output.rows) return {extent.batch, made_channels, extent.height, extent.width};
  TORCH_CHECK(extent.height == 1 && extent.width == 1, kOp, ": rows of images of ", extent.height,
              " x ", extent.width);
  size_t origin = origins_[static_cast<size_t>(output.value)];
  if (!spec_.inputs[origin].rows) return {extent.batch, made_channels};
  auto s = sizes(inputs[origin]);
  std::vector<Int> made(s.begin(), s.end());
  made.back() = made_channels;
  return made;
}

std::vector<int64_t> Program::result_shape(const Output& output, const Plan& plan,
                                           at::TensorList inputs) const {
  return result_sizes<int64_t>(output, plan.extents[static_cast<size_t>(output.value)], inputs,
                               sizes_of);
}

std::vector<Tensor> Program::shapes(at::TensorList inputs) const {
  check_inputs(inputs);
  auto known = extents<c10::SymInt>(inputs, sym_sizes_of);
  std::vector<Tensor> made;
  for (const Output& output : spec_.outputs) {
    auto sizes = result_sizes<c10::SymInt>(output, known[static_cast<size_t>(output.value)], inputs,
                                           sym_sizes_of);
    // Codes leave as contiguous floats; maps that are floats already keep their channels last.
    bool last = !output.rows && form(output.value) != Form::codes;
    if (last) sizes = {sizes[0], sizes[2], sizes[3], sizes[1]};
    Tensor result = at::empty_symint(sizes, inputs[0].options().memory_format(std::nullopt));
    made.push_back(last ? result.permute({0, 3, 1, 2}) : result);
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
    int64_t elements =
        times(times(times(e.batch, e.height), e.width), step(static_cast<int64_t>(value)));
    if (forms_[value] == Form::floats) return;
    Place& place = plan->places[value];
    place.bytes = math::padded_to(elements + kSlackBytes, 64);
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
    hold(output);
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
  try {
    return at::empty({bytes}, at::TensorOptions(device_).dtype(at::kByte));
  } catch (const c10::Error& error) {
    TORCH_CHECK(false, kOp, ": ", bytes, " bytes for the values of this input cannot be had: ",
                error.what_without_backtrace());
  }
}

void Program::give_back(Tensor arena) {
  if (!device_.is_cpu()) return;
  std::lock_guard<std::mutex> lock(mutex_);
  if (arenas_.size() < 8) arenas_.push_back(std::move(arena));
}

}  // namespace bitpare::integer
