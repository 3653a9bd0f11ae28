#include "integer/spec.h"

#include <stdexcept>

namespace bitpare::integer {
namespace {

template <size_t kCount>
std::array<int64_t, kCount> array_of(const Json& json, const char* what) {
  std::vector<int64_t> found = json.wholes(what);
  if (found.size() != kCount) {
    throw std::runtime_error(std::string(what) + " must have " + std::to_string(kCount) +
                             " numbers");
  }
  std::array<int64_t, kCount> made;
  std::copy(found.begin(), found.end(), made.begin());
  return made;
}

float real(const Json& json, const char* what) { return static_cast<float>(json.number(what)); }

CodeRange range_of(const Json& json, const char* what) {
  auto [low, high, zero] = array_of<3>(json, what);
  if (low > high || low + zero < 0 || high + zero > 255) {
    throw std::runtime_error(std::string(what) + " must be codes from 0 to 255");
  }
  return {static_cast<float>(low), static_cast<float>(high), static_cast<int32_t>(zero)};
}

bool flag(const Json& json, const char* what) {
  return json.get(what).kind() == Json::Kind::boolean && json.get(what).boolean(what);
}

Pairing pairing_of(const Json& json) {
  std::vector<int64_t> zeros = json.at("zeros").wholes("zeros");
  std::vector<double> scales = json.at("scales").numbers("scales");
  if (zeros.size() != 2 || scales.size() != 3) {
    throw std::runtime_error("zeros must have 2 numbers, scales 3");
  }
  return {static_cast<float>(scales[0]),  static_cast<float>(scales[1]),
          static_cast<float>(scales[2]),  static_cast<int32_t>(zeros[0]),
          static_cast<int32_t>(zeros[1]), flag(json, "product")};
}

Window window_of(const Json& json) {
  Window w;
  w.kernel = array_of<2>(json.at("kernel"), "kernel");
  w.stride = array_of<2>(json.at("stride"), "stride");
  w.dilation = array_of<2>(json.at("dilation"), "dilation");
  w.padding = array_of<4>(json.at("padding"), "padding");
  for (const Pair& p : {w.kernel, w.stride, w.dilation}) {
    if (p[0] < 1 || p[1] < 1) throw std::runtime_error("kernel, stride, dilation must be positive");
  }
  return w;
}

// Of floats; null, or no field, where there is none.
void read_bounds(const Json& json, Node* node) {
  if (json.get("bounds").is_null()) return;
  const std::vector<Json>& bounds = json.at("bounds").list("bounds");
  if (bounds.size() != 2) throw std::runtime_error("bounds must have 2 numbers");
  if (!bounds[0].is_null()) node->lowest = real(bounds[0], "bounds");
  if (!bounds[1].is_null()) node->highest = real(bounds[1], "bounds");
}

void read_conv(const Json& json, Node* node) {
  node->window = window_of(json);
  node->groups = json.at("groups").whole("groups");
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
  node->zero = static_cast<int32_t>(json.at("zero").whole("zero"));
  if (!node->to_float) node->range = range_of(json.at("range"), "range");
  node->adds = !json.get("add").is_null();
  if (node->adds) {
    node->pairing = pairing_of(json.at("add"));
    node->sum_range = range_of(json.at("add").at("range"), "range");
  }
}

void read_pool(const Json& json, Node* node) {
  node->maximum = json.at("maximum").boolean("maximum");
  node->adaptive = json.at("adaptive").boolean("adaptive");
  if (node->adaptive) {
    node->size = array_of<2>(json.at("size"), "size");
  } else {
    node->window = window_of(json);
    node->window.ceil = json.at("ceil").boolean("ceil");
  }
  if (node->maximum) {
    node->least = static_cast<uint8_t>(json.at("least").whole("least"));
    return;
  }
  node->count_padding = json.at("count_padding").boolean("count_padding");
  node->divisor = json.at("divisor").whole("divisor");
  node->scale = real(json.at("scale"), "scale");
  node->new_scale = real(json.at("new_scale"), "new_scale");
  node->zero = static_cast<int32_t>(json.at("zero").whole("zero"));
  node->range = range_of(json.at("range"), "range");
}

void read_map(const Json& json, Node* node) {
  for (const Json& table : json.at("tables").list("tables")) {
    node->tables.push_back(table.is_null() ? "" : table.text("tables"));
  }
  if (json.get("multiplier").is_null()) return;
  node->multiplier = json.at("multiplier").text("multiplier");
  node->offset = json.at("offset").text("offset");
  node->zero = static_cast<int32_t>(json.at("zero").whole("zero"));
  node->range = range_of(json.at("range"), "range");
}

void read_dynamic(const Json& json, Node* node) {
  auto [low, high] = array_of<2>(json.at("grid"), "grid");
  if (low >= high || high - low > 255 || low < -128 || high > 255 || (low < 0 && high > 127)) {
    throw std::runtime_error("grid must be codes of at most 8 bits");
  }
  node->quant_min = low;
  node->quant_max = high;
  node->symmetric = json.at("symmetric").boolean("symmetric");
  node->power_of_two = json.at("power_of_two").boolean("power_of_two");
  node->per_row = json.at("per_row").boolean("per_row");
  node->stretch = json.at("stretch").number("stretch");
  read_bounds(json, node);
}

void read_weights(const Json& json, Node* node) {
  node->weight = json.at("weight").text("weight");
  node->multiplier = json.at("multiplier").text("multiplier");
  node->group = json.at("group").whole("group");
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
    node.range = range_of(json.at("range"), "range");
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
    node.scale = real(json.at("scale"), "scale");
    node.range = range_of(json.at("range"), "range");
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
  spec.values = json.at("values").whole("values");
  if (spec.values < 0 || spec.values > (1 << 24))
    throw std::runtime_error("values is not credible");
  std::vector<bool> made(static_cast<size_t>(spec.values), false);
  auto make = [&](int64_t value) {
    if (value < 0 || value >= spec.values || made[static_cast<size_t>(value)]) {
      throw std::runtime_error("value " + std::to_string(value) + " is made twice or not counted");
    }
    made[static_cast<size_t>(value)] = true;
  };
  auto use = [&](int64_t value) {
    if (value < 0 || value >= spec.values || !made[static_cast<size_t>(value)]) {
      throw std::runtime_error("value " + std::to_string(value) + " is used before it is made");
    }
  };
  for (const Json& j : json.at("inputs").list("inputs")) {
    Input input;
    input.value = j.at("value").whole("value");
    input.channels = j.at("channels").whole("channels");
    input.rows = j.at("rows").boolean("rows");
    input.floats = flag(j, "floats");
    if (!input.floats) {
      input.scale = real(j.at("scale"), "scale");
      input.range = range_of(j.at("range"), "range");
    }
    make(input.value);
    spec.inputs.push_back(input);
  }
  for (const Json& j : json.at("nodes").list("nodes")) {
    try {
      spec.nodes.push_back(node_of(j));
      for (int64_t value : spec.nodes.back().inputs) use(value);
      make(spec.nodes.back().output);
    } catch (const std::runtime_error& error) {
      const Json& name = j.get("name");
      std::string where = name.kind() == Json::Kind::text ? name.text("name") : "?";
      throw std::runtime_error("node " + std::to_string(spec.nodes.size()) + " (" + where +
                               "): " + error.what());
    }
  }
  for (const Json& j : json.at("outputs").list("outputs")) {
    Output output;
    output.value = j.at("value").whole("value");
    output.rows = j.at("rows").boolean("rows");
    output.floats = j.at("floats").boolean("floats");
    if (!output.floats && !j.get("scale").is_null()) {
      output.scale = real(j.at("scale"), "scale");
      output.zero = static_cast<int32_t>(j.at("zero").whole("zero"));
    }
    use(output.value);
    spec.outputs.push_back(output);
  }
  if (spec.inputs.empty() || spec.outputs.empty()) {
    throw std::runtime_error("inputs and outputs must not be empty");
  }
  return spec;
}

}  // namespace bitpare::integer
