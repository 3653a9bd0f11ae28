#include "kernels/attention_transfer.h"

#include "kernels/cpu/rows.h"

namespace bitpare {
namespace {

// Computes the mean over channels of x squared. The map stays in the cache while x is read once.
template <class T>
void mean_squares(const T* x, int64_t channels, int64_t pixels, float* map) {
  for_each_vector(pixels, [&](int64_t at, int64_t count) { write(map, at, count, Vec{}); });
  for (int64_t c = 0; c < channels; ++c) {
    for_each_vector(pixels, [&](int64_t at, int64_t count) [[gnu::always_inline]] {
      Vec v = read(x + c * pixels, at, count);
      write(map, at, count, read(map, at, count) + v * v);
    });
  }
  Vec part = math::splat<Vec>(1.0f / static_cast<float>(channels));
  for_each_vector(pixels, [&](int64_t at, int64_t count) {
    write(map, at, count, read(map, at, count) * part);
  });
}

template <class T>
void write_image(const AttentionTransfer& args, int64_t i,
                 const layout::AttentionWorkspace& workspace) {
  int64_t n = args.pixels;
  const T* student = static_cast<const T*>(args.student) + i * args.student_channels * n;
  const T* teacher = static_cast<const T*>(args.teacher) + i * args.teacher_channels * n;
  float *map = workspace.student, *taught = workspace.teacher, *partial = workspace.partial;
  mean_squares(student, args.student_channels, n, map);
  mean_squares(teacher, args.teacher_channels, n, taught);
  float sums[math::kUnitTerms];
  sum_row<math::kUnitTerms>(n, partial, sums, [&](int64_t at, int64_t count, Vec* terms) {
    math::unit_terms(read(map, at, count), read(taught, at, count), terms);
  });
  FeatureRow row = math::feature_row(sums);
  Vec to_student = math::splat<Vec>(row.student), to_teacher = math::splat<Vec>(row.teacher);
  Vec cosine = math::splat<Vec>(row.cosine);
  // The slope overwrites the teacher's map.
  sum_row<1>(n, partial, args.losses + i, [&](int64_t at, int64_t count, Vec* terms) {
    Vec slope;
    terms[0] = math::unit_apart(read(map, at, count), read(taught, at, count), to_student,
                                to_teacher, cosine, &slope);
    write(taught, at, count, slope);
  });
  if (!args.gradient) return;
  T* gradient = static_cast<T*>(args.gradient) + i * args.student_channels * n;
  Vec scale = math::splat<Vec>(math::attention_scale(args));
  for (int64_t c = 0; c < args.student_channels; ++c) {
    for_each_vector(n, [&](int64_t at, int64_t count) [[gnu::always_inline]] {
      Vec x = read(student + c * n, at, count);
      write(gradient + c * n, at, count, read(taught, at, count) * scale * x);
    });
  }
}

}  // namespace

// Each core works through whole images; an image stays in the cache until its gradient is written.
template <>
void attention_transfer(const AttentionTransfer& args, const OnCpu<BITPARE_ISA>& cpu) {
  int64_t each = (args.images + args.workers - 1) / args.workers;
  with_type(args.dtype, [&]<class T>(T*) {
    parallel(cpu.parallel_for, args.workers, 1, [&](int64_t first, int64_t last) {
      for (int64_t worker = first; worker < last; ++worker) {
        float* scratch = args.scratch + worker * layout::attention_floats(args.pixels);
        auto workspace = layout::attention_workspace(scratch, args.pixels);
        int64_t end = at_most((worker + 1) * each, args.images);
        for (int64_t i = worker * each; i < end; ++i) write_image<T>(args, i, workspace);
      }
    });
  });
  float sum = sum_of(args.losses, args.images, args.losses + args.images);
  args.loss[0] = sum * math::attention_factor(args);
}

}  // namespace bitpare
