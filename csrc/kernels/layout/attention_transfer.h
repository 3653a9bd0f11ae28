// The workspace of attention_transfer, for one worker.
#pragma once
#include "math/feature_loss.h"

namespace bitpare::layout {

struct AttentionWorkspace {
  float* student;  // [pixels]: the map
  float* teacher;  // [pixels]: the map, then the slope of the loss in the student's
  float* partial;  // [kUnitTerms, chunks]
};

BITPARE_INLINE int64_t attention_floats(int64_t pixels) {
  return 2 * pixels + math::kUnitTerms * math::chunks_of(pixels);
}

BITPARE_INLINE AttentionWorkspace attention_workspace(float* scratch, int64_t pixels) {
  return {scratch, scratch + pixels, scratch + 2 * pixels};
}

}  // namespace bitpare::layout
