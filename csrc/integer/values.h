// The places of the values of one run.
#pragma once
#include "integer/program.h"
#include "kernels/int_dynamic.h"
#include "kernels/int_edge.h"

namespace bitpare::integer {

// A dynamic grid: one scale and zero point, or one for each row.
struct FoundGrid {
  Tensor scale, zero;
  const Node* node = nullptr;
};

struct Program::Values {
  const Program& program;
  const Plan& plan;
  uint8_t* arena;
  std::vector<Tensor> floats;  // by value: pixels, their channels innermost
  std::vector<FoundGrid> grids;

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

  Tensor& floats_of(int64_t value) { return floats[static_cast<size_t>(value)]; }
  FoundGrid& grid_of(int64_t value) { return grids[static_cast<size_t>(value)]; }

  // Allocates floats for a value.
  float* new_floats(int64_t value) {
    const Extent<int64_t>& e = extent(value);
    Tensor made = at::empty({e.batch, e.height, e.width, program.channels(value)},
                            at::TensorOptions(program.device_).dtype(at::kFloat));
    floats_of(value) = made;
    return made.data_ptr<float>();
  }

  IntDynamic on_found_grid(int64_t value) {
    const FoundGrid& grid = grid_of(value);
    IntDynamic args = {};
    args.codes = codes(value);
    args.rows = pixels(value);
    args.channels = program.channels(value);
    args.step = program.step(value);
    args.scales = grid.scale.const_data_ptr<float>();
    args.zeros = grid.zero.const_data_ptr<int32_t>();
    args.scale_step = grid.node->per_row ? 1 : 0;
    args.quant_min = static_cast<float>(grid.node->quant_min);
    args.quant_max = static_cast<float>(grid.node->quant_max);
    args.up = up_of(*grid.node);
    return args;
  }

  static int32_t up_of(const Node& node) { return node.quant_min < 0 ? 128 : 0; }
};

}  // namespace bitpare::integer
