#include "text/merge_ranks.h"

#include <algorithm>
#include <atomic>
#include <bitset>
#include <numeric>
#include <string>
#include <utility>

#include "core/bytes.h"
#include "core/cpu_features.h"
#include "core/thread_pool.h"

namespace gemmantle {
namespace {

constexpr size_t kLongestPiece = 255;    // bytes; all splits of all pieces are looked up
constexpr size_t kMostScattered = 1024;  // pieces whose merges do not follow each other

bool is_continuation(char c) { return (static_cast<unsigned char>(c) & 0xc0) == 0x80; }

bool has_one_character(std::string_view piece) { return std::all_of(piece.begin() + 1, piece.end(), is_continuation); }

bool is_byte_piece(std::string_view piece) {
  const auto is_digit = [](char c) { return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'F'); };
  return piece.size() == 6 && piece.starts_with("<0x") && is_digit(piece[3]) && is_digit(piece[4]) && piece[5] == '>';
}

// A control piece of one character would come out of text that has it.
bool is_usable(std::string_view piece, PieceKind kind) {
  return !piece.empty() && piece.size() <= kLongestPiece && is_utf8(piece) &&
         (kind == PieceKind::byte) == is_byte_piece(piece) && (kind == PieceKind::normal || !has_one_character(piece));
}

}  // namespace

MergeRanks::MergeRanks(std::span<const std::string_view> pieces, std::span<const PieceKind> kinds)
    : pieces_(pieces), kinds_(kinds), index_(pieces), ranks_(pieces.size(), kMost) {}

bool MergeRanks::read(std::span<const std::string_view> merges) {
  return merges.size() <= size_t{kMost} && index_pieces() && sort_merges(merges) && have_all_splits() && rank_pieces();
}

bool MergeRanks::index_pieces() {
  for (size_t id = 0; id < pieces_.size(); ++id) {
    if (!is_usable(pieces_[id], kinds_[id]) || !index_.add(static_cast<int32_t>(id))) return false;
  }
  return true;
}

// False where a merge makes no normal piece.
bool MergeRanks::sort_merges(std::span<const std::string_view> merges) {
  std::vector<std::pair<int32_t, Merge>> read;
  read.reserve(merges.size());
  ends_.assign(pieces_.size() + 1, 0);
  std::string joined;
  int32_t made = kNoPiece;
  for (const std::string_view merge : merges) {
    const size_t space = merge.find(' ');
    if (space == std::string_view::npos || merge.size() > kLongestPiece + 1) return false;
    joined.assign(merge.substr(0, space)).append(merge.substr(space + 1));
    if (made == kNoPiece || joined != pieces_[static_cast<size_t>(made)]) made = index_.find(joined);
    if (!is_normal(made)) return false;
    read.push_back({made, {static_cast<int32_t>(read.size()), static_cast<int32_t>(space)}});
    ++ends_[static_cast<size_t>(made) + 1];
  }
  // Each end is where the merges of the piece begin, until they have moved it.
  std::partial_sum(ends_.begin(), ends_.end(), ends_.begin());
  merges_.resize(read.size());
  for (const auto& [piece, merge] : read) merges_[ends_[static_cast<size_t>(piece)]++] = merge;
  return true;
}

std::span<const MergeRanks::Merge> MergeRanks::merges_of(size_t id) const {
  const size_t begin = id == 0 ? 0 : ends_[id - 1];
  return std::span(merges_).subspan(begin, ends_[id] - begin);
}

// The longest part of the work, so all cores take part.
bool MergeRanks::have_all_splits() const {
  constexpr size_t kChunk = 4096;
  ThreadPool pool(thread_count(0));
  std::atomic<bool> are_all{true};
  pool.parallel_for(static_cast<int64_t>((pieces_.size() + kChunk - 1) / kChunk), [&](int64_t chunk, int) {
    const size_t begin = static_cast<size_t>(chunk) * kChunk;
    for (size_t id = begin; id < std::min(begin + kChunk, pieces_.size()); ++id) {
      if (kinds_[id] == PieceKind::normal && !are_all_splits(id, merges_of(id))) are_all = false;
    }
  });
  return are_all;
}

// Whether these merges are all the ways to cut a piece into two normal ones.
bool MergeRanks::are_all_splits(size_t id, std::span<const Merge> merges) const {
  const std::string_view piece = pieces_[id];
  std::bitset<kLongestPiece + 1> cuts;
  for (const Merge& merge : merges) cuts.set(static_cast<size_t>(merge.cut));
  if (cuts.count() != merges.size() || cuts.test(0)) return false;
  PieceHash left;
  for (size_t cut = 1; cut < piece.size(); ++cut) {
    left << piece.substr(cut - 1, 1);
    const bool is_split = !is_continuation(piece[cut]) && is_normal(index_.find(piece.substr(0, cut), left)) &&
                          is_normal(index_.find(piece.substr(cut)));
    if (is_split != cuts.test(cut)) return false;
  }
  return !cuts.test(piece.size());
}

bool MergeRanks::rank_pieces() {
  std::vector<size_t> scattered;
  for (size_t id = 0; id < pieces_.size(); ++id) {
    const std::span<const Merge> merges = merges_of(id);
    if (merges.empty()) continue;
    ranks_[id] = merges.front().rank;
    if (static_cast<size_t>(merges.back().rank - merges.front().rank) >= merges.size()) scattered.push_back(id);
  }
  if (scattered.size() > kMostScattered) return false;
  // What a piece is made of is shorter.
  std::stable_sort(scattered.begin(), scattered.end(),
                   [&](size_t a, size_t b) { return pieces_[a].size() < pieces_[b].size(); });
  for (const size_t id : scattered) {
    const size_t cut = last_cut(pieces_[id]);
    for (const Merge& merge : merges_of(id)) {
      if (static_cast<size_t>(merge.cut) == cut) ranks_[id] = merge.rank;
    }
  }
  return true;
}

// Where the two parts meet that are merged last when the text is this piece alone; 0 where it never becomes one.
size_t MergeRanks::last_cut(std::string_view piece) const {
  std::vector<size_t> begins;  // of the parts, and the end
  for (size_t at = 0; at < piece.size(); ++at) {
    if (!is_continuation(piece[at])) begins.push_back(at);
  }
  begins.push_back(piece.size());
  while (begins.size() > 3) {
    size_t best = 0;
    int32_t best_rank = kMost;
    for (size_t part = 1; part + 1 < begins.size(); ++part) {
      const int32_t id = index_.find(piece.substr(begins[part - 1], begins[part + 1] - begins[part - 1]));
      if (id != kNoPiece && ranks_[static_cast<size_t>(id)] < best_rank) {
        best = part;
        best_rank = ranks_[static_cast<size_t>(id)];
      }
    }
    if (best == 0) return 0;
    begins.erase(begins.begin() + static_cast<std::ptrdiff_t>(best));
  }
  return begins[1];
}

bool MergeRanks::is_normal(int32_t id) const {
  return id != kNoPiece && kinds_[static_cast<size_t>(id)] == PieceKind::normal;
}

}  // namespace gemmantle
