// Processes several arrays in one launch: their descriptions are a parameter of the kernel.
#pragma once
#include "kernels/cuda/blocks.h"

namespace bitpare {
namespace {

// A kernel's parameters hold 4 KB, of which some are left for other arguments.
template <class Item>
struct Batch {
  static constexpr int64_t kMost = 3968 / sizeof(Item);
  static_assert(kMost <= kThreads);
  Item items[kMost];
  int32_t size;
};

// The item that the block belongs to: items have `first_block`, in ascending order.
template <class Item>
BITPARE_INLINE const Item& item_of(const Batch<Item>& batch, int32_t block) {
  int32_t low = 0, high = batch.size;
  while (high - low > 1) {
    int32_t middle = (low + high) / 2;
    if (batch.items[middle].first_block <= block) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return batch.items[low];
}

// f(batch, blocks) for as many of the items that `takes` as fit; blocks_of(item) each.
template <class Item, class BlocksOf, class Takes, class F>
void for_each_batch(const Item* items, int64_t size, BlocksOf blocks_of, Takes takes, F f) {
  Batch<Item> batch = {};
  int64_t blocks = 0;
  auto flush = [&] {
    if (batch.size > 0) f(batch, blocks);
    blocks = batch.size = 0;
  };
  for (int64_t i = 0; i < size; ++i) {
    if (!takes(items[i])) continue;
    if (batch.size == Batch<Item>::kMost) flush();
    Item& item = batch.items[batch.size++] = items[i];
    item.first_block = static_cast<int32_t>(blocks);
    blocks += blocks_of(item);
  }
  flush();
}

// f(batch, blocks, T*) for the items of each type T.
template <class Item, class BlocksOf, class F>
void for_each_batch(const Item* items, int64_t size, BlocksOf blocks_of, F f) {
  for (DType dtype : {DType::float32, DType::float16, DType::bfloat16}) {
    for_each_batch(
        items, size, blocks_of, [=](const Item& item) { return item.dtype == dtype; },
        [&](const Batch<Item>& batch, int64_t blocks) {
          with_type(dtype, [&](auto* type) { f(batch, blocks, type); });
        });
  }
}

}  // namespace
}  // namespace bitpare
