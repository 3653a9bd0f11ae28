#include "integer/spec.h"

#include <cmath>
#include <stdexcept>

namespace bitpare::integer {
namespace {

constexpr size_t kMostShown = 200;  // of a name, in an error

// A code of 8 bits, and a zero point.
constexpr int64_t kMostCode = 255;

template <size_t kCount>
std::array<int64_t, kCount> array_of(const Json& json, const char* what, int64_t least,
                                     int64_t most) {
  const std::vector<Json>& found = json.at(what).list(what);
  if (found.size() != kCount) {
    throw std::runtime_error(std::string(what) + " must have " + std::to_string(kCount) +
                             " numbers");
  }
  std::array<int64_t, kCount> made;
  for (size_t i = 0; i < kCount; ++i) made[i] = found[i].whole(what, least, most);
  return made;
}

int64_t whole_of(const Json& json, const char* what, int64_t least, int64_t most) {
  return json.at(what).whole(what, least, most);
}

// A float that is finite and above 0.
float positive(const Json& json, const char* what) {
  auto value = static_cast<float>(json.number(what));
  if (!(value > 0.0f) || !std::isfinite(value)) {
    throw std::runtime_error(std::string(what) + " must be above 0 and finite in float32");
  }
  return value;
}

float positive_of(const Json& json, const char* what) { return positive(json.at(what), what); }

int32_t zero_of(const Json& json) {
  return static_cast<int32_t>(whole_of(json, "zero", 0, kMostCode));
}

CodeRange range_of(const Json& json) {
  auto [low, high, zero] = array_of<3>(json, "range", -kMostCode, kMostCode);
  if (zero < 0 || low > high || low + zero < 0 || high + zero > kMostCode) {
    throw std::runtime_error("range must be codes from 0 to 255");
  }
  return {static_cast<float>(low), static_cast<float>(high), static_cast<int32_t>(zero)};
}

// False where there is no such field.
bool flag(const Json& json, const char* what) {
  return !json.get(what).is_null() && json.get(what).boolean(what);
}

Pairing pairing_of(const Json& json) {
  auto zeros = array_of<2>(json, "zeros", 0, kMostCode);
  const std::vector<Json>& scales = json.at("scales").list("scales");
  if (scales.size() != 3) throw std::runtime_error("scales must have 3 numbers");
  return {positive(scales[0], "scales"),  positive(scales[1], "scales"),
          positive(scales[2], "scales"),  static_cast<int32_t>(zeros[0]),
          static_cast<int32_t>(zeros[1]), flag(json, "product")};
}

Window window_of(const Json& json) {
  Window w;
  w.kernel = array_of<2>(json, "kernel", 1, kMostSize);
  w.stride = array_of<2>(json, "stride", 1, kMostSize);
  w.dilation = array_of<2>(json, "dilation", 1, kMostSize);
  w.padding = array_of<4>(json, "padding", 0, kMostSize);
  return w;
}

// Reads the bounds of floats; null, or no field, means none.
void read_bounds(const Json& json, Node* node) {
  if (json.get("bounds").is_null()) return;
  const std::vector<Json>& bounds = json.at("bounds").list("bounds");
  if (bounds.size() != 2) throw std::runtime_error("bounds must have 2 numbers");
  auto real = [](const Json& bound) { return static_cast<float>(bound.number("bounds")); };
  if (!bounds[0].is_null()) node->lowest = real(bounds[0]);
  if (!bounds[1].is_null()) node->highest = real(bounds[1]);
  if (node->lowest > node->highest) throw std::runtime_error("bounds must not be the wrong way");
}

void read_conv(const Json& json, Node* node) {
  node->window = window_of(json);
  node->groups = whole_of(json, "groups", 1, kMostChannels);
  node->weight = json.at("weight").text("weight");
  node->multiplier = json.at("multiplier").text("multiplier");
  node->to_float = json.at("float").boolean("float");
  node->dynamic = flag(json, "dynamic");
  read_bounds(json, node);
  if (node->dynamic) {
    node->offset = json.at("offset").text("offset");
    if (!node->to_float) throw std::runtime_error("float must be true where dynamic is");
    return;
  }
  node->bias = json.at("bias").text("bias");
  node->zero = zero_of(json);
  if (!node->to_float) node->range = range_of(json);
  node->adds = !json.get("add").is_null();
  if (node->adds) {
    node->pairing = pairing_of(json.at("add"));
    node->sum_range = range_of(json.at("add"));
  }
}

void read_pool(const Json& json, Node* node) {
  node->maximum = json.at("maximum").boolean("maximum");
  node->adaptive = json.at("adaptive").boolean("adaptive");
  if (node->adaptive) {
    node->size = array_of<2>(json, "size", 0, kMostSize);
  } else {
    node->window = window_of(json);
    node->window.ceil = json.at("ceil").boolean("ceil");
    const Window& w = node->window;
    for (size_t side = 0; side < 4; ++side) {
      if (2 * w.padding[side] > w.dilation[side % 2] * (w.kernel[side % 2] - 1) + 1) {
        throw std::runtime_error("padding must be at most half of the kernel");
      }
    }
  }
  if (node->maximum) {
    node->least = static_cast<uint8_t>(whole_of(json, "least", 0, kMostCode));
    return;
  }
  node->count_padding = json.at("count_padding").boolean("count_padding");
  node->divisor = whole_of(json, "divisor", 0, std::numeric_limits<int32_t>::max());
  node->scale = positive_of(json, "scale");
  node->new_scale = positive_of(json, "new_scale");
  node->zero = zero_of(json);
  node->range = range_of(json);
}

void read_map(const Json& json, Node* node) {
  for (const Json& table : json.at("tables").list("tables")) {
    node->tables.push_back(table.is_null() ? "" : table.text("tables"));
  }
  if (json.get("multiplier").is_null()) return;
  if (!node->tables.empty()) throw std::runtime_error("tables must be empty beside multiplier");
  node->multiplier = json.at("multiplier").text("multiplier");
  node->offset = json.at("offset").text("offset");
  node->zero = zero_of(json);
  node->range = range_of(json);
}

void read_dynamic(const Json& json, Node* node) {
  auto [low, high] = array_of<2>(json, "grid", -128, kMostCode);
  if (low >= high || (low < 0 && high > 127)) {
    throw std::runtime_error("grid must be codes of at most 8 bits");
  }
  node->quant_min = low;
  node->quant_max = high;
  node->symmetric = json.at("symmetric").boolean("symmetric");
  node->power_of_two = json.at("power_of_two").boolean("power_of_two");
  node->per_row = json.at("per_row").boolean("per_row");
  node->stretch = json.at("stretch").number("stretch");
  if (!(node->stretch > 0.0 && node->stretch <= 1e6)) {
    throw std::runtime_error("stretch must be above 0 and at most 1e6");
  }
  read_bounds(json, node);
}

void read_weights(const Json& json, Node* node) {
  node->weight = json.at("weight").text("weight");
  node->multiplier = json.at("multiplier").text("multiplier");
  node->group = whole_of(json, "group", 1, kMostChannels);
  if (!json.get("zeros").is_null()) node->zeros = json.at("zeros").text("zeros");
  if (!json.get("offset").is_null()) node->offset = json.at("offset").text("offset");
  read_bounds(json, node);
}

Node node_of(const Json& json) {
  Node node;
  node.name = json.at("name").text("name");
  node.inputs = json.at("inputs").wholes("inputs");
  node.output = json.at("output").whole("output");
  const std::string& op = json.at("op").text("op");
  size_t inputs = 1;
  if (op == "conv") {
    read_conv(json, &node);
    inputs = node.adds ? 2 : 1;
  } else if (op == "pool") {
    node.kind = Kind::pool;
    read_pool(json, &node);
  } else if (op == "pair") {
    node.kind = Kind::pair;
    node.pairing = pairing_of(json);
    node.range = range_of(json);
    inputs = 2;
  } else if (op == "map" || op == "concat") {
    node.kind = op == "map" ? Kind::map : Kind::concat;
    read_map(json, &node);
    if (op == "concat") inputs = node.tables.size();
  } else if (op == "dynamic") {
    node.kind = Kind::dynamic;
    read_dynamic(json, &node);
  } else if (op == "quantize") {
    node.kind = Kind::quantize;
    node.scale = positive_of(json, "scale");
    node.range = range_of(json);
  } else if (op == "weights") {
    node.kind = Kind::weights;
    read_weights(json, &node);
  } else {
    throw std::runtime_error("op '" + op + "' is not known");
  }
  if (node.inputs.size() != inputs || inputs == 0) {
    throw std::runtime_error("inputs must name " + std::to_string(inputs) + " values");
  }
  return node;
}

}  // namespace

Spec Spec::parse(const Json& json) {
  Spec spec;
  int64_t version = json.at("version").whole("version");
  if (version != kSpecVersion) {
    throw std::runtime_error("version " + std::to_string(version) + " of the spec; this bitpare " +
                             "reads version " + std::to_string(kSpecVersion));
  }
  const std::vector<Json>& inputs = json.at("inputs").list("inputs");
  const std::vector<Json>& nodes = json.at("nodes").list("nodes");
  // Numbers may be left out, but not so many that they take memory.
  auto most = static_cast<int64_t>(inputs.size() + nodes.size()) + kMostUnused;
  spec.values = whole_of(json, "values", 0, most);
  std::vector<bool> made(static_cast<size_t>(spec.values), false);
  auto make = [&](int64_t value) {
    if (value < 0 || value >= spec.values) {
      throw std::runtime_error("value " + std::to_string(value) +
                               " must be below values, which is " + std::to_string(spec.values));
    }
    if (made[static_cast<size_t>(value)]) {
      throw std::runtime_error("value " + std::to_string(value) + " is made twice");
    }
    made[static_cast<size_t>(value)] = true;
  };
  auto use = [&](int64_t value) {
    if (value < 0 || value >= spec.values || !made[static_cast<size_t>(value)]) {
      throw std::runtime_error("value " + std::to_string(value) + " is used before it is made");
    }
  };
  // read(), with what is read named in errors.
  auto within = [](const std::string& where, auto read) {
    try {
      read();
    } catch (const std::runtime_error& error) {
      throw std::runtime_error(where + ": " + error.what());
    }
  };
  for (const Json& j : inputs) {
    within("input " + std::to_string(spec.inputs.size()), [&] {
      Input input;
      input.value = j.at("value").whole("value");
      input.channels = whole_of(j, "channels", 1, kMostChannels);
      input.rows = j.at("rows").boolean("rows");
      input.floats = flag(j, "floats");
      if (!input.floats) {
        input.scale = positive_of(j, "scale");
        input.range = range_of(j);
      }
      make(input.value);
      spec.inputs.push_back(input);
    });
  }
  for (const Json& j : nodes) {
    const Json& name = j.get("name");
    std::string called = name.kind() == Json::Kind::text ? name.text("name") : "?";
    if (called.size() > kMostShown)
      called = "a name of " + std::to_string(called.size()) + " bytes";
    within("node " + std::to_string(spec.nodes.size()) + " (" + called + ")", [&] {
      Node node = node_of(j);
      for (int64_t value : node.inputs) use(value);
      make(node.output);
      spec.nodes.push_back(std::move(node));
    });
  }
  for (const Json& j : json.at("outputs").list("outputs")) {
    within("output " + std::to_string(spec.outputs.size()), [&] {
      Output output;
      output.value = j.at("value").whole("value");
      output.rows = j.at("rows").boolean("rows");
      output.floats = j.at("floats").boolean("floats");
      if (!output.floats && !j.get("scale").is_null()) {
        output.scale = positive_of(j, "scale");
        output.zero = zero_of(j);
      }
      use(output.value);
      spec.outputs.push_back(output);
    });
  }
  if (spec.inputs.empty() || spec.outputs.empty()) {
    throw std::runtime_error("inputs and outputs must not be empty");
  }
  return spec;
}

}  // namespace bitpare::integer
