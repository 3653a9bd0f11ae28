#include "kernels/relation_loss.h"

#include "kernels/cpu/rows.h"

namespace bitpare {
namespace {

using math::RelationRoom;
using math::Relations;

// The same lanes on every instruction set: the compiler makes of it what there is.
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

// A sample's distances to those after it.
void measure(const RelationLoss& args, const Relations& to, const float* x, int64_t size,
             int64_t i) {
  math::element(to.squares, args, i, i) = math::element(to.inverse, args, i, i) = 0.0;
  for (int64_t j = i + 1; j < args.samples; ++j) {
    double squares = squared_distance(x + i * size, x + j * size, size);
    double inverse = math::inverse_distance(squares);
    math::element(to.squares, args, i, j) = math::element(to.squares, args, j, i) = squares;
    math::element(to.inverse, args, i, j) = math::element(to.inverse, args, j, i) = inverse;
  }
  for (int64_t j = args.samples; j < math::stride_of(args.samples); ++j) {
    math::element(to.squares, args, i, j) = math::element(to.inverse, args, i, j) = 0.0;
  }
}

// f(j) over a row, in lanes.
template <class F>
double sum_of_samples(int64_t samples, F f) {
  double lanes[kDoubleLanes] = {};
  for (int64_t j = 0; j < samples; ++j) lanes[j % kDoubleLanes] += f(j);
  return math::fold_doubles(lanes, kDoubleLanes);
}

void sum_distances(const RelationLoss& args, const RelationRoom& room, int64_t i) {
  const Relations* both[] = {&room.student, &room.teacher};
  for (const Relations* of : both) {
    of->sum[i] = sum_of_samples(args.samples, [&](int64_t j) {
      return __builtin_sqrt(math::element(of->squares, args, i, j));
    });
    of->others[i] = sum_of_samples(args.samples, [&](int64_t j) {
      return math::element(of->squares, args, i, j) > 0.0 ? 1.0 : 0.0;
    });
  }
}

void compare_distances(const RelationLoss& args, const RelationRoom& room, int64_t i) {
  double slope;
  room.pairs[i] = sum_of_samples(args.samples, [&](int64_t j) {
    return math::smooth_apart(math::pair_apart(args, room, i, j), &slope);
  });
  room.along[i] = sum_of_samples(args.samples, [&](int64_t j) {
    math::smooth_apart(math::pair_apart(args, room, i, j), &slope);
    return slope * __builtin_sqrt(math::element(room.student.squares, args, i, j));
  });
}

// All angles of which j is a side: at every i, to every k.
void compare_angles(const RelationLoss& args, const RelationRoom& room, int64_t j) {
  int64_t stride = math::stride_of(args.samples);
  const Relations &s = room.student, &t = room.teacher;
  double* opposite = room.opposite + j * stride;
  for (int64_t k = 0; k < stride; ++k) opposite[k] = 0.0;
  for (int64_t i = 0; i < args.samples; ++i) {
    Doubles none = {}, loss = {}, side = {};
    Doubles s_ij = none + math::element(s.squares, args, i, j);
    Doubles t_ij = none + math::element(t.squares, args, i, j);
    Doubles s_inverse = none + math::element(s.inverse, args, i, j);
    Doubles t_inverse = none + math::element(t.inverse, args, i, j);
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
    math::element(room.triples, args, j, i) = fold(loss);
    math::element(room.side, args, j, i) = fold(side);
  }
  double* triples = room.triples + j * stride;
  room.loss[j] = sum_of_samples(args.samples, [&](int64_t i) { return triples[i]; });
}

void write_gradient(const RelationLoss& args, const RelationRoom& room, int64_t i) {
  int64_t n = args.student_size, samples = args.samples;
  const float* x = args.student + i * n;
  // The pulls take the place of the losses, which are summed up.
  double* pulls = room.triples + i * math::stride_of(samples);
  for (int64_t j = 0; j < samples; ++j) pulls[j] = math::pull(args, room, i, j);
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
  RelationRoom room = math::room_of(args);
  int64_t n = args.samples;
  auto each_sample = [&](int64_t work, auto f) {
    parallel(cpu.parallel_for, n, 1 + (1 << 14) / work, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) f(args, room, i);
    });
  };
  // Samples from both ends: the first has most pairs, the last none.
  int64_t size = args.student_size + args.teacher_size;
  parallel(cpu.parallel_for, (n + 1) / 2, 1 + (1 << 14) / (1 + n * size),
           [&](int64_t first, int64_t last) {
             for (int64_t h = first; h < last; ++h) {
               int64_t ends[] = {h, n - 1 - h};
               for (int64_t i : ends) {
                 measure(args, room.student, args.student, args.student_size, i);
                 measure(args, room.teacher, args.teacher, args.teacher_size, i);
                 if (2 * h + 1 == n) break;
               }
             }
           });
  each_sample(n, sum_distances);
  Relations both[] = {room.student, room.teacher};
  for (const Relations& of : both) {
    math::total_of(of.sum, n);
    math::total_of(of.others, n);
  }
  if (args.distance != 0.0) {
    each_sample(n, compare_distances);
    math::total_of(room.pairs, n);
    math::total_of(room.along, n);
  }
  if (args.angle != 0.0) {
    each_sample(n * n, compare_angles);
    math::total_of(room.loss, n);
  }
  args.loss[0] = static_cast<float>(math::relation_total(args, room));
  if (args.gradient) each_sample(n * args.student_size, write_gradient);
}

}  // namespace bitpare
