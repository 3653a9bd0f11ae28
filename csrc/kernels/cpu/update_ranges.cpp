#include "kernels/update_ranges.h"

#include "kernels/cpu/blocks.h"

namespace bitpare {
namespace {

// How many quantizers make a fair share of work for a thread: most have one scale.
constexpr int64_t kQuantizers = 512;

}  // namespace

// Each core takes one quantizer after another: it reads all its pending ranges before it updates
// any.
template <>
void update_ranges(const UpdateRanges& args, const OnCpu<BITPARE_ISA>& cpu) {
  parallel(cpu.parallel_for, args.size, kQuantizers, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const QuantizerState& s = args.states[i];
      bool any = false, broken = false;
      for (int64_t j = 0; j < s.n; ++j) {
        math::Pending p = math::pending_of(s.pending[j], s.pending[s.n + j]);
        any |= p == math::Pending::range;
        broken |= p == math::Pending::broken;
      }
      int64_t merges = s.count[0];
      bool merge = any && !broken;
      for (int64_t j = 0; j < s.n; ++j) math::update_scale(s, args.rule, j, merge, merges);
      s.count[0] += merge;
      s.count[1] += broken;
    }
  });
}

}  // namespace bitpare
