// Kernels on bytes besides convolutions: against references in 64-bit integers and float, and the
// same bytes on every CPU kernel and on the CUDA ones on the host.
#include <array>
#include <limits>
#include <tuple>

#include "byte_families.h"
#include "kernels/int_dynamic.h"
#include "kernels/int_edge.h"
#include "kernels/int_map.h"
#include "kernels/int_pair.h"
#include "kernels/int_pool.h"
#include "kernels/int_weights.h"

namespace bitpare {
namespace {

// -- pooling

TEST(IntPool, IsTheDefinitionOnEveryInstructionSet) {
  struct Case {
    ConvShape shape;
    bool maximum, adaptive, count_padding;
    int64_t divisor = 0;
  };
  ConvShape adaptive = conv(2, 7, 19, 1, 1, 1, 1, 0);
  adaptive.out_height = 3;
  adaptive.out_width = 2;
  ConvShape global = conv(1, 7, 67, 1, 1, 1, 1, 0);
  global.out_height = global.out_width = 1;
  for (const Case& c : {Case{conv(1, 8, 20, 1, 1, 3, 2, 1), true, false, false},
                        {conv(2, 6, 5, 1, 1, 2, 2, 0), true, false, false},
                        {conv(1, 9, 33, 1, 1, 3, 1, 1, 2), true, false, false},
                        {conv(1, 8, 20, 1, 1, 3, 2, 1), false, false, true},
                        {conv(1, 8, 20, 1, 1, 3, 2, 1), false, false, false},
                        {conv(1, 8, 20, 1, 1, 3, 2, 1), false, false, true, 5},
                        {adaptive, false, true, false},
                        {adaptive, true, true, false},
                        {global, false, true, false}}) {
    const ConvShape& s = c.shape;
    int64_t step = math::padded_to(s.groups, kQuad);
    auto input = random_bytes(s.batch * s.height * s.width * step + kSlackBytes, 3);
    IntPool args = {};
    args.shape = s;
    args.maximum = c.maximum;
    args.adaptive = c.adaptive;
    args.count_padding = c.count_padding;
    args.pad_bottom = args.pad_right = s.pad_top;
    args.divisor = c.divisor;
    args.input = input.data();
    args.input_step = args.output_step = step;
    args.least = 3;
    args.scale = 0.37f;
    args.new_scale = 0.3f;
    args.zero = 12;
    args.range = {-40.0f, 200.0f, 40};
    auto bytes = expect_same_bytes_everywhere("pool", [&](const auto& where) {
      std::vector<uint8_t> output(static_cast<size_t>(s.batch * s.out_height * s.out_width * step));
      args.output = output.data();
      int_pool(args, where);
      return output;
    });
    for (int64_t i = 0; i < s.batch * s.out_height * s.out_width; ++i) {
      int64_t ox = i % s.out_width, oy = i / s.out_width % s.out_height;
      int64_t image = i / s.out_width / s.out_height;
      for (int64_t channel = 0; channel < s.groups; ++channel) {
        int64_t sum = 0, most = 3, count = 0, inside = 0;
        auto look = [&](int64_t y, int64_t x) {
          ++count;
          if (y < 0 || x < 0 || y >= s.height || x >= s.width) return;
          ++inside;
          int64_t code =
              input[static_cast<size_t>(((image * s.height + y) * s.width + x) * step + channel)];
          sum += code - 12;
          most = std::max(most, code);
        };
        if (c.adaptive) {
          auto begin = [](int64_t o, int64_t n, int64_t out) { return o * n / out; };
          auto end = [](int64_t o, int64_t n, int64_t out) {
            return ((o + 1) * n + out - 1) / out;
          };
          for (int64_t y = begin(oy, s.height, s.out_height); y < end(oy, s.height, s.out_height);
               ++y)
            for (int64_t x = begin(ox, s.width, s.out_width); x < end(ox, s.width, s.out_width);
                 ++x)
              look(y, x);
        } else {
          for (int64_t k = 0; k < math::taps_of(s); ++k)
            look(oy * s.stride_height - s.pad_top + k / s.kernel_width * s.dilation_height,
                 ox * s.stride_width - s.pad_left + k % s.kernel_width * s.dilation_width);
        }
        int64_t n = c.divisor > 0 ? c.divisor : c.count_padding ? count : inside;
        auto multiplier = static_cast<float>(static_cast<double>(0.37f) /
                                             (static_cast<double>(n) * static_cast<double>(0.3f)));
        int64_t expected =
            c.maximum ? most : clamped(nearest(static_cast<float>(sum) * multiplier), args.range);
        ASSERT_EQ(bytes[static_cast<size_t>(i * step + channel)], expected) << i << " " << channel;
      }
    }
  }
}

// -- pairs, maps, edges

TEST(IntPair, IsTheDefinitionOnEveryInstructionSet) {
  for (bool product : {false, true}) {
    for (auto [channels, repeat] : {std::pair<int64_t, int64_t>{5, 1}, {64, 3}, {33, 6}}) {
      int64_t pixels = 12, step = math::padded_to(channels, kQuad);
      auto first = random_bytes(pixels * step + kSlackBytes, 4);
      auto second = random_bytes(pixels * step + kSlackBytes, 5);
      IntPair args = {
          first.data(), second.data(),       nullptr, pixels, channels, step, step, step, repeat,
          {},           {-30.0f, 190.0f, 61}};
      args.pairing = {0.02f, 0.07f, 1.0f / 0.09f, 100, 31, product};
      auto bytes = expect_same_bytes_everywhere("pair", [&](const auto& where) {
        std::vector<uint8_t> output(static_cast<size_t>(pixels * step));
        args.output = output.data();
        int_pair(args, where);
        return output;
      });
      for (int64_t i = 0; i < pixels * channels; ++i) {
        int64_t p = i / channels, c = i % channels;
        float a = static_cast<float>(first[static_cast<size_t>(p * step + c)] - 100) * 0.02f;
        float b =
            static_cast<float>(second[static_cast<size_t>(p / repeat * step + c)] - 31) * 0.07f;
        float value = (product ? a * b : a + b) * (1.0f / 0.09f);
        ASSERT_EQ(bytes[static_cast<size_t>(p * step + c)], clamped(nearest(value), args.range));
      }
    }
  }
}

TEST(IntMap, IsTheDefinitionOnEveryInstructionSet) {
  int64_t pixels = 9, channels = 21, step = 24, wide = 40;
  auto input = random_bytes(pixels * step + kSlackBytes, 6), table = random_bytes(256, 7);
  auto multiplier = finite_values(channels, 8, 1.0f), offset = finite_values(channels, 9, 50.0f);
  for (int kind = 0; kind < 3; ++kind) {
    IntMap args = {};
    args.input = input.data();
    args.pixels = pixels;
    args.channels = channels;
    args.input_step = step;
    args.output_step = wide;
    if (kind == 0) args.table = table.data();
    if (kind == 1) {
      args.multiplier = multiplier.data();
      args.offset = offset.data();
    }
    args.zero = 17;
    args.range = {-50.0f, 200.0f, 50};
    auto bytes = expect_same_bytes_everywhere("map", [&](const auto& where) {
      std::vector<uint8_t> output(static_cast<size_t>(pixels * wide), 0xA5);
      args.output = output.data() + 13;
      int_map(args, where);
      return output;
    });
    for (int64_t i = 0; i < pixels * wide - 13; ++i) {
      int64_t p = i / wide, c = i % wide, expected = 0xA5;
      if (c < channels) {
        auto code = input[static_cast<size_t>(p * step + c)];
        auto at = static_cast<size_t>(c);
        expected = kind == 0 ? table[code]
                   : kind == 2
                       ? code
                       : clamped(nearest(std::clamp(
                                     static_cast<float>(code - 17) * multiplier[at] + offset[at],
                                     -50.0f, 200.0f)),
                                 args.range);
      }
      ASSERT_EQ(bytes[static_cast<size_t>(i + 13)], expected) << kind << " " << i;
    }
  }
}

TEST(IntEdge, IsTheDefinitionOnEveryInstructionSet) {
  for (bool channels_last : {false, true}) {
    int64_t images = 2, pixels = 37, channels = 19, step = 20;
    auto x = test_values(images * pixels * channels, 10);
    IntEdge args = {};
    args.images = images;
    args.pixels = pixels;
    args.channels = channels;
    args.image_step = pixels * channels;
    args.pixel_step = channels_last ? channels : 1;
    args.channel_step = channels_last ? 1 : pixels;
    args.step = step;
    args.scale = 0.04f;
    args.range = {-90.0f, 130.0f, 95};
    bool nan = false;
    args.nan = &nan;
    auto codes = expect_same_bytes_everywhere("to bytes", [&](const auto& where) {
      std::vector<uint8_t> output(static_cast<size_t>(images * pixels * step + kSlackBytes));
      args.floats = x.data();
      args.codes = output.data();
      int_edge(args, where);
      return output;
    });
    EXPECT_TRUE(nan);
    auto back = expect_same_bytes_everywhere("to floats", [&](const auto& where) {
      std::vector<uint8_t> output(x.size() * sizeof(float));
      args.floats = nullptr;
      args.result = reinterpret_cast<float*>(output.data());
      args.codes = codes.data();
      int_edge(args, where);
      return output;
    });
    for (int64_t i = 0; i < images * pixels * channels; ++i) {
      int64_t c = i % channels, p = i / channels;
      int64_t at =
          p / pixels * args.image_step + p % pixels * args.pixel_step + c * args.channel_step;
      float v = x[static_cast<size_t>(at)], t = v * (1.0f / 0.04f);
      int64_t expected =
          std::isnan(v) ? 95 : clamped(nearest(std::clamp(t, -90.f, 130.f)), args.range);
      ASSERT_EQ(codes[static_cast<size_t>(p * step + c)], expected) << i;
      float value;
      std::memcpy(&value, back.data() + at * 4, sizeof value);
      ASSERT_EQ(value, static_cast<float>(expected - 95) * 0.04f);
    }
  }
}

// -- grids found at run time, weights alone

TEST(IntDynamic, IsTheDefinitionOnEveryInstructionSet) {
  for (bool per_row : {false, true}) {
    for (int32_t up : {0, 128}) {
      int64_t rows = 11, channels = 37, step = 40;
      auto x = finite_values(rows * channels, 12, 3.0f);
      std::vector<float> scales;
      std::vector<int32_t> zeros;
      for (int64_t r = 0; r < rows; ++r) {
        scales.push_back(0.02f + 0.01f * static_cast<float>(r));
        zeros.push_back(static_cast<int32_t>(100 + 5 * r));
      }
      IntDynamic args = {};
      args.rows = rows;
      args.channels = channels;
      args.step = step;
      args.scales = scales.data();
      args.zeros = zeros.data();
      args.scale_step = per_row ? 1 : 0;
      args.quant_min = up ? -128.0f : 0.0f;
      args.quant_max = up ? 127.0f : 255.0f;
      args.up = up;
      args.least = -2.0f;
      args.most = 5.0f;
      auto codes = expect_same_bytes_everywhere("to bytes", [&](const auto& where) {
        std::vector<uint8_t> output(static_cast<size_t>(rows * step + kSlackBytes));
        args.floats = x.data();
        args.codes = output.data();
        int_dynamic(args, where);
        return output;
      });
      auto back = expect_same_bytes_everywhere("to floats", [&](const auto& where) {
        std::vector<float> output(x.size());
        args.floats = nullptr;
        args.result = output.data();
        args.codes = codes.data();
        int_dynamic(args, where);
        return output;
      });
      for (int64_t i = 0; i < rows * channels; ++i) {
        auto at = static_cast<size_t>(per_row ? i / channels : 0);
        float v = std::clamp(x[static_cast<size_t>(i)], -2.0f, 5.0f) * (1.0f / scales[at]);
        int64_t expected = std::clamp<int64_t>(nearest(v) + zeros[at], 0, 255);
        ASSERT_EQ(codes[static_cast<size_t>(i / channels * step + i % channels)], expected) << i;
        float value = static_cast<float>(expected - zeros[at]) * scales[at];
        ASSERT_EQ(back[static_cast<size_t>(i)], value) << i;
      }
    }
  }
}

TEST(IntWeights, IsTheDefinitionOnEveryInstructionSet) {
  for (int32_t bits : {8, 4, 2, 1}) {
    for (auto [rows, inputs, outputs, group] :
         {std::array<int64_t, 4>{1, 40, 70, 40}, {9, 33, 16, 8}, {5, 7, 3, 3}, {4, 64, 130, 64}}) {
      for (bool zeros : {false, true}) {
        int64_t groups = (inputs + group - 1) / group;
        int64_t panels = math::padded_to(outputs, kPanel) / kPanel;
        auto x = finite_values(rows * inputs, 13, 2.0f);
        std::vector<int> fields;
        std::mt19937 random(static_cast<unsigned>(bits));
        std::vector<uint8_t> packed(static_cast<size_t>(panels * math::field_bytes(inputs, bits)));
        for (int64_t i = 0; i < outputs * inputs; ++i) {
          int low = bits == 1 ? -1 : -(1 << (bits - 1));
          fields.push_back(low + static_cast<int>(random() % (1u << bits)));
          auto at = math::place_of_field(inputs, bits, i / inputs, i % inputs);
          auto& byte = packed[static_cast<size_t>(at.byte)];
          byte = static_cast<uint8_t>(byte | (fields.back() & ((1 << bits) - 1)) << at.shift);
        }
        auto scale = finite_values(panels * groups * kPanel, 14, 0.1f);
        auto zero = finite_values(panels * groups * kPanel, 15, 3.0f);
        auto offset = finite_values(panels * kPanel, 16, 1.0f);
        IntWeights args = {x.data(),      nullptr,
                           rows,          inputs,
                           outputs,       inputs,
                           outputs,       group,
                           packed.data(), bits,
                           2.0f,          1.0f,
                           scale.data(),  zeros ? zero.data() : nullptr,
                           offset.data(), -4.0f,
                           6.0f};
        auto bytes = expect_same_bytes_everywhere("weights", [&](const auto& where) {
          std::vector<float> output(static_cast<size_t>(rows * outputs + 1), 7.0f);
          args.y = output.data();
          int_weights(args, where);
          return output;
        });
        EXPECT_EQ(bytes.back(), 7.0f) << "wrote past its end";
        for (int64_t i = 0; i < rows * outputs; ++i) {
          int64_t r = i / outputs, o = i % outputs;
          float total = 0.0f;
          for (int64_t g = 0; g < groups; ++g) {
            auto at = static_cast<size_t>((o / kPanel * groups + g) * kPanel + o % kPanel);
            float sum = 0.0f;
            for (int64_t k = g * group; k < std::min((g + 1) * group, inputs); ++k) {
              int field = fields[static_cast<size_t>(o * inputs + k)];
              auto w = static_cast<float>(bits == 1 ? field * 2 + 1 : field);
              sum += x[static_cast<size_t>(r * inputs + k)] * (w - (zeros ? zero[at] : 0.0f));
            }
            total += sum * scale[at];
          }
          float expected = std::clamp(total + offset[static_cast<size_t>(o)], -4.0f, 6.0f);
          ASSERT_EQ(bytes[static_cast<size_t>(i)], expected) << bits << " bits, element " << i;
        }
      }
    }
  }
}

}  // namespace
}  // namespace bitpare
