// Distillation of one row of logits: a hard loss against the labels and a soft one against a
// teacher's row, and their gradient with respect to the student's logits.
//
// With a = z - max z of the student and b of the teacher:
//   hard  = -sum y log softmax(a),  y the labels, smoothed: (1 - e) y + e / classes
//   soft  = a divergence between q = softmax(a / T) and p = softmax(b / T):
//     forward         sum p log(p / q)
//     reverse         sum q log(q / p)
//     jensen_shannon  half of sum q log(q / m) + sum p log(p / m),  m = (p + q) / 2
//     decoupled       of the target against all others, and among the others (Zhao et al. 2022)
//     top             one of the first three where the teacher gave its k largest logits only:
//                     those classes, and the sum of all others as one
// The row's loss is hard_weight * hard + soft_weight * soft.
//
// If classes are left out of a softmax (decoupled: the target; top: those k), its maximum and
// its sums are of the others alone, so that nothing cancels however sure the teacher is.
#pragma once
#include "math/exp.h"
#include "math/log.h"
#include "math/reduce.h"

namespace bitpare {

enum class Hard : int32_t { none, index, probabilities };
enum class Soft : int32_t { none, forward, reverse, jensen_shannon, decoupled, top };

struct DistillRule {
  Hard hard = Hard::none;
  Soft soft = Soft::none;
  Soft divergence = Soft::none;  // of top
  float hard_weight = 0.0f;
  float soft_weight = 0.0f;  // with T^2
  float temperature = 1.0f;
  float smoothing = 0.0f;
  float smoothed = 0.0f;  // smoothing / classes
  // of decoupled
  float target_weight = 1.0f;
  float others_weight = 1.0f;
};

// Sums over the classes of a row.
enum DistillTerm : int32_t {
  kHardSum,     // exp(a)
  kLabelSum,    // y
  kAligned,     // y a; with an index, a
  kStudentSum,  // exp(a / T)
  kTeacherSum,  // exp(b / T)
  kDifference,  // of reverse: exp(a / T) (a - b) / T
  kDistillTerms
};

// Returns the bits of the terms that a pair of losses sums up.
constexpr int32_t terms_of(Hard hard, Soft soft) {
  int32_t all = 0;
  if (hard != Hard::none) all |= 1 << kHardSum | 1 << kAligned;
  if (hard == Hard::probabilities) all |= 1 << kLabelSum;
  if (soft != Soft::none) all |= 1 << kStudentSum;
  if (soft != Soft::none && soft != Soft::top) all |= 1 << kTeacherSum;
  if (soft == Soft::reverse) all |= 1 << kDifference;
  return all;
}

struct DistillSums {
  float hard_max, student_max, teacher_max;
  float at[kDistillTerms];
};

// The numbers of a target class: a, and (z - max of the others) / T of student and teacher.
struct DistillTarget {
  float aligned, student, teacher;
};

// dL/dz of class i is
//   hard exp(a) - flat - label y                                    (minus `hit` at the target)
//   + student exp(a / T) - teacher exp(b / T) [+ pull exp(a / T)]   forward, top [decoupled]
//   + student exp(a / T) (log(q / p) - offset)                      reverse
//   + student exp(a / T) (log(q / m) - offset)                      jensen_shannon
// ratio: the logarithm of the student's sum over the teacher's; to_same: the factor that brings the
// exponentials of one to the sum of the other.
struct DistillSlopes {
  float hard = 0.0f, flat = 0.0f, label = 0.0f, hit = 0.0f;
  float student = 0.0f, teacher = 0.0f, offset = 0.0f, ratio = 0.0f, to_same = 0.0f;
  float pull = 0.0f;
};

// The row's loss is loss + divergence_weight * sum of the divergence_terms().
struct DistillResult {
  float loss = 0.0f, divergence_weight = 0.0f;
  DistillSlopes slopes;
};

namespace math {

// exp(a), exp(a / T), exp(b / T), and (b - a) / T.
template <class V>
struct DistillExponentials {
  V hard, student, teacher, distance;
};

BITPARE_INLINE constexpr bool reads_teacher(Soft soft) {
  return soft != Soft::none && soft != Soft::top;
}

// Returns whether exp(a) is exp(a / T), its square or its fourth power, as at the temperatures that
// are used most, where the two softmaxes are over the same classes.
template <Soft kSoft>
BITPARE_INLINE bool hard_is_a_power(const DistillRule& rule) {
  if (kSoft == Soft::none || kSoft == Soft::top) return false;
  return rule.temperature == 1.0f || rule.temperature == 2.0f || rule.temperature == 4.0f;
}

template <class V>
BITPARE_INLINE V hard_power(const DistillRule& rule, V softened) {
  if (rule.temperature == 1.0f) return softened;
  V square = softened * softened;
  return rule.temperature == 2.0f ? square : square * square;
}

template <class V>
BITPARE_INLINE V smoothed_label(V y, const DistillRule& rule) {
  return y * splat<V>(1.0f - rule.smoothing) + splat<V>(rule.smoothed);
}

// Adds one class to the sums. z: the student's logit for the hard loss; student, teacher: for
// the soft one, -infinity where the class is left out.
template <Hard kHard, Soft kSoft, class V>
BITPARE_INLINE DistillExponentials<V> distill_terms(const DistillRule& rule, const DistillSums& row,
                                                    V z, V label, V student, V teacher, V* terms) {
  V zero = splat<V>(0.0f);
  DistillExponentials<V> e = {zero, zero, zero, zero};
  if constexpr (kSoft != Soft::none) {
    V inverse = splat<V>(1.0f / rule.temperature);
    V a = (student - splat<V>(row.student_max)) * inverse;
    e.student = exponential_below_one(a);
    terms[kStudentSum] = e.student;
    if constexpr (reads_teacher(kSoft)) {
      V b = (teacher - splat<V>(row.teacher_max)) * inverse;
      e.teacher = exponential_below_one(b);
      e.distance = b - a;
      terms[kTeacherSum] = e.teacher;
      if constexpr (kSoft == Soft::reverse) {
        terms[kDifference] = e.student > zero ? e.student * -e.distance : zero;
      }
    }
  }
  if constexpr (kHard != Hard::none) {
    V a = z - splat<V>(row.hard_max);
    e.hard = hard_is_a_power<kSoft>(rule) ? hard_power(rule, e.student) : exponential_below_one(a);
    terms[kHardSum] = e.hard;
    if constexpr (kHard == Hard::index) {
      terms[kAligned] = a;
    } else {
      V y = smoothed_label(label, rule);
      terms[kLabelSum] = y;
      terms[kAligned] = y == zero ? zero : y * a;
    }
  }
  return e;
}

// log(q / m), and a finite number where q is 0: it is multiplied by q.
template <class V>
BITPARE_INLINE V log_to_middle(V q, V p) {
  V ratio = natural_logarithm(q / ((q + p) * splat<V>(0.5f)));
  return q == splat<V>(0.0f) ? splat<V>(-104.0f) : ratio;
}

// p log(p / q) - p + q, with u = log(p / q): its sum is the divergence, and as no term is negative
// nothing cancels where p is close to q. It is q ((u - 1) exp(u) + 1), whose series serves small u.
template <class V>
BITPARE_INLINE V divergence_term(V p, V q, V u) {
  V zero = splat<V>(0.0f), half = splat<V>(0.5f);
  V series = splat<V>(8.0f / 362880);
  series = series * u + splat<V>(7.0f / 40320);
  series = series * u + splat<V>(6.0f / 5040);
  series = series * u + splat<V>(5.0f / 720);
  series = series * u + splat<V>(4.0f / 120);
  series = series * u + splat<V>(3.0f / 24);
  series = series * u + splat<V>(2.0f / 6);
  series = series * u + half;
  V far = (p > zero ? p * u - p : zero) + q;
  return absolute(u) < half ? q * (u * u * series) : far;
}

// Writes a class's share in the divergences of q and p from m, and returns log(q / m).
template <class V>
BITPARE_INLINE V middle_terms(const DistillSums& row, V student, V teacher, V* terms) {
  V q = student * splat<V>(1.0f / row.at[kStudentSum]);
  V p = teacher * splat<V>(1.0f / row.at[kTeacherSum]);
  V m = (q + p) * splat<V>(0.5f), log_q = log_to_middle(q, p);
  terms[0] = divergence_term(q, m, log_q);
  terms[1] = divergence_term(p, m, log_to_middle(p, q));
  return log_q;
}

// e: from distill_terms(); middle: from middle_terms(). divergence: the class's share in the
// divergence (for decoupled, in that among the others), before it is divided by the sum of
// exponentials.
template <Hard kHard, Soft kSoft, class V>
BITPARE_INLINE V distill_gradient(const DistillSlopes& s, const DistillExponentials<V>& e, V label,
                                  V middle, V* divergence) {
  V zero = splat<V>(0.0f), result = zero;
  if constexpr (kHard != Hard::none) {
    result = splat<V>(s.hard) * e.hard - splat<V>(s.flat);
    if constexpr (kHard == Hard::probabilities) result = result - splat<V>(s.label) * label;
  }
  if constexpr (kSoft != Soft::none) {
    V pull = splat<V>(s.student) * e.student;
    if constexpr (kSoft == Soft::jensen_shannon) {
      pull = pull * (middle - splat<V>(s.offset));
    } else if constexpr (kSoft == Soft::reverse) {
      V u = splat<V>(-s.ratio) - e.distance;
      *divergence = divergence_term(e.student, e.teacher * splat<V>(s.to_same), u);
      pull = e.student > zero ? pull * (u - splat<V>(s.offset)) : pull;
    } else if constexpr (kSoft != Soft::top) {
      V u = e.distance + splat<V>(s.ratio);
      *divergence = divergence_term(e.teacher, e.student * splat<V>(s.to_same), u);
      pull = pull - splat<V>(s.teacher) * e.teacher;
      if constexpr (kSoft == Soft::decoupled) pull = pull + splat<V>(s.pull) * e.student;
    }
    result = result + pull;
  }
  return result;
}

BITPARE_INLINE float softplus(float x) {
  return (x > 0.0f ? x : 0.0f) + natural_logarithm(1.0f + exponential(-absolute(x)));
}

BITPARE_INLINE float sigmoid(float x) {
  float e = exponential(-absolute(x));
  return (x < 0.0f ? e : 1.0f) / (1.0f + e);
}

// scale: what the row's gradient is multiplied by.
BITPARE_INLINE void add_hard(const DistillRule& rule, const DistillSums& row, float aligned,
                             float scale, DistillResult* result) {
  if (rule.hard == Hard::none) return;
  float log_sum = natural_logarithm(row.at[kHardSum]), slope = scale * rule.hard_weight;
  float kept = 1.0f - rule.smoothing, loss, total = 1.0f;
  if (rule.hard == Hard::index) {
    loss = log_sum - kept * aligned;
    if (rule.smoothing > 0.0f) loss = loss - rule.smoothed * row.at[kAligned];
    result->slopes.hit += slope * kept;
  } else {
    total = row.at[kLabelSum];
    loss = log_sum * total - row.at[kAligned];
    result->slopes.label = slope * kept;
  }
  result->loss += rule.hard_weight * loss;
  result->slopes.hard = slope * total / row.at[kHardSum];
  result->slopes.flat = slope * rule.smoothed;
}

// Adds the loss of the target against the others, and the loss among the others.
BITPARE_INLINE void add_decoupled(const DistillRule& rule, const DistillSums& row,
                                  const DistillTarget& target, float scale, DistillResult* result) {
  float s = target.student - natural_logarithm(row.at[kStudentSum]);
  float t = target.teacher - natural_logarithm(row.at[kTeacherSum]);
  float p = sigmoid(t), q = sigmoid(s), slope = scale * rule.soft_weight / rule.temperature;
  float of_target = divergence_term(p, q, softplus(-s) - softplus(-t)) +
                    divergence_term(sigmoid(-t), sigmoid(-s), softplus(s) - softplus(t));
  result->loss += rule.soft_weight * rule.target_weight * of_target;
  result->divergence_weight = rule.soft_weight * rule.others_weight / row.at[kTeacherSum];
  float pull = slope * rule.target_weight * (p - q);
  result->slopes.student = slope * rule.others_weight / row.at[kStudentSum];
  result->slopes.teacher = slope * rule.others_weight / row.at[kTeacherSum];
  result->slopes.pull = pull / row.at[kStudentSum];
  result->slopes.hit += pull;
}

// middle: the sums of middle_terms().
BITPARE_INLINE void add_soft(const DistillRule& rule, const DistillSums& row,
                             const DistillTarget& target, const float* middle, float scale,
                             DistillResult* result) {
  float student = row.at[kStudentSum], teacher = row.at[kTeacherSum];
  float slope = scale * rule.soft_weight / rule.temperature;
  result->slopes.ratio = natural_logarithm(student) - natural_logarithm(teacher);
  result->slopes.to_same = rule.soft == Soft::reverse ? student / teacher : teacher / student;
  if (rule.soft == Soft::decoupled) return add_decoupled(rule, row, target, scale, result);
  result->slopes.student = slope / student;
  if (rule.soft == Soft::jensen_shannon) {
    result->loss += rule.soft_weight * 0.5f * (middle[0] + middle[1]);
    result->slopes.offset = middle[0];
    result->slopes.student = 0.5f * slope / student;
    return;
  }
  result->divergence_weight = rule.soft_weight / (rule.soft == Soft::reverse ? student : teacher);
  result->slopes.teacher = slope / teacher;
  result->slopes.offset = row.at[kDifference] / student - result->slopes.ratio;
}

// The row's weight: 0 where its target says that it is left out.
BITPARE_INLINE float row_weight(const int64_t* target, const float* weight, int64_t ignored,
                                int64_t row) {
  if (target && target[row] == ignored) return 0.0f;
  return weight ? weight[row] : 1.0f;
}

}  // namespace math
}  // namespace bitpare
