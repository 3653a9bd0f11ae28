// Checks of a student's and a teacher's features.
#pragma once
#include "ops/arguments.h"

namespace bitpare::ops {

inline void check_features(const char* op, const Tensor& student, const Tensor& teacher) {
  TORCH_CHECK(student.is_floating_point() && teacher.is_floating_point(), op,
              ": student and teacher must be floating point, got ", student.scalar_type(), " and ",
              teacher.scalar_type());
  TORCH_CHECK(student.device() == teacher.device(), op, ": student is on ", student.device(),
              ", teacher on ", teacher.device());
}

inline void check_same_shape(const char* op, const Tensor& student, const Tensor& teacher) {
  TORCH_CHECK(student.sym_sizes().equals(teacher.sym_sizes()), op,
              ": student and teacher must have the same shape, got ", student.sym_sizes(), " and ",
              teacher.sym_sizes());
}

}  // namespace bitpare::ops
