// The distance between the attention maps of a student's and a teacher's features, and its
// gradient. An image's map is the mean of squares over channels, as a unit vector over pixels.
#pragma once
#include "kernels/backend.h"
#include "kernels/layout/attention_transfer.h"

namespace bitpare {

// student: [images, channels, pixels], teacher: the same with its own number of channels, both of
// dtype. loss: [1], the mean over images and pixels of the squared distance. gradient: like
// student, times incoming ([1], or null), or null.
// scratch: layout::attention_floats(pixels) for each of `workers`, which on CUDA are the images.
// losses: [images + chunks_of(images)], of which the last are partial sums.
struct AttentionTransfer {
  const void* student;
  const void* teacher;
  DType dtype;
  int64_t images, student_channels, teacher_channels, pixels;
  const float* incoming;
  float* loss;
  void* gradient;
  float* scratch;
  int64_t workers;
  float* losses;
};

template <class Isa>
void attention_transfer(const AttentionTransfer& args, const OnCpu<Isa>& cpu);
void attention_transfer(const AttentionTransfer& args, const OnCuda& cuda);

namespace math {

// Returns the factor of the sum of unit_apart().
BITPARE_INLINE float attention_factor(const AttentionTransfer& args) {
  return 2.0f / static_cast<float>(args.images * args.pixels);
}

// Returns the factor of a map's slope in the gradient of an element x of it, besides x.
BITPARE_INLINE float attention_scale(const AttentionTransfer& args) {
  float incoming = args.incoming ? args.incoming[0] : 1.0f;
  return attention_factor(args) * incoming * (2.0f / static_cast<float>(args.student_channels));
}

}  // namespace math
}  // namespace bitpare
