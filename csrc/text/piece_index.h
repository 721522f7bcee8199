// piece_index.h: the id of a piece by its bytes, and of each of its prefixes on the way.
//
// A table for a vocabulary that a file brings: the pieces stay where they are. It refuses pieces that are there twice
// and gives up on those that are made to collide, so that no file can make it slow.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace gemmantle {

constexpr int32_t kNoPiece = -1;

// FNV-1a: the hash of a prefix goes on to that of the whole.
class PieceHash {
 public:
  PieceHash& operator<<(std::string_view text) {
    for (const char c : text) value_ = (value_ ^ static_cast<unsigned char>(c)) * 0x100000001b3;
    return *this;
  }
  uint64_t value() const { return value_ * 0x9e3779b97f4a7c15; }  // its upper bits depend on all

 private:
  uint64_t value_ = 0xcbf29ce484222325;
};

class PieceIndex {
 public:
  explicit PieceIndex(std::span<const std::string_view> pieces)
      : pieces_(pieces), slots_(std::bit_ceil(2 * pieces.size() + 1)), shift_(64 - std::countr_zero(slots_.size())) {}

  // False where the piece is there already or could not be found fast.
  bool add(int32_t id) {
    const std::string_view piece = pieces_[static_cast<size_t>(id)];
    const uint64_t hash = (PieceHash() << piece).value();
    for (uint64_t probe = 0; probe < kMostProbes; ++probe) {
      Slot& slot = slots_[place(hash, probe)];
      if (slot.id == kNoPiece) {
        slot = {static_cast<uint32_t>(hash), id};
        return true;
      }
      if (is(slot, hash, piece)) return false;
    }
    return false;
  }

  int32_t find(std::string_view piece, const PieceHash& of_piece) const {
    const uint64_t hash = of_piece.value();
    for (uint64_t probe = 0; probe < kMostProbes; ++probe) {
      const Slot& slot = slots_[place(hash, probe)];
      if (slot.id == kNoPiece || is(slot, hash, piece)) return slot.id;
    }
    return kNoPiece;
  }

  int32_t find(std::string_view piece) const { return find(piece, PieceHash() << piece); }

 private:
  static constexpr uint64_t kMostProbes = 64;
  struct Slot {
    uint32_t tag = 0;
    int32_t id = kNoPiece;
  };

  size_t place(uint64_t hash, uint64_t probe) const { return ((hash >> shift_) + probe) & (slots_.size() - 1); }
  bool is(const Slot& slot, uint64_t hash, std::string_view piece) const {
    return slot.tag == static_cast<uint32_t>(hash) && pieces_[static_cast<size_t>(slot.id)] == piece;
  }

  std::span<const std::string_view> pieces_;
  std::vector<Slot> slots_;
  int shift_;
};

}  // namespace gemmantle
