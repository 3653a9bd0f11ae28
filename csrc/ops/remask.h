// remask_ without the dispatcher, for tensors that are plain and that no graph has saved.
#pragma once
#include <ATen/ATen.h>

namespace bitpare::ops {

void remask(at::TensorList tensors, at::TensorList masks);

}  // namespace bitpare::ops
