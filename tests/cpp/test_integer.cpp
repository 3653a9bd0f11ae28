// Convolutions on bytes: against references in 64-bit integers and float, and the same bytes on
// every CPU kernel and on the CUDA ones on the host.
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <tuple>

#include "byte_families.h"
#include "kernels/int_conv.h"
#include "kernels/int_product.h"

namespace bitpare {
namespace {

// -- convolutions

constexpr int64_t kZero = 119;  // of the input

struct ConvCase {
  ConvShape shape;
  bool to_float, other;
  int32_t bits = 8;
  bool dynamic = false;
};

struct ConvData {
  std::vector<uint8_t> input, other, padding;
  std::vector<int8_t> plain, packed;  // plain: [outputs, channels of a group, taps]
  std::vector<int32_t> plain_bias, bias, sums;
  std::vector<float> plain_multiplier, multiplier, offset;
  float scale = 0.037f;
  int32_t zero = kZero;
  IntConv args = {};

  explicit ConvData(const ConvCase& c) {
    const ConvShape& s = c.shape;
    std::mt19937 random(static_cast<unsigned>(s.in_channels * 31 + s.out_channels));
    bool depthwise = math::is_depthwise(s);
    args.kind = depthwise ? ConvKind::depthwise : ConvKind::dense;
    args.shape = s;
    args.bits = depthwise ? 8 : c.bits;
    int64_t channels = s.groups * s.in_channels, outputs = s.groups * s.out_channels;
    args.input_step = math::padded_to(channels, kQuad);
    args.output_step = args.other_step = math::padded_to(outputs, kQuad);
    input = random_bytes(s.batch * s.height * s.width * args.input_step + kSlackBytes, 1);
    other = random_bytes(s.batch * s.out_height * s.out_width * args.other_step + kSlackBytes, 2);
    padding.assign(static_cast<size_t>(channels + kSlackBytes), kZero);
    packed.resize(static_cast<size_t>(math::weight_bytes(s, args.kind, args.bits)));
    bias.resize(static_cast<size_t>(math::padded_outputs(s, args.kind)));
    multiplier.resize(bias.size());
    sums.resize(bias.size());
    offset.resize(bias.size());
    int64_t taps = math::taps_of(s);
    for (int64_t o = 0; o < outputs; ++o) {
      int32_t sum = 0;
      for (int64_t i = 0; i < s.in_channels * taps; ++i) {
        int extreme = static_cast<int>(random() % 8);
        int w = extreme == 0 ? 127 : extreme == 1 ? -128 : static_cast<int>(random() % 255) - 127;
        int up = 8 - args.bits;
        w = w >> up << up;
        plain.push_back(static_cast<int8_t>(w));
        sum += w;
        auto at = math::place_of_weight(s, args.kind, args.bits, o, i / taps, i % taps);
        auto& byte = packed[static_cast<size_t>(at.byte)];
        byte = static_cast<int8_t>(byte | (w >> up & ((1 << args.bits) - 1)) << at.shift);
      }
      plain_bias.push_back(static_cast<int32_t>(random() % 20000) - 10000);
      plain_multiplier.push_back(0.0005f + static_cast<float>(random() % 1000) * 1e-6f);
      auto place = static_cast<size_t>(math::place_of_output(s, args.kind, o));
      bias[place] = c.dynamic ? 0 : plain_bias.back() - static_cast<int32_t>(kZero) * sum;
      multiplier[place] = plain_multiplier.back();
      sums[place] = sum;
      offset[place] = static_cast<float>(o) * 0.3f - 2.0f;
    }
    args.input = input.data();
    args.weight = packed.data();
    args.bias = bias.data();
    args.multiplier = multiplier.data();
    args.padding = padding.data();
    args.range = {-100.0f, 120.0f, 130};
    args.to_float = c.to_float;
    args.pairing = {0.5f, 0.25f, 1.0f / 0.6f, 130, 77, false};
    args.sum_range = {-90.0f, 160.0f, 90};
    if (c.other) args.other = other.data();
    args.weight_sums = sums.data();
    args.least = c.dynamic ? -3.0f : -std::numeric_limits<float>::infinity();
    args.most = c.dynamic ? 40.0f : std::numeric_limits<float>::infinity();
    if (!c.dynamic) return;
    args.offset = offset.data();
    args.scales = &scale;
    args.zeros = &zero;
    std::fill(plain_bias.begin(), plain_bias.end(), 0);
  }

  // Computes the definition in 64 bits.
  int64_t sum(int64_t n, int64_t y, int64_t x, int64_t o) const {
    const ConvShape& s = args.shape;
    int64_t sum = plain_bias[static_cast<size_t>(o)], taps = math::taps_of(s);
    for (int64_t c = 0; c < s.in_channels; ++c) {
      for (int64_t tap = 0; tap < taps; ++tap) {
        int64_t iy = y * s.stride_height - s.pad_top + tap / s.kernel_width * s.dilation_height;
        int64_t ix = x * s.stride_width - s.pad_left + tap % s.kernel_width * s.dilation_width;
        if (iy < 0 || ix < 0 || iy >= s.height || ix >= s.width) continue;
        int64_t channel = o / s.out_channels * s.in_channels + c;
        int64_t at = ((n * s.height + iy) * s.width + ix) * args.input_step + channel;
        sum += (input[static_cast<size_t>(at)] - kZero) *
               plain[static_cast<size_t>((o * s.in_channels + c) * taps + tap)];
      }
    }
    return sum;
  }
};

template <class Where>
std::vector<uint8_t> run_conv(ConvData& data, const Where& where) {
  const ConvShape& s = data.args.shape;
  int64_t n = s.batch * s.out_height * s.out_width * data.args.output_step;
  if (data.args.to_float) n *= static_cast<int64_t>(sizeof(float));
  std::vector<uint8_t> output(static_cast<size_t>(n + 1), 0xA5);
  data.args.output = output.data();
  int_conv(data.args, where);
  return output;
}

std::vector<ConvShape> conv_shapes() {
  std::vector<ConvShape> all = {conv(1, 7, 1, 3, 8, 3, 2, 1),     conv(2, 5, 1, 16, 70, 1, 1, 0),
                                conv(1, 9, 1, 5, 33, 5, 1, 2, 2), conv(1, 4, 1, 200, 130, 1, 1, 0),
                                conv(3, 1, 1, 37, 10, 1, 1, 0),   conv(1, 6, 4, 8, 6, 3, 1, 1),
                                conv(1, 6, 3, 5, 20, 3, 2, 0),    conv(2, 6, 96, 1, 1, 3, 1, 1),
                                conv(1, 9, 7, 1, 1, 3, 2, 1),     conv(1, 8, 40, 1, 1, 5, 1, 2),
                                conv(1, 8, 130, 1, 1, 7, 2, 3),   conv(1, 10, 12, 1, 1, 9, 1, 4),
                                conv(1, 6, 6, 1, 2, 3, 1, 1),     conv(1, 5, 1, 4, 16, 5, 1, 0),
                                conv(1, 3, 20, 1, 1, 1, 1, 0)};
  ConvShape uneven = conv(1, 8, 1, 12, 20, 3, 1, 1);
  uneven.kernel_width = 1;
  uneven.pad_left = 0;
  uneven.stride_height = 2;
  uneven.out_height = 4;
  all.push_back(uneven);
  return all;
}

TEST(IntConv, IsTheDefinitionOnEveryInstructionSet) {
  for (const ConvShape& s : conv_shapes()) {
    for (auto [to_float, other, fits, bits, dynamic] : {std::tuple{false, false, true, 8, false},
                                                        {false, false, false, 4, false},
                                                        {true, false, true, 2, false},
                                                        {false, true, true, 8, false},
                                                        {true, false, true, 8, true},
                                                        {false, false, true, 4, false},
                                                        {false, false, true, 2, false}}) {
      ConvData data({s, to_float, other, bits, dynamic});
      data.args.fits = fits;
      std::string what = std::to_string(bits) + " bits, " + std::to_string(s.groups) +
                         " groups of " + std::to_string(s.in_channels) + " to " +
                         std::to_string(s.out_channels) + " kernel " +
                         std::to_string(s.kernel_height);
      auto bytes = expect_same_bytes_everywhere(
          what, [&](const auto& where) { return run_conv(data, where); });
      EXPECT_EQ(bytes.back(), 0xA5) << what << " wrote past its end";
      int64_t outputs = s.groups * s.out_channels, wrong = 0;
      for (int64_t i = 0; i < s.batch * s.out_height * s.out_width * outputs; ++i) {
        int64_t row = i / outputs, o = i % outputs, x = row % s.out_width;
        int64_t y = row / s.out_width % s.out_height, n = row / s.out_width / s.out_height;
        auto sum = static_cast<float>(data.sum(n, y, x, o));
        float multiplier = data.plain_multiplier[static_cast<size_t>(o)], value = sum * multiplier;
        if (dynamic) {
          value = sum * (data.scale * multiplier) + (static_cast<float>(o) * 0.3f - 2.0f);
          value = std::clamp(value, -3.0f, 40.0f);
        }
        auto at = static_cast<size_t>(row * data.args.output_step + o);
        if (to_float) {
          float got;
          std::memcpy(&got, bytes.data() + at * sizeof(float), sizeof got);
          wrong += got != value;
          continue;
        }
        int64_t code = clamped(nearest(value), data.args.range);
        if (other) {
          float a = static_cast<float>(code - 130) * 0.5f;
          float b = static_cast<float>(data.other[at] - 77) * 0.25f;
          code = clamped(nearest((a + b) * (1.0f / 0.6f)), data.args.sum_range);
        }
        wrong += bytes[at] != code;
      }
      EXPECT_EQ(wrong, 0) << what;
    }
  }
}

TEST(IntConv, DoesNotSaturate) {
  // The largest products there are, of one sign: pairs of them leave 16 bits.
  ConvShape s = conv(1, 1, 1, 4096, 17, 1, 1, 0);
  ConvData data({s, true, false});
  std::fill(data.input.begin(), data.input.end(), uint8_t{255});
  std::fill(data.packed.begin(), data.packed.end(), int8_t{-128});
  std::fill(data.bias.begin(), data.bias.end(), 0);
  std::fill(data.sums.begin(), data.sums.end(), -128 * 4096);
  std::fill(data.multiplier.begin(), data.multiplier.end(), 1.0f);
  auto bytes = expect_same_bytes_everywhere(
      "extreme", [&](const auto& where) { return run_conv(data, where); });
  float first;
  std::memcpy(&first, bytes.data(), sizeof first);
  EXPECT_EQ(first, -4096.0f * 255 * 128);
}

// Computes the same by patches and sums, in two parts.
template <class Where>
std::vector<uint8_t> run_by_product(ConvData& data, const Where& where) {
  const ConvShape& s = data.args.shape;
  int64_t rows = s.batch * s.out_height * s.out_width, taps = math::taps_of(s);
  int64_t inputs = math::padded_to(s.in_channels * taps, 16);
  int64_t n = rows * data.args.output_step;
  if (data.args.to_float) n *= static_cast<int64_t>(sizeof(float));
  std::vector<uint8_t> output(static_cast<size_t>(n + 1), 0xA5);
  data.args.output = output.data();
  for (auto [first, last] : {std::pair{int64_t{0}, rows / 2}, {rows / 2, rows}}) {
    int64_t here = last - first;
    std::vector<int8_t> patches(static_cast<size_t>(here * inputs), 77);
    std::vector<int32_t> sums(static_cast<size_t>(here * s.out_channels));
    IntProduct args = {data.args, first, here, inputs, s.out_channels, patches.data(), sums.data()};
    int_patches(args, where);
    for (int64_t i = 0; i < here * s.out_channels; ++i) {
      int64_t row = i / s.out_channels, o = i % s.out_channels;
      for (int64_t k = 0; k < s.in_channels * taps; ++k) {
        int64_t tap = k / s.in_channels, c = k % s.in_channels;
        sums[static_cast<size_t>(i)] +=
            patches[static_cast<size_t>(row * inputs + k)] *
            data.plain[static_cast<size_t>((o * s.in_channels + c) * taps + tap)];
      }
      for (int64_t k = s.in_channels * taps; k < inputs; ++k) {
        EXPECT_EQ(patches[static_cast<size_t>(row * inputs + k)], 0);
      }
    }
    int_finish(args, where);
  }
  return output;
}

TEST(IntProduct, IsTheConvolution) {
  for (const ConvShape& s : conv_shapes()) {
    if (s.groups > 1) continue;
    for (auto [to_float, other, bits, dynamic] : {std::tuple{false, false, 8, false},
                                                  {true, false, 8, false},
                                                  {false, true, 4, false},
                                                  {true, false, 2, true}}) {
      ConvData data({s, to_float, other, bits, dynamic});
      auto expected = run_conv(data, OnCpu<Baseline>{serial});
      auto bytes = expect_same_bytes_everywhere(
          "product", [&](const auto& where) { return run_by_product(data, where); });
      expect_same_bits(bytes, expected, "product " + std::to_string(s.in_channels));
    }
  }
}

}  // namespace
}  // namespace bitpare
