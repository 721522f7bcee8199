#include "engine/prefix_tree.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "core/error.h"

namespace gemmantle {
namespace {

// Multiply by an odd constant and fold: every input bit reaches every bit of the result.
uint64_t mix(uint64_t value) {
  value ^= value >> 31;
  value *= 0x9e3779b97f4a7c15u;
  value ^= value >> 29;
  value *= 0xd6e8feb86659fd93u;
  return value ^ (value >> 32);
}

uint64_t hash_of(uint64_t parent, std::span<const int32_t> tokens) {
  uint64_t hash = mix(parent + 1);
  for (const int32_t token : tokens) hash = mix(hash ^ static_cast<uint32_t>(token));
  return hash;
}

}  // namespace

PrefixTree::PrefixTree(int64_t block_size, const std::array<int64_t, kKvGroups>& blocks)
    : block_size_(static_cast<size_t>(block_size)) {
  for (size_t g = 0; g < kKvGroups; ++g) node_of_[g].assign(static_cast<size_t>(blocks[g]), kNone);
  // Nodes with a block are no more than blocks; those that are only held grow the lists like any others.
  size_t nodes = 1;
  for (const int64_t count : blocks) nodes += static_cast<size_t>(count);
  nodes_.reserve(nodes);
  unused_.reserve(nodes);
  tokens_.reserve(nodes * block_size_);
  buckets_.assign(std::bit_ceil(nodes), kNone);
}

int32_t PrefixTree::find(int32_t parent, std::span<const int32_t> tokens) const {
  return find(serial(parent), hash_of(serial(parent), tokens), tokens);
}

int32_t PrefixTree::find(uint64_t parent, uint64_t hash, std::span<const int32_t> tokens) const {
  for (int32_t node = buckets_[hash & (buckets_.size() - 1)]; node != kNone; node = at(node).next) {
    const auto own = tokens_.begin() + static_cast<int64_t>(static_cast<size_t>(node) * block_size_);
    if (at(node).hash == hash && at(node).parent == parent && std::equal(tokens.begin(), tokens.end(), own)) {
      return node;
    }
  }
  return kNone;
}

int32_t PrefixTree::hold(int32_t parent, std::span<const int32_t> tokens) {
  GEMMANTLE_CHECK(tokens.size() == block_size_, tokens.size(), " tokens in a block of ", block_size_);
  const uint64_t before = serial(parent);
  const uint64_t hash = hash_of(before, tokens);
  int32_t node = find(before, hash, tokens);
  if (node == kNone) {
    if (unused_.empty()) {
      unused_.push_back(static_cast<int32_t>(nodes_.size()));
      nodes_.emplace_back();
      tokens_.resize(tokens_.size() + block_size_);
    }
    node = unused_.back();
    unused_.pop_back();
    Node& made = at(node);
    made = {};
    made.serial = ++last_serial_;
    made.parent = before;
    made.hash = hash;
    made.blocks.fill(-1);
    std::copy(tokens.begin(), tokens.end(),
              tokens_.begin() + static_cast<int64_t>(static_cast<size_t>(node) * block_size_));
    made.next = std::exchange(bucket(hash), node);
    ++size_;
  }
  ++at(node).holders;
  return node;
}

void PrefixTree::release(int32_t node) {
  GEMMANTLE_CHECK(at(node).holders > 0, "node ", node);
  --at(node).holders;
  drop_if_unused(node);
}

void PrefixTree::store(int32_t node, int group, int32_t block) {
  const auto g = static_cast<size_t>(group);
  GEMMANTLE_CHECK(at(node).blocks[g] < 0 && node_of_[g][static_cast<size_t>(block)] == kNone, "block ", block);
  at(node).blocks[g] = block;
  node_of_[g][static_cast<size_t>(block)] = node;
}

void PrefixTree::forget(int group, int32_t block) {
  int32_t& node = node_of_[static_cast<size_t>(group)][static_cast<size_t>(block)];
  if (node == kNone) return;
  at(node).blocks[static_cast<size_t>(group)] = -1;
  drop_if_unused(node);
  node = kNone;
}

void PrefixTree::drop_if_unused(int32_t node) {
  Node& entry = at(node);
  if (entry.holders > 0 || std::any_of(entry.blocks.begin(), entry.blocks.end(), [](int32_t b) { return b >= 0; })) {
    return;
  }
  int32_t* link = &bucket(entry.hash);
  while (*link != node) link = &at(*link).next;
  *link = entry.next;
  --size_;
  entry.serial = 0;
  unused_.push_back(node);
}

}  // namespace gemmantle
