#include "kernels/relation_loss.h"

#include "kernels/cpu/rows.h"

namespace bitpare {
namespace {

using layout::Relations;
using layout::RelationWorkspace;

// Vectors of the same length on every instruction set, which the compiler splits as needed.
typedef double Doubles __attribute__((vector_size(8 * kDoubleLanes)));
typedef float Floats __attribute__((vector_size(4 * kDoubleLanes)));

BITPARE_INLINE void load(const double* p, Doubles* v) { __builtin_memcpy(v, p, sizeof *v); }
BITPARE_INLINE void load(const float* p, Doubles* v) {
  Floats x;
  __builtin_memcpy(&x, p, sizeof x);
  *v = __builtin_convertvector(x, Doubles);
}

BITPARE_INLINE double fold(const Doubles& v) {
  double lanes[kDoubleLanes];
  __builtin_memcpy(lanes, &v, sizeof v);
  return math::fold_doubles(lanes, kDoubleLanes);
}

double squared_distance(const float* a, const float* b, int64_t n) {
  constexpr int64_t kVectors = kFeatureLanes / kDoubleLanes;
  Doubles sums[kVectors] = {};
  int64_t at = 0;
  auto add = [&](const float* x, const float* y) {
    for (int64_t v = 0; v < kVectors; ++v) {
      Doubles p, q;
      load(x + v * kDoubleLanes, &p);
      load(y + v * kDoubleLanes, &q);
      sums[v] += (p - q) * (p - q);
    }
  };
  for (; at + kFeatureLanes <= n; at += kFeatureLanes) add(a + at, b + at);
  if (at < n) {
    float x[kFeatureLanes] = {}, y[kFeatureLanes] = {};
    __builtin_memcpy(x, a + at, static_cast<uint64_t>(n - at) * sizeof(float));
    __builtin_memcpy(y, b + at, static_cast<uint64_t>(n - at) * sizeof(float));
    add(x, y);
  }
  double lanes[kFeatureLanes];
  __builtin_memcpy(lanes, sums, sizeof sums);
  return math::fold_doubles(lanes, kFeatureLanes);
}

// Writes a sample's distances to the samples after it.
void measure(const RelationLoss& args, const Relations& to, const float* x, int64_t size,
             int64_t i) {
  layout::element(to.squares, args.samples, i, i) =
      layout::element(to.inverse, args.samples, i, i) = 0.0;
  for (int64_t j = i + 1; j < args.samples; ++j) {
    double squares = squared_distance(x + i * size, x + j * size, size);
    double inverse = math::inverse_distance(squares);
    layout::element(to.squares, args.samples, i, j) =
        layout::element(to.squares, args.samples, j, i) = squares;
    layout::element(to.inverse, args.samples, i, j) =
        layout::element(to.inverse, args.samples, j, i) = inverse;
  }
  for (int64_t j = args.samples; j < layout::stride_of(args.samples); ++j) {
    layout::element(to.squares, args.samples, i, j) =
        layout::element(to.inverse, args.samples, i, j) = 0.0;
  }
}

// Sums f(j) over a row, in lanes.
template <class F>
double sum_of_samples(int64_t samples, F f) {
  double lanes[kDoubleLanes] = {};
  for (int64_t j = 0; j < samples; ++j) lanes[j % kDoubleLanes] += f(j);
  return math::fold_doubles(lanes, kDoubleLanes);
}

void sum_distances(const RelationLoss& args, const RelationWorkspace& workspace, int64_t i) {
  const Relations* both[] = {&workspace.student, &workspace.teacher};
  for (const Relations* of : both) {
    of->sum[i] = sum_of_samples(args.samples, [&](int64_t j) {
      return __builtin_sqrt(layout::element(of->squares, args.samples, i, j));
    });
    of->others[i] = sum_of_samples(args.samples, [&](int64_t j) {
      return layout::element(of->squares, args.samples, i, j) > 0.0 ? 1.0 : 0.0;
    });
  }
}

void compare_distances(const RelationLoss& args, const RelationWorkspace& workspace, int64_t i) {
  double slope;
  workspace.pairs[i] = sum_of_samples(args.samples, [&](int64_t j) {
    return math::smooth_apart(math::pair_apart(args, workspace, i, j), &slope);
  });
  workspace.along[i] = sum_of_samples(args.samples, [&](int64_t j) {
    math::smooth_apart(math::pair_apart(args, workspace, i, j), &slope);
    return slope * __builtin_sqrt(layout::element(workspace.student.squares, args.samples, i, j));
  });
}

// Compares all angles with a side to j: at every i, to every k.
void compare_angles(const RelationLoss& args, const RelationWorkspace& workspace, int64_t j) {
  int64_t stride = layout::stride_of(args.samples);
  const Relations &s = workspace.student, &t = workspace.teacher;
  double* opposite = workspace.opposite + j * stride;
  for (int64_t k = 0; k < stride; ++k) opposite[k] = 0.0;
  for (int64_t i = 0; i < args.samples; ++i) {
    Doubles none = {}, loss = {}, side = {};
    Doubles s_ij = none + layout::element(s.squares, args.samples, i, j);
    Doubles t_ij = none + layout::element(t.squares, args.samples, i, j);
    Doubles s_inverse = none + layout::element(s.inverse, args.samples, i, j);
    Doubles t_inverse = none + layout::element(t.inverse, args.samples, i, j);
    for (int64_t k = 0; k < stride; k += kDoubleLanes) {
      Doubles s_ik, s_jk, t_ik, t_jk, s_to_k, t_to_k, slope, sum;
      load(s.squares + i * stride + k, &s_ik);
      load(s.squares + j * stride + k, &s_jk);
      load(t.squares + i * stride + k, &t_ik);
      load(t.squares + j * stride + k, &t_jk);
      load(s.inverse + i * stride + k, &s_to_k);
      load(t.inverse + i * stride + k, &t_to_k);
      load(opposite + k, &sum);
      Doubles cosine = math::cosine_at(s_ij, s_ik, s_jk, s_inverse, s_to_k);
      Doubles taught = math::cosine_at(t_ij, t_ik, t_jk, t_inverse, t_to_k);
      loss += math::smooth_apart(Doubles(cosine - taught), &slope);
      side += math::slope_of_side(slope, cosine, s_inverse, s_to_k);
      sum += math::slope_of_opposite(slope, s_inverse, s_to_k);
      __builtin_memcpy(opposite + k, &sum, sizeof sum);
    }
    layout::element(workspace.triples, args.samples, j, i) = fold(loss);
    layout::element(workspace.side, args.samples, j, i) = fold(side);
  }
  double* triples = workspace.triples + j * stride;
  workspace.loss[j] = sum_of_samples(args.samples, [&](int64_t i) { return triples[i]; });
}

void write_gradient(const RelationLoss& args, const RelationWorkspace& workspace, int64_t i) {
  int64_t n = args.student_size, samples = args.samples;
  const float* x = args.student + i * n;
  // The pulls overwrite the losses, which are already summed.
  double* pulls = workspace.triples + i * layout::stride_of(samples);
  for (int64_t j = 0; j < samples; ++j) pulls[j] = math::pull(args, workspace, i, j);
  for_each_vector(n, [&](int64_t at, int64_t count) {
    Vec own = read(x, at, count), sum = {};
    for (int64_t j = 0; j < samples; ++j) {
      sum += math::splat<Vec>(static_cast<float>(pulls[j])) *
             (own - read(args.student + j * n, at, count));
    }
    write(args.gradient + i * n, at, count, sum);
  });
}

}  // namespace

template <>
void relation_loss(const RelationLoss& args, const OnCpu<BITPARE_ISA>& cpu) {
  RelationWorkspace workspace = layout::relation_workspace(args.scratch, args.samples);
  int64_t n = args.samples;
  auto each_sample = [&](int64_t work, auto f) {
    parallel(cpu.parallel_for, n, 1 + (1 << 14) / work, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) f(args, workspace, i);
    });
  };
  // Pairs samples from both ends, to balance the work: the first has the most pairs, the last none.
  int64_t size = args.student_size + args.teacher_size;
  parallel(cpu.parallel_for, (n + 1) / 2, 1 + (1 << 14) / (1 + n * size),
           [&](int64_t first, int64_t last) {
             for (int64_t h = first; h < last; ++h) {
               int64_t ends[] = {h, n - 1 - h};
               for (int64_t i : ends) {
                 measure(args, workspace.student, args.student, args.student_size, i);
                 measure(args, workspace.teacher, args.teacher, args.teacher_size, i);
                 if (2 * h + 1 == n) break;
               }
             }
           });
  each_sample(n, sum_distances);
  Relations both[] = {workspace.student, workspace.teacher};
  for (const Relations& of : both) {
    math::total_of(of.sum, n);
    math::total_of(of.others, n);
  }
  if (args.distance != 0.0) {
    each_sample(n, compare_distances);
    math::total_of(workspace.pairs, n);
    math::total_of(workspace.along, n);
  }
  if (args.angle != 0.0) {
    each_sample(n * n, compare_angles);
    math::total_of(workspace.loss, n);
  }
  args.loss[0] = static_cast<float>(math::relation_total(args, workspace));
  if (args.gradient) each_sample(n * args.student_size, write_gradient);
}

}  // namespace bitpare
