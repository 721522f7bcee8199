// batch.h: the words that graph, engine and backends share about one step.
//
// One step is one flat batch of token rows: prompt chunks, decode rows and mixtures of them are the same call. All are
// views; whoever fills a Batch keeps the arrays alive until the step has ended.
//
// A row of padding, for backends that ask for some (Backend::padded_rows), has id -1 and slot -1 and sees no position:
// it is zeros from the embedding to the logits, and writes no K and V.
#pragma once

#include <cstdint>
#include <span>

#include "core/tensor.h"

namespace gemmantle {

enum KvGroup : int { kSliding = 0, kFull = 1 };
inline constexpr int kKvGroups = 2;

struct Batch {
  std::span<const int32_t> ids;        // [rows]
  std::span<const int32_t> positions;  // [rows]
  std::span<const int32_t> sequence;   // [rows] which sequence of the step a row belongs to

  struct Group {
    std::span<const int32_t> slots;        // [rows] where this row's K and V are written: block * block_size + offset
    std::span<const int32_t> block_table;  // [sequences, max_blocks] block of each logical block; -1 where given back
    int64_t max_blocks = 0;
    std::span<const int32_t> kv_begin;  // [rows] first position this row may look at
    std::span<const int32_t> kv_end;    // [rows] one past the last
  } groups[kKvGroups];

  std::span<const int32_t> logit_rows;  // rows whose logits are wanted, ascending

  int64_t rows() const { return static_cast<int64_t>(ids.size()); }
};

// Query heads share KV heads in contiguous groups: head j reads KV head j / (query / kv).
struct HeadLayout {
  int query = 0;
  int kv = 0;
  int dim = 0;

  int64_t q_dim() const { return int64_t{query} * dim; }
  int64_t kv_dim() const { return int64_t{kv} * dim; }
};

// Half-split rotation: column i of a head pairs with i + dim / 2; `freq` holds dim / 2 radians a position, zero for
// pairs that do not turn. architecture 2.5.
struct Rope {
  const float* freq = nullptr;
};

// The K and V of one layer: matrices [blocks * block_size, kv heads * head dim], one row a slot. How other types than
// f32 lie there is the backend's matter (Backend::kv_bytes).
struct KvView {
  Tensor k;
  Tensor v;
  int64_t block_size = 0;
  int heads = 1;  // KV heads of a row
};

}  // namespace gemmantle
