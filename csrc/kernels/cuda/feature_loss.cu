#include "kernels/cuda/reduce.h"
#include "kernels/feature_loss.h"

namespace bitpare {
namespace {

// incoming is in device memory, so each thread reads it.
BITPARE_INLINE float scale_on_device(const FeatureLoss& args) {
  return math::feature_factor(args) * (args.incoming ? args.incoming[0] : 1.0f);
}

template <FeatureKind kKind>
struct Elements {
  FeatureLoss args;

  __device__ float operator()(const Lane&, float* terms, const float* x) const {
    float slope;
    terms[0] = math::element_apart<kKind>(x[0], x[1], &slope);
    return slope * scale_on_device(args);
  }
};

struct Lengths {
  __device__ float operator()(const Lane&, float* terms, const float* x) const {
    math::unit_terms(x[0], x[1], terms);
    return x[0];
  }
};

struct Units {
  FeatureLoss args;

  __device__ float operator()(const Lane& lane, float* terms, const float* x) const {
    FeatureRow row = args.units[lane.channel];
    float slope;
    terms[0] = math::unit_apart(x[0], x[1], row.student, row.teacher, row.cosine, &slope);
    return slope * scale_on_device(args);
  }
};

struct Itself {
  __device__ float operator()(const Lane&, float* terms, const float* x) const {
    terms[0] = x[0];
    return x[0];
  }
};

struct KeepRow {
  FeatureRow* units;
  __device__ void operator()(int64_t row, const float* sums) const {
    units[row] = math::feature_row(sums);
  }
};

struct KeepSum {
  float* sums_of_rows;
  __device__ void operator()(int64_t row, const float* sums) const { sums_of_rows[row] = sums[0]; }
};

struct KeepLoss {
  FeatureLoss args;
  __device__ void operator()(int64_t, const float* sums) const {
    args.loss[0] = sums[0] * math::feature_factor(args);
  }
};

template <FeatureKind kKind, class T>
void by_elements(const FeatureLoss& args, const OnCuda& cuda) {
  reduce<math::Sum, 1>(cuda, Quantizer(), layout::feature_rows(args.kind, args.rows, args.n),
                       args.partial, KeepLoss{args}, Elements<kKind>{args},
                       static_cast<T*>(args.gradient), static_cast<const T*>(args.student),
                       static_cast<const T*>(args.teacher));
}

template <class T>
void by_rows(const FeatureLoss& args, const OnCuda& cuda) {
  ReduceLayout rows = layout::feature_rows(args.kind, args.rows, args.n);
  const T* student = static_cast<const T*>(args.student);
  const T* teacher = static_cast<const T*>(args.teacher);
  reduce<math::Sum, math::kUnitTerms>(cuda, Quantizer(), rows, args.partial, KeepRow{args.units},
                                      Lengths{}, static_cast<T*>(nullptr), student, teacher);
  reduce<math::Sum, 1>(cuda, Quantizer(), rows, args.partial, KeepSum{args.sums}, Units{args},
                       static_cast<T*>(args.gradient), student, teacher);
  reduce<math::Sum, 1>(cuda, Quantizer(), ReduceLayout{1, 1, args.rows}, args.partial,
                       KeepLoss{args}, Itself{}, static_cast<float*>(nullptr),
                       static_cast<const float*>(args.sums));
}

}  // namespace

void feature_loss(const FeatureLoss& args, const OnCuda& cuda) {
  with_type(args.dtype, [&]<class T>(T*) {
    if (args.kind == FeatureKind::mse) return by_elements<FeatureKind::mse, T>(args, cuda);
    if (args.kind == FeatureKind::l1) return by_elements<FeatureKind::l1, T>(args, cuda);
    by_rows<T>(args, cuda);
  });
}

}  // namespace bitpare
