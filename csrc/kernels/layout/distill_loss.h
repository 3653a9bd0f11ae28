// The workspaces of distill_loss: on the CPU one for each worker, on CUDA one for each row.
#pragma once
#include "math/distill.h"

namespace bitpare::layout {

// Rows of this many floats keep vectors aligned.
BITPARE_INLINE int64_t padded(int64_t classes) { return (classes + 15) / 16 * 16; }

struct DistillWorkspace {
  float* student;       // [classes]: logits, if the student's are not float32
  float* soft_student;  // [classes]: logits, -infinity for the classes that are left out
  float* teacher;       // [classes]: likewise, or the given logits
  float* hard_exp;      // [classes]: exp(a); then the gradient, if the student's is not float32
  float* student_exp;   // [classes]: exp(a / T)
  float* teacher_exp;   // [classes]: exp(b / T)
  float* distance;      // [classes]: (b - a) / T
  float* partial;       // [kDistillTerms, chunks]
};

BITPARE_INLINE int64_t distill_floats(int64_t classes) {
  return 7 * padded(classes) + padded(kDistillTerms * math::chunks_of(classes));
}

BITPARE_INLINE DistillWorkspace distill_workspace(float* scratch, int64_t classes) {
  int64_t row = padded(classes);
  return {scratch,           scratch + row,     scratch + 2 * row, scratch + 3 * row,
          scratch + 4 * row, scratch + 5 * row, scratch + 6 * row, scratch + 7 * row};
}

struct DistillWorkspaceOnCuda {
  uint8_t* given;  // [classes]: 1 where the teacher gave the class's logit
  float* partial;  // [kDistillTerms, chunks]
};

BITPARE_INLINE int64_t distill_floats_on_cuda(int64_t classes) {
  return padded(classes / 4 + 1) + padded(kDistillTerms * math::chunks_of(classes));
}

BITPARE_INLINE DistillWorkspaceOnCuda distill_workspace_on_cuda(float* scratch, int64_t classes) {
  return {reinterpret_cast<uint8_t*>(scratch), scratch + padded(classes / 4 + 1)};
}

}  // namespace bitpare::layout
