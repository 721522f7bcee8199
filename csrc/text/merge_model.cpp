#include "text/merge_model.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <bitset>
#include <numeric>
#include <utility>
#include <vector>

#include "core/bytes.h"
#include "core/cpu_features.h"
#include "core/thread_pool.h"

namespace gemmantle {
namespace {

constexpr int32_t kMostMerges = 1 << 24;  // ranks are exact in f32
constexpr size_t kLongestPiece = 255;     // bytes; all splits of all pieces are looked up
constexpr size_t kMostScattered = 1024;   // pieces whose merges do not follow each other
constexpr int32_t kNone = -1;

bool is_continuation(char c) { return (static_cast<unsigned char>(c) & 0xc0) == 0x80; }

bool is_byte_piece(std::string_view piece) {
  const auto is_digit = [](char c) { return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'F'); };
  return piece.size() == 6 && piece.starts_with("<0x") && is_digit(piece[3]) && is_digit(piece[4]) && piece[5] == '>';
}

bool has_one_character(std::string_view piece) {
  return std::all_of(piece.begin() + 1, piece.end(), is_continuation);
}

// FNV-1a: the hash of a prefix goes on to that of the whole.
class Hash {
 public:
  Hash& operator<<(std::string_view text) {
    for (const char c : text) value_ = (value_ ^ static_cast<unsigned char>(c)) * 0x100000001b3;
    return *this;
  }
  uint64_t value() const { return value_ * 0x9e3779b97f4a7c15; }  // its upper bits depend on all

 private:
  uint64_t value_ = 0xcbf29ce484222325;
};

// Id by piece. Gives up on pieces that are made to collide.
class PieceIndex {
 public:
  explicit PieceIndex(std::span<const std::string_view> pieces)
      : pieces_(pieces), slots_(std::bit_ceil(2 * pieces.size() + 1)), shift_(64 - std::countr_zero(slots_.size())) {}

  // False where the piece is there already, or cannot be found fast.
  bool add(int32_t id) {
    const std::string_view piece = pieces_[static_cast<size_t>(id)];
    const uint64_t hash = (Hash() << piece).value();
    for (int probe = 0; probe < kMostProbes; ++probe) {
      Slot& slot = slot_of(hash, probe);
      if (slot.id == kNone) {
        slot = {static_cast<uint32_t>(hash), id};
        return true;
      }
      if (is(slot, hash, piece)) return false;
    }
    return false;
  }

  int32_t find(std::string_view piece, const Hash& of_piece) const {
    const uint64_t hash = of_piece.value();
    for (int probe = 0; probe < kMostProbes; ++probe) {
      const Slot& slot = slot_of(hash, probe);
      if (slot.id == kNone || is(slot, hash, piece)) return slot.id;
    }
    return kNone;
  }

  int32_t find(std::string_view piece) const { return find(piece, Hash() << piece); }

 private:
  static constexpr int kMostProbes = 64;
  struct Slot {
    uint32_t tag = 0;
    int32_t id = kNone;
  };

  Slot& slot_of(uint64_t hash, int probe) {
    return slots_[((hash >> shift_) + static_cast<uint64_t>(probe)) & (slots_.size() - 1)];
  }
  const Slot& slot_of(uint64_t hash, int probe) const { return const_cast<PieceIndex*>(this)->slot_of(hash, probe); }
  bool is(const Slot& slot, uint64_t hash, std::string_view piece) const {
    return slot.tag == static_cast<uint32_t>(hash) && pieces_[static_cast<size_t>(slot.id)] == piece;
  }

  std::span<const std::string_view> pieces_;
  std::vector<Slot> slots_;
  int shift_;
};

// Reads the list of merges and gives each piece that it makes one rank, or finds that ranks of pieces cannot stand for
// the list.
class Ranks {
 public:
  Ranks(std::span<const std::string_view> pieces, std::span<const PieceKind> kinds)
      : pieces_(pieces), kinds_(kinds), index_(pieces), ranks_(pieces.size(), kNone) {}

  bool read(std::span<const std::string_view> merges) {
    for (size_t id = 0; id < pieces_.size(); ++id) {
      if (!is_usable(id) || !index_.add(static_cast<int32_t>(id))) return false;
    }
    return sort_merges(merges) && rank_pieces();
  }

  // A score for SentencePiece, which takes the greatest first.
  float score(size_t id) const { return -static_cast<float>(ranks_[id] == kNone ? kMostMerges : ranks_[id]); }

 private:
  struct Merge {
    int32_t rank;
    int32_t cut;  // bytes of the left side
  };

  // A control piece of one character would come out of text that has it.
  bool is_usable(size_t id) const {
    const std::string_view piece = pieces_[id];
    return !piece.empty() && piece.size() <= kLongestPiece && is_utf8(piece) &&
           (kinds_[id] == PieceKind::byte) == is_byte_piece(piece) &&
           (kinds_[id] == PieceKind::normal || !has_one_character(piece));
  }

  bool is_normal(int32_t id) const { return id != kNone && kinds_[static_cast<size_t>(id)] == PieceKind::normal; }

  // Merges by the piece that they make, those of one piece in their order. False where one makes no normal piece.
  bool sort_merges(std::span<const std::string_view> merges) {
    std::vector<std::pair<int32_t, Merge>> read;
    read.reserve(merges.size());
    ends_.assign(pieces_.size() + 1, 0);
    std::string joined;
    int32_t made = kNone;
    for (const std::string_view merge : merges) {
      const size_t space = merge.find(' ');
      if (space == std::string_view::npos || merge.size() > kLongestPiece + 1) return false;
      joined.assign(merge.substr(0, space)).append(merge.substr(space + 1));
      if (made == kNone || joined != pieces_[static_cast<size_t>(made)]) made = index_.find(joined);
      if (!is_normal(made)) return false;
      read.push_back({made, {static_cast<int32_t>(read.size()), static_cast<int32_t>(space)}});
      ++ends_[static_cast<size_t>(made) + 1];
    }
    // Each end is the begin of the next piece, until the merges have moved it.
    std::partial_sum(ends_.begin(), ends_.end(), ends_.begin());
    merges_.resize(read.size());
    for (const auto& [piece, merge] : read) merges_[ends_[static_cast<size_t>(piece)]++] = merge;
    return true;
  }

  std::span<const Merge> merges_of(size_t id) const {
    const size_t begin = id == 0 ? 0 : ends_[id - 1];
    return std::span(merges_).subspan(begin, ends_[id] - begin);
  }

  bool rank_pieces() {
    if (!have_all_splits()) return false;
    std::vector<size_t> scattered;
    for (size_t id = 0; id < pieces_.size(); ++id) {
      const std::span<const Merge> merges = merges_of(id);
      if (merges.empty()) continue;
      ranks_[id] = merges.front().rank;
      const auto span = static_cast<size_t>(merges.back().rank - merges.front().rank);
      if (span >= merges.size()) scattered.push_back(id);
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

  // The longest part of the work, so all cores take part.
  bool have_all_splits() const {
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
  bool are_all_splits(size_t id, std::span<const Merge> merges) const {
    const std::string_view piece = pieces_[id];
    std::bitset<kLongestPiece + 1> cuts;
    for (const Merge& merge : merges) cuts.set(static_cast<size_t>(merge.cut));
    if (cuts.count() != merges.size()) return false;
    Hash left;
    for (size_t cut = 1; cut < piece.size(); ++cut) {
      left << piece.substr(cut - 1, 1);
      const bool is_split = !is_continuation(piece[cut]) && is_normal(index_.find(piece.substr(0, cut), left)) &&
                            is_normal(index_.find(piece.substr(cut)));
      if (is_split != cuts.test(cut)) return false;
    }
    return !cuts.test(0);
  }

  // Where the two parts meet that are merged last when the text is this piece alone; 0 where it never becomes one.
  size_t last_cut(std::string_view piece) const {
    std::vector<size_t> begins;  // of the parts, and the end
    for (size_t at = 0; at < piece.size(); ++at) {
      if (!is_continuation(piece[at])) begins.push_back(at);
    }
    begins.push_back(piece.size());
    while (begins.size() > 3) {
      size_t best = 0;
      int32_t best_rank = kMostMerges;
      for (size_t part = 1; part + 1 < begins.size(); ++part) {
        const int32_t id = index_.find(piece.substr(begins[part - 1], begins[part + 1] - begins[part - 1]));
        const int32_t rank = is_normal(id) ? ranks_[static_cast<size_t>(id)] : kNone;
        if (rank != kNone && rank < best_rank) {
          best = part;
          best_rank = rank;
        }
      }
      if (best == 0) return 0;
      begins.erase(begins.begin() + static_cast<std::ptrdiff_t>(best));
    }
    return begins[1];
  }

  std::span<const std::string_view> pieces_;
  std::span<const PieceKind> kinds_;
  PieceIndex index_;
  std::vector<Merge> merges_;
  std::vector<size_t> ends_;  // of a piece's merges
  std::vector<int32_t> ranks_;
};

// The wire format of protobuf, as far as sentencepiece_model.proto needs it.
class Message {
 public:
  explicit Message(size_t room = 0) { bytes_.reserve(room); }

  Message& number(uint32_t field, uint64_t value) {
    varint(field << 3);
    varint(value);
    return *this;
  }
  Message& real(uint32_t field, float value) {
    varint(field << 3 | 5);
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof value);
    return *this;
  }
  Message& text(uint32_t field, std::string_view value) {
    varint(field << 3 | 2);
    varint(value.size());
    bytes_.append(value);
    return *this;
  }
  Message& message(uint32_t field, const Message& value) { return text(field, value.bytes_); }

  void clear() { bytes_.clear(); }
  std::string take() { return std::move(bytes_); }

 private:
  void varint(uint64_t value) {
    for (; value >= 0x80; value >>= 7) bytes_.push_back(static_cast<char>(value | 0x80));
    bytes_.push_back(static_cast<char>(value));
  }

  std::string bytes_;
};

}  // namespace

std::optional<std::string> model_of_merges(std::span<const std::string_view> pieces, std::span<const PieceKind> kinds,
                                           std::span<const std::string_view> merges) {
  const auto count = [&](PieceKind kind) { return std::count(kinds.begin(), kinds.end(), kind); };
  if (kinds.size() != pieces.size() || merges.size() > size_t{kMostMerges} || count(PieceKind::unknown) != 1 ||
      count(PieceKind::byte) != 256) {
    return std::nullopt;
  }
  Ranks ranks(pieces, kinds);
  if (!ranks.read(merges)) return std::nullopt;

  size_t bytes = 0;
  for (const std::string_view piece : pieces) bytes += piece.size() + 16;
  Message model(bytes + 128);
  Message part;
  for (size_t id = 0; id < pieces.size(); ++id) {
    part.clear();
    part.text(1, pieces[id]).real(2, ranks.score(id)).number(3, static_cast<uint64_t>(kinds[id]));  // piece, score, type
    model.message(1, part);
  }
  constexpr uint64_t kBpe = 2;
  const auto unknown = std::find(kinds.begin(), kinds.end(), PieceKind::unknown) - kinds.begin();
  part.clear();
  part.number(3, kBpe).number(4, pieces.size());                 // model_type, vocab_size
  part.number(35, 1).number(40, static_cast<uint64_t>(unknown));  // byte_fallback, unk_id
  model.message(2, part);
  part.clear();
  part.text(1, "identity").number(3, 0);  // name, add_dummy_prefix
  part.number(4, 0).number(5, 1);         // remove_extra_whitespaces, escape_whitespaces
  model.message(3, part);
  return model.take();
}

}  // namespace gemmantle
