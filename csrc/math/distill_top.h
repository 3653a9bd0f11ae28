// Distillation of a row of which the teacher gave its k largest logits only: those classes, and all
// others as one. See math/distill.h for the losses.
#pragma once
#include "math/distill.h"

namespace bitpare::math {

// A class's, or the others', logarithms of q and p.
struct Bucket {
  float log_student, log_teacher;
};

// The numbers that are known once the k classes are summed up.
struct TopSums {
  float log_sum;  // of the student's softmax over all classes, relative to the largest of all
  Bucket others;  // log_teacher is -infinity where they have no share
};

// given: sum of exp((z - hard_max) / T) over the k classes; teacher: their share in the teacher.
// If there are no others, or the student leaves them out, row.at[kStudentSum] is 0.
BITPARE_INLINE TopSums top_sums(const DistillRule& rule, const DistillSums& row, float given,
                                float teacher) {
  float infinity = __builtin_inff();
  TopSums top = {natural_logarithm(given), {-infinity, -infinity}};
  if (row.at[kStudentSum] == 0.0f) return top;
  float distance = (row.student_max - row.hard_max) * (1.0f / rule.temperature);
  float rest = exponential(distance) * row.at[kStudentSum];
  top.log_sum = natural_logarithm(given + rest);
  top.others.log_student = distance + natural_logarithm(row.at[kStudentSum]) - top.log_sum;
  float left = 1.0f - teacher, least = 0x1p-126f;
  top.others.log_teacher = natural_logarithm(left < least ? least : left);
  return top;
}

// (z - hard_max) / T of one of the k classes.
BITPARE_INLINE float top_distance(const DistillRule& rule, float z, float hard_max) {
  return (z - hard_max) * (1.0f / rule.temperature);
}

// value: the teacher's logit; logsumexp: of all its logits / T.
BITPARE_INLINE Bucket top_bucket(const DistillRule& rule, const TopSums& top, float distance,
                                 float value, float logsumexp) {
  return {distance - top.log_sum, value * (1.0f / rule.temperature) - logsumexp};
}

// A bucket's share of the divergence: forward and reverse have one term.
BITPARE_INLINE void bucket_terms(Soft divergence, const Bucket& bucket, float* terms) {
  float q = exponential(bucket.log_student), p = exponential(bucket.log_teacher);
  float u = bucket.log_teacher - bucket.log_student;
  terms[0] = terms[1] = 0.0f;
  if (divergence == Soft::forward) {
    terms[0] = divergence_term(p, q, u);
  } else if (divergence == Soft::reverse) {
    terms[0] = divergence_term(q, p, -u);
  } else {
    terms[0] = q * log_to_middle(q, p);
    terms[1] = p * log_to_middle(p, q);
  }
}

BITPARE_INLINE float top_loss(Soft divergence, const float* sums) {
  return divergence == Soft::jensen_shannon ? 0.5f * (sums[0] + sums[1]) : sums[0];
}

// d divergence / d (logit / T) of all that is in a bucket together. sums: of bucket_terms().
BITPARE_INLINE float bucket_slope(Soft divergence, const Bucket& bucket, const float* sums) {
  float q = exponential(bucket.log_student), p = exponential(bucket.log_teacher);
  if (divergence == Soft::forward) return q - p;
  if (!(q > 0.0f)) return 0.0f;
  if (divergence == Soft::reverse) {
    return q * ((bucket.log_student - bucket.log_teacher) - sums[0]);
  }
  return 0.5f * q * (log_to_middle(q, p) - sums[0]);
}

// sums: of bucket_terms() over all buckets.
BITPARE_INLINE void add_top(const DistillRule& rule, const DistillSums& row, const TopSums& top,
                            const float* sums, float scale, DistillResult* result) {
  result->loss += rule.soft_weight * top_loss(rule.divergence, sums);
  if (row.at[kStudentSum] == 0.0f) return;
  float slope = scale * rule.soft_weight / rule.temperature;
  result->slopes.student =
      slope * bucket_slope(rule.divergence, top.others, sums) / row.at[kStudentSum];
}

// Returns what is added to the gradient of one of the k classes.
BITPARE_INLINE float top_gradient(const DistillRule& rule, const Bucket& bucket, const float* sums,
                                  float scale) {
  float slope = scale * rule.soft_weight / rule.temperature;
  return slope * bucket_slope(rule.divergence, bucket, sums);
}

}  // namespace bitpare::math
