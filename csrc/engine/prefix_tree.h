// prefix_tree.h: which runs of tokens have their K and V in which blocks.
//
// A node stands for one full block of tokens behind a chain of others. It is found by a hash over the tokens and the
// serial number of the node before it, and believed only when both are equal: serial numbers are never used again, so
// a hit is the same tokens from position 0 on, never a look-alike. A node lives while a sequence holds it or a block of
// either group has its K and V. Numbers only; who holds which block is block_pool.h's. Used by the engine's worker.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "backend/batch.h"

namespace gemmantle {

class Sequence;

class PrefixTree {
 public:
  static constexpr int32_t kNone = -1;  // as a parent: the tokens stand at position 0

  PrefixTree(int64_t block_size, const std::array<int64_t, kKvGroups>& blocks);

  // `tokens`: block_size of them.
  int32_t find(int32_t parent, std::span<const int32_t> tokens) const;  // kNone where there is no such node
  int32_t hold(int32_t parent, std::span<const int32_t> tokens);        // finds or makes it; held once more
  void release(int32_t node);

  int32_t block(int32_t node, int group) const { return at(node).blocks[static_cast<size_t>(group)]; }
  void store(int32_t node, int group, int32_t block);  // where it has none
  void forget(int group, int32_t block);               // it gets other contents

  // Who is computing the block of a node, so that others may wait for it. Null: nobody.
  const Sequence* computer(int32_t node) const { return at(node).computer; }
  void set_computer(int32_t node, const Sequence* sequence) { at(node).computer = sequence; }

  uint64_t serial(int32_t node) const { return node == kNone ? 0 : at(node).serial; }
  bool is_alive(int32_t node, uint64_t serial) const { return node != kNone && at(node).serial == serial; }
  int64_t size() const { return size_; }

 private:
  struct Node {
    uint64_t serial = 0;  // 0: not in use
    uint64_t parent = 0;  // its serial number
    uint64_t hash = 0;
    int32_t next = kNone;  // in the chain of its bucket
    int32_t holders = 0;
    std::array<int32_t, kKvGroups> blocks{};
    const Sequence* computer = nullptr;
  };

  Node& at(int32_t node) { return nodes_[static_cast<size_t>(node)]; }
  const Node& at(int32_t node) const { return nodes_[static_cast<size_t>(node)]; }
  int32_t find(uint64_t parent, uint64_t hash, std::span<const int32_t> tokens) const;
  void drop_if_unused(int32_t node);
  int32_t& bucket(uint64_t hash) { return buckets_[hash & (buckets_.size() - 1)]; }

  size_t block_size_;
  std::vector<Node> nodes_;
  std::vector<int32_t> tokens_;   // [nodes, block_size]
  std::vector<int32_t> unused_;   // entries of nodes_
  std::vector<int32_t> buckets_;  // first node of each chain; a power of two
  int64_t size_ = 0;
  std::array<std::vector<int32_t>, kKvGroups> node_of_;  // [blocks]
  uint64_t last_serial_ = 0;
};

}  // namespace gemmantle
