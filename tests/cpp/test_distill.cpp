// distill_loss: against a reference in double, and the same bits on every CPU kernel and on the
// CUDA one on the host.
#include <cmath>

#include "families.h"
#include "kernels/distill_loss.h"
#include "on_cuda.h"

namespace bitpare {
namespace {

struct Problem {
  int64_t rows, classes;
  Hard hard;
  Soft soft, divergence = Soft::none;
  int64_t top = 0;
  DType teacher = DType::float32;
  bool weighted = false, incoming = false;

  std::string name() const {
    return std::to_string(rows) + "x" + std::to_string(classes) + " hard " +
           std::to_string(static_cast<int>(hard)) + " soft " +
           std::to_string(static_cast<int>(soft)) + " of " +
           std::to_string(static_cast<int>(divergence)) + " top " + std::to_string(top);
  }

  DistillRule rule() const {
    DistillRule r;
    r.hard = hard;
    r.soft = soft;
    r.divergence = divergence;
    r.hard_weight = hard == Hard::none ? 0.0f : 0.3f;
    r.soft_weight = soft == Soft::none ? 0.0f : 1.7f;
    r.temperature = 2.5f;
    r.smoothing = hard == Hard::none ? 0.0f : 0.125f;
    r.smoothed = r.smoothing / static_cast<float>(classes);
    r.target_weight = 1.5f;
    r.others_weight = 0.75f;
    return r;
  }
};

constexpr int64_t kIgnored = -100;

struct Inputs {
  std::vector<float> student, teacher, labels, weight, incoming, logsumexp;
  std::vector<int64_t> target, indices;

  explicit Inputs(const Problem& p)
      : student(finite_values(p.rows * p.classes, 3)),
        teacher(finite_values(p.rows * p.classes, 4)),
        labels(finite_values(p.rows * p.classes, 5, 1.0f)),
        weight(finite_values(p.rows, 6, 1.0f)),
        incoming(finite_values(p.rows, 7, 1.0f)) {
    for (float& w : weight) w = std::abs(w);
    if (p.rows > 2) weight[2] = 0.0f;
    for (float& y : labels) y = std::abs(y) / static_cast<float>(p.classes);
    for (int64_t r = 0; r < p.rows; ++r) {
      target.push_back(r == 1 ? kIgnored : (r * 7 + 3) % p.classes);
      double sum = 0;
      for (int64_t c = 0; c < p.classes; ++c) sum += std::exp(teacher[at(p, r, c)] / 2.5);
      logsumexp.push_back(static_cast<float>(std::log(sum)));
      for (int64_t j = 0; j < p.top; ++j) indices.push_back((r + 3 * j) % p.classes);
    }
    if (p.top > 0) {  // its values take the place of the logits
      std::vector<float> values;
      for (int64_t r = 0; r < p.rows; ++r) {
        for (int64_t j = 0; j < p.top; ++j) {
          values.push_back(teacher[at(p, r, indices[static_cast<size_t>(r * p.top + j)])]);
        }
      }
      teacher = values;
    }
  }
  static size_t at(const Problem& p, int64_t r, int64_t c) {
    return static_cast<size_t>(r * p.classes + c);
  }
};

template <class T>
struct Losses {
  std::vector<float> loss, numbers;
  std::vector<T> gradient;
  bool intact = true;
};

template <class T, class Where>
Losses<T> run(const Problem& p, const Inputs& in, const Where& where, bool on_cpu) {
  auto student = narrowed<T>(in.student);
  auto half = narrowed<Half>(in.teacher);
  int64_t n = p.rows * p.classes, workers = on_cpu ? 3 : p.rows;
  int64_t each =
      on_cpu ? layout::distill_floats(p.classes) : layout::distill_floats_on_cuda(p.classes);
  Unaligned<T> gradient(n);
  std::vector<float> loss(static_cast<size_t>(p.rows)), numbers(2), scratch, sums;
  scratch.resize(static_cast<size_t>(each * workers), NAN);
  sums.resize(static_cast<size_t>(math::chunks_of(p.rows)), NAN);
  DistillLoss args = {};
  args.student = student.data();
  args.teacher = p.teacher == DType::float32 ? static_cast<const void*>(in.teacher.data())
                                             : static_cast<const void*>(half.data());
  args.student_type = kDType<T>;
  args.teacher_type = p.teacher;
  if (p.top > 0) {
    args.indices = in.indices.data();
    args.logsumexp = in.logsumexp.data();
  }
  if (p.hard != Hard::probabilities) args.target = in.target.data();
  if (p.hard == Hard::probabilities) args.labels = in.labels.data();
  if (p.weighted) args.weight = in.weight.data();
  if (p.incoming) args.incoming = in.incoming.data();
  args.incoming_rows = p.rows;
  args.rows = p.rows;
  args.classes = p.classes;
  args.top = p.top;
  args.ignored = kIgnored;
  args.rule = p.rule();
  args.mean = !p.incoming;
  args.loss = loss.data();
  args.factor = numbers.data();
  args.total = numbers.data() + 1;
  args.gradient = gradient.data();
  args.scratch = scratch.data();
  args.workers = workers;
  args.sums = sums.data();
  distill_loss(args, where);
  return {loss, numbers, gradient.values(n), gradient.intact(n)};
}

template <class T>
void expect_same(const Losses<T>& got, const Losses<T>& expected, const std::string& what) {
  EXPECT_TRUE(got.intact) << what << " wrote outside its range";
  expect_same_bits(got.loss, expected.loss, what + " loss");
  expect_same_bits(got.numbers, expected.numbers, what + " sums");
  expect_same_bits(got.gradient, expected.gradient, what + " gradient");
}

std::vector<Problem> problems() {
  std::vector<Problem> all;
  for (auto [rows, classes] : {std::pair<int64_t, int64_t>{5, 10}, {3, 1}, {2, 1029}, {4, 67}}) {
    for (Hard hard : {Hard::none, Hard::index, Hard::probabilities}) {
      for (Soft soft : {Soft::none, Soft::forward, Soft::reverse, Soft::jensen_shannon}) {
        all.push_back({rows, classes, hard, soft});
      }
      for (Soft divergence : {Soft::forward, Soft::reverse, Soft::jensen_shannon}) {
        if (classes > 10) all.push_back({rows, classes, hard, Soft::top, divergence, 5});
      }
    }
    all.push_back({rows, classes, Hard::none, Soft::decoupled});
  }
  all.push_back({5, 10, Hard::index, Soft::top, Soft::forward, 10});
  all.push_back({0, 10, Hard::index, Soft::forward});
  all.push_back({2, 2600, Hard::index, Soft::top, Soft::forward, 70});
  size_t first = all.size();
  for (size_t i = 0; i < first; i += 3) {
    Problem p = all[i];
    p.weighted = true;
    p.teacher = DType::float16;
    all.push_back(p);
    p.incoming = true;
    all.push_back(p);
  }
  return all;
}

TEST(DistillLoss, HasTheSameBitsEverywhere) {
  for_each_type([]<class T>(T) {
    for (const Problem& p : problems()) {
      Inputs in(p);
      Losses<T> expected;
      on_cpu(CpuCapability::baseline, serial,
             [&](const auto& cpu) { expected = run<T>(p, in, cpu, true); });
      on_every_cpu([&](const auto& cpu, const std::string& name) {
        expect_same(run<T>(p, in, cpu, true), expected, name + " " + p.name());
      });
      if (!std::is_same_v<T, float> && p.classes > 100) continue;
      on_cuda([&](const OnCuda& cuda, const std::string& order) {
        expect_same(run<T>(p, in, cuda, false), expected, order + " " + p.name());
      });
    }
  });
}

// Returns the loss of one row in double, from softmaxes as they are defined.
double reference(const Problem& p, const Inputs& in, const std::vector<double>& z, int64_t r) {
  auto rule = p.rule();
  auto softmax = [&](auto value, double t) {
    std::vector<double> e;
    double sum = 0;
    for (int64_t c = 0; c < p.classes; ++c) e.push_back(std::exp(value(c) / t));
    for (double v : e) sum += v;
    for (double& v : e) v /= sum;
    return e;
  };
  auto student = [&](int64_t c) { return z[static_cast<size_t>(c)]; };
  auto teacher = [&](int64_t c) { return static_cast<double>(in.teacher[Inputs::at(p, r, c)]); };
  auto q = softmax(student, rule.temperature), p_ = softmax(teacher, rule.temperature);
  auto q1 = softmax(student, 1.0);
  double loss = 0;
  for (int64_t i = 0; i < p.classes; ++i) {
    auto c = static_cast<size_t>(i);
    double y = p.hard == Hard::probabilities ? in.labels[Inputs::at(p, r, i)]
                                             : in.target[static_cast<size_t>(r)] == i;
    y = (1 - rule.smoothing) * y + rule.smoothed;
    if (p.hard != Hard::none) loss -= rule.hard_weight * y * std::log(q1[c]);
    double m = (q[c] + p_[c]) / 2, soft = 0;
    if (p.soft == Soft::forward) soft = p_[c] * std::log(p_[c] / q[c]);
    if (p.soft == Soft::reverse) soft = q[c] * std::log(q[c] / p_[c]);
    if (p.soft == Soft::jensen_shannon) {
      soft = 0.5 * (q[c] * std::log(q[c] / m) + p_[c] * std::log(p_[c] / m));
    }
    loss += rule.soft_weight * soft;
  }
  return loss;
}

TEST(DistillLoss, IsTheReference) {
  for (Soft soft : {Soft::none, Soft::forward, Soft::reverse, Soft::jensen_shannon}) {
    for (Hard hard : {Hard::none, Hard::index, Hard::probabilities}) {
      Problem p = {4, 37, hard, soft};
      Inputs in(p);
      Losses<float> losses;
      on_cpu(machine_cpu_capability(), serial,
             [&](const auto& cpu) { losses = run<float>(p, in, cpu, true); });
      double factor = losses.numbers[0];
      for (int64_t r = 0; r < p.rows; ++r) {
        bool left_out = hard != Hard::probabilities && r == 1;
        std::vector<double> z(in.student.begin() + r * p.classes,
                              in.student.begin() + (r + 1) * p.classes);
        double expected = left_out ? 0.0 : reference(p, in, z, r);
        EXPECT_NEAR(losses.loss[static_cast<size_t>(r)], expected, 1e-6 * (1 + expected))
            << p.name();
        for (size_t c = 0; c < z.size(); ++c) {
          double step = 1e-5, kept = z[c];
          z[c] = kept + step;
          double above = reference(p, in, z, r);
          z[c] = kept - step;
          double slope = (above - reference(p, in, z, r)) / (2 * step) * factor;
          z[c] = kept;
          size_t i = static_cast<size_t>(r * p.classes) + c;
          EXPECT_NEAR(losses.gradient[i], left_out ? 0.0 : slope, 2e-7) << p.name();
        }
      }
    }
  }
}

}  // namespace
}  // namespace bitpare
