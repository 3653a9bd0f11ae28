// Updates the state of a weight after an optimizer step: see math/oscillation.h.
#pragma once
#include "kernels/backend.h"
#include "math/control.h"
#include "math/oscillation.h"

namespace bitpare {

// weight: [n] of dtype, written where it is frozen. quantizer: scales, each of which serves
// channel.inner neighbours; its limits are the control's. code, turn, frequency, mean: [n], the
// state, which `first` initialises. skip: the kernel does nothing if it is above 0; or null.
struct TrackOscillations {
  void* weight;
  DType dtype;
  int64_t n;
  Quantizer quantizer;
  const Control* control;
  int16_t* code;
  int8_t* turn;
  float* frequency;
  float* mean;
  const float* skip;
  float momentum, threshold;
  bool first;
};

template <class Isa>
void track_oscillations(const TrackOscillations& args, const OnCpu<Isa>& cpu);
void track_oscillations(const TrackOscillations& args, const OnCuda& cuda);

}  // namespace bitpare
