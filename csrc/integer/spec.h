// The description of an integer model: values and the operations that make them, in order. Read
// from JSON; numbers of channels come from tensors that are named there. docs/integer.md describes
// the format.
#pragma once
#include <array>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "integer/json.h"
#include "math/requant.h"

namespace bitpare::integer {

enum class Kind { conv, pool, pair, map, concat, dynamic, quantize, weights };

// Bounds of what a spec may say: of windows, paddings and results of adaptive pools, of channels,
// and of numbers of values that nothing makes.
constexpr int64_t kMostSize = int64_t{1} << 16;
constexpr int64_t kMostChannels = (int64_t{1} << 31) - 1;
constexpr int64_t kMostUnused = int64_t{1} << 16;

// Pairs are height, width.
using Pair = std::array<int64_t, 2>;

struct Window {
  Pair kernel = {1, 1}, stride = {1, 1}, dilation = {1, 1};
  std::array<int64_t, 4> padding = {0, 0, 0, 0};  // top, left, bottom, right
  bool ceil = false;
};

struct Node {
  Kind kind = Kind::conv;
  std::string name;  // of the layer
  std::vector<int64_t> inputs;
  int64_t output = 0;
  Window window;
  // conv
  int64_t groups = 1;
  std::string weight, bias, multiplier;
  int32_t zero = 0;  // the input's
  bool to_float = false;
  bool adds = false;     // inputs[1] to the result's codes
  bool dynamic = false;  // the input's grid is found at run time; `offset` is added
  CodeRange sum_range = {};
  // pool
  bool maximum = false, adaptive = false, count_padding = true;
  int64_t divisor = 0;
  Pair size = {1, 1};  // adaptive; 0 keeps the input's
  uint8_t least = 0;
  float scale = 1.0f, new_scale = 1.0f;  // quantize: scale alone
  // pair, and conv that adds
  Pairing pairing = {};
  // map, and concat with one for each input: names of tables, or of multipliers and offsets
  std::vector<std::string> tables;
  std::string offset;
  CodeRange range = {};
  // dynamic: the grid, and what low and high of the values are multiplied by
  int64_t quant_min = 0, quant_max = 0;
  bool symmetric = false, power_of_two = false, per_row = false;
  double stretch = 1.0;
  // weights: inputs that share a scale
  int64_t group = 0;
  std::string zeros;
  // of results that are floats, or of floats before they get a grid
  float lowest = -std::numeric_limits<float>::infinity();
  float highest = std::numeric_limits<float>::infinity();
};

// rows: [..., channels]; else [batch, channels, height, width]. floats: taken as they are.
struct Input {
  int64_t value = 0, channels = 0;
  bool rows = false, floats = false;
  float scale = 1.0f;
  CodeRange range = {};
};

// scale and zero: of codes that become floats; floats are given as they are, and codes on a grid
// found at run time have it with them.
struct Output {
  int64_t value = 0;
  bool rows = false, floats = false;
  float scale = 1.0f;
  int32_t zero = 0;
};

struct Spec {
  std::vector<Input> inputs;
  std::vector<Node> nodes;
  std::vector<Output> outputs;
  int64_t values = 0;

  // Throws std::runtime_error that names the node and the field.
  static Spec parse(const Json& json);
};

constexpr int64_t kSpecVersion = 1;

}  // namespace bitpare::integer
