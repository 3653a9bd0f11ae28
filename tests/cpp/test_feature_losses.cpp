// Losses of features and of relations: the same bits on every CPU kernel and on the CUDA ones on
// the host. Their values are tested against float64 from Python.
#include <cmath>

#include "families.h"
#include "kernels/attention_transfer.h"
#include "kernels/dist_loss.h"
#include "kernels/feature_loss.h"
#include "kernels/relation_loss.h"
#include "on_cuda.h"

namespace bitpare {
namespace {

template <class T>
struct Apart {
  std::vector<float> loss;
  std::vector<T> gradient;
  bool intact = true;
};

// Calls run(where, on_cpu) on every CPU kernel and on CUDA.
template <class T, class Run>
void expect_same_bits_everywhere(const std::string& what, Run run) {
  Apart<T> expected;
  on_cpu(CpuCapability::baseline, serial, [&](const auto& cpu) { expected = run(cpu, true); });
  EXPECT_TRUE(std::isfinite(expected.loss[0])) << what;
  auto check = [&](const Apart<T>& got, const std::string& name) {
    EXPECT_TRUE(got.intact) << name << what << " wrote outside its range";
    expect_same_bits(got.loss, expected.loss, name + what + " loss");
    expect_same_bits(got.gradient, expected.gradient, name + what + " gradient");
  };
  on_every_cpu(
      [&](const auto& cpu, const std::string& name) { check(run(cpu, true), name + " "); });
  on_cuda([&](const OnCuda& cuda, const std::string& order) { check(run(cuda, false), order); });
}

std::vector<float> scratch_of(int64_t floats) {
  return std::vector<float>(static_cast<size_t>(floats), NAN);
}

template <class T, class Where>
Apart<T> run_features(FeatureKind kind, int64_t rows, int64_t n, const float* incoming,
                      const Where& where) {
  auto student = narrowed<T>(finite_values(rows * n, 3)),
       teacher = narrowed<T>(finite_values(rows * n, 4));
  if (rows > 1) std::fill(student.begin(), student.begin() + n, T{});  // a row without length
  Unaligned<T> gradient(rows * n);
  auto loss = scratch_of(1), sums = scratch_of(rows);
  auto partial = scratch_of(layout::feature_floats(kind, rows, n));
  std::vector<FeatureRow> units(static_cast<size_t>(rows));
  FeatureLoss args = {
      student.data(), teacher.data(), kDType<T>,       kind,           rows,         n,
      incoming,       loss.data(),    gradient.data(), partial.data(), units.data(), sums.data()};
  feature_loss(args, where);
  return {loss, gradient.values(rows * n), gradient.intact(rows * n)};
}

constexpr float kIncoming = 1.75f;
constexpr const float* kIncomings[] = {nullptr, &kIncoming};

TEST(FeatureLoss, HasTheSameBitsEverywhere) {
  for_each_type([]<class T>(T) {
    for (auto kind :
         {FeatureKind::mse, FeatureKind::l1, FeatureKind::cosine, FeatureKind::normalized}) {
      for (auto [rows, n] : {std::pair<int64_t, int64_t>{5, 7}, {3, 1}, {1, 90}, {2, 1029}}) {
        for (const float* incoming : kIncomings) {
          std::string what = std::to_string(static_cast<int>(kind)) + " " + std::to_string(rows) +
                             "x" + std::to_string(n);
          expect_same_bits_everywhere<T>(what, [=](const auto& where, bool) {
            return run_features<T>(kind, rows, n, incoming, where);
          });
        }
      }
    }
  });
}

struct Maps {
  int64_t images, student_channels, teacher_channels, pixels;
};

template <class T, class Where>
Apart<T> run_attention(const Maps& m, const float* incoming, int64_t workers, const Where& where) {
  int64_t n = m.images * m.student_channels * m.pixels;
  auto student = narrowed<T>(finite_values(n, 3));
  auto teacher = narrowed<T>(finite_values(m.images * m.teacher_channels * m.pixels, 4));
  if (m.images > 1) std::fill(student.begin(), student.begin() + n / m.images, T{});
  Unaligned<T> gradient(n);
  auto loss = scratch_of(1), losses = scratch_of(m.images + math::chunks_of(m.images));
  auto scratch = scratch_of(workers * layout::attention_floats(m.pixels));
  AttentionTransfer args = {student.data(),     teacher.data(),     kDType<T>,      m.images,
                            m.student_channels, m.teacher_channels, m.pixels,       incoming,
                            loss.data(),        gradient.data(),    scratch.data(), workers,
                            losses.data()};
  attention_transfer(args, where);
  return {loss, gradient.values(n), gradient.intact(n)};
}

TEST(AttentionTransfer, HasTheSameBitsEverywhere) {
  for_each_type([]<class T>(T) {
    for (Maps m : {Maps{5, 3, 7, 30}, {1, 1, 1, 1}, {3, 2, 1, 67}, {2, 5, 4, 1100}}) {
      for (const float* incoming : kIncomings) {
        std::string what = std::to_string(m.images) + " of " + std::to_string(m.pixels);
        expect_same_bits_everywhere<T>(what, [=](const auto& where, bool on_cpu) {
          return run_attention<T>(m, incoming, on_cpu ? 2 : m.images, where);
        });
      }
    }
  });
}

template <class T, class Where>
Apart<T> run_dist(int64_t rows, int64_t classes, bool weighted, const float* incoming,
                  const Where& where) {
  int64_t n = rows * classes;
  auto student = narrowed<T>(finite_values(n, 3)), teacher = narrowed<T>(finite_values(n, 4));
  auto weight = finite_values(rows, 6, 1.0f);
  for (float& w : weight) w = std::abs(w);
  if (rows > 2) weight[1] = 0.0f;
  Unaligned<T> gradient(n);
  auto loss = scratch_of(1), scratch = scratch_of(layout::dist_floats(rows, classes));
  DistLoss args = {student.data(), teacher.data(), kDType<T>,   weighted ? weight.data() : nullptr,
                   rows,           classes,        2.5f,        1.5f,
                   0.75f,          incoming,       loss.data(), gradient.data(),
                   scratch.data()};
  dist_loss(args, where);
  return {loss, gradient.values(n), gradient.intact(n)};
}

TEST(DistLoss, HasTheSameBitsEverywhere) {
  for_each_type([]<class T>(T) {
    for (auto [rows, classes] : {std::pair<int64_t, int64_t>{5, 10}, {1, 2}, {70, 37}, {3, 1029}}) {
      for (bool weighted : {false, true}) {
        for (const float* incoming : kIncomings) {
          std::string what = std::to_string(rows) + "x" + std::to_string(classes);
          expect_same_bits_everywhere<T>(what, [=](const auto& where, bool) {
            return run_dist<T>(rows, classes, weighted, incoming, where);
          });
        }
      }
    }
  });
}

struct Samples {
  int64_t samples, student_size, teacher_size;
  double distance, angle;
};

template <class Where>
Apart<float> run_relation(const Samples& s, const float* incoming, const Where& where) {
  int64_t n = s.samples * s.student_size;
  auto student = finite_values(n, 3), teacher = finite_values(s.samples * s.teacher_size, 4);
  if (s.samples > 2) {  // two that coincide
    std::copy_n(student.begin(), s.student_size, student.begin() + 2 * s.student_size);
  }
  Unaligned<float> gradient(n);
  auto loss = scratch_of(1);
  std::vector<double> scratch(static_cast<size_t>(layout::relation_doubles(s.samples)), NAN);
  RelationLoss args = {student.data(), teacher.data(),  s.samples,     s.student_size,
                       s.teacher_size, s.distance,      s.angle,       incoming,
                       loss.data(),    gradient.data(), scratch.data()};
  relation_loss(args, where);
  return {loss, gradient.values(n), gradient.intact(n)};
}

TEST(RelationLoss, HasTheSameBitsEverywhere) {
  for (Samples s : {Samples{6, 9, 4, 1.0, 2.0},
                    {1, 3, 3, 1.0, 1.0},
                    {9, 70, 33, 0.0, 1.0},
                    {17, 5, 100, 25.0, 0.0},
                    {8, 1, 1, 1.0, 1.0}}) {
    for (const float* incoming : kIncomings) {
      std::string what = std::to_string(s.samples) + " of " + std::to_string(s.student_size);
      expect_same_bits_everywhere<float>(
          what, [=](const auto& where, bool) { return run_relation(s, incoming, where); });
    }
  }
}

}  // namespace
}  // namespace bitpare
