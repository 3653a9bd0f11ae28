#include "ops/remask.h"

#include <ATen/MemoryOverlap.h>

#include "kernels/remask.h"
#include "ops/control.h"
#include "ops/mask.h"

namespace bitpare::ops {
namespace {

using at::TensorList;

constexpr const char* kOp = "remask_";

void check(TensorList tensors, TensorList masks) {
  TORCH_CHECK(tensors.size() == masks.size(), kOp, ": masks must be ", tensors.size(),
              ", one for each tensor, got ", masks.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    const Tensor& t = tensors[i];
    int64_t bytes = t.element_size();
    TORCH_CHECK(t.layout() == at::kStrided && bytes <= 8 && !t.is_complex(), kOp, ": tensors[", i,
                "] must be dense, with elements of 1, 2, 4 or 8 bytes, got ", t.scalar_type());
    TORCH_CHECK(t.device() == tensors[0].device(), kOp, ": tensors must be on one device, got ",
                tensors[0].device(), " and ", t.device());
    at::assert_no_internal_overlap(t);
    check_mask(kOp, masks[i], t.sym_numel());
  }
}

template <class Device>
void body(TensorList tensors, TensorList masks) {
  check(tensors, masks);
  if (tensors.empty()) return;
  Device::require(kOp, tensors[0]);
  std::vector<Tensor> words, copies(tensors.size());
  std::vector<Masked> items;
  for (size_t i = 0; i < tensors.size(); ++i) {
    auto format = tensors[i].suggest_memory_format();
    bool dense = tensors[i].is_contiguous(format);
    if (!dense) copies[i] = tensors[i].contiguous();
    const Tensor& t = dense ? tensors[i] : copies[i];
    words.push_back(masks[i].contiguous());
    items.push_back({
        .x = t.data_ptr(),
        .mask = static_cast<const uint64_t*>(words[i].const_data_ptr()),
        .layout = mask_layout(t, dense ? format : at::MemoryFormat::Contiguous),
        .n = t.numel(),
        .bytes = static_cast<int32_t>(t.element_size()),
        .first_block = 0,
    });
  }
  Remask args = {items.data(), static_cast<int64_t>(items.size())};
  Device::run(tensors[0], [&](const auto& where) { bitpare::remask(args, where); });
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (copies[i].defined()) tensors[i].copy_(copies[i]);
  }
}

void note_written(TensorList tensors, TensorList) {
  for (const Tensor& t : tensors) bump_version(t);
}

}  // namespace

void remask(TensorList tensors, TensorList masks) {
  if (tensors.empty()) return;
  TORCH_CHECK(tensors[0].is_cpu() || tensors[0].is_cuda(), kOp,
              ": tensors must be on a CPU or on CUDA, got ", tensors[0].device());
  return tensors[0].is_cpu() ? body<Cpu>(tensors, masks) : body<Cuda>(tensors, masks);
}

TORCH_LIBRARY_FRAGMENT(bitpare, m) {
  m.def("remask_(Tensor(a!)[] tensors, Tensor[] masks) -> ()", tags());
  kernels(m, "remask_", body<Cpu>, body<Cuda>, check);
  no_gradient(m, "remask_");
  writes<check, note_written>(m, "remask_");
}

}  // namespace bitpare::ops
