// merge_ranks.h: one rank for each piece of a vocabulary instead of one for each merge, where that says the same.
//
// It does where the list has every split of every piece into two pieces (docs/decisions/0023).
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "text/merge_model.h"
#include "text/piece_index.h"

namespace gemmantle {

class MergeRanks {
 public:
  static constexpr int32_t kMost = 1 << 24;  // ranks are exact in f32

  // Pieces and kinds as in merge_model.h; they must outlive this.
  MergeRanks(std::span<const std::string_view> pieces, std::span<const PieceKind> kinds);

  // False where ranks of pieces cannot stand for this list.
  bool read(std::span<const std::string_view> merges);

  // The less, the sooner; kMost for a piece that no merge makes.
  int32_t rank(size_t id) const { return ranks_[id]; }

 private:
  struct Merge {
    int32_t rank;
    int32_t cut;  // bytes of the left side
  };

  bool index_pieces();
  bool sort_merges(std::span<const std::string_view> merges);
  std::span<const Merge> merges_of(size_t id) const;
  bool have_all_splits() const;
  bool are_all_splits(size_t id, std::span<const Merge> merges) const;
  bool rank_pieces();
  size_t last_cut(std::string_view piece) const;
  bool is_normal(int32_t id) const;

  std::span<const std::string_view> pieces_;
  std::span<const PieceKind> kinds_;
  PieceIndex index_;
  std::vector<Merge> merges_;  // by the piece that they make, those of one piece in their order
  std::vector<size_t> ends_;   // of a piece's merges
  std::vector<int32_t> ranks_;
};

}  // namespace gemmantle
