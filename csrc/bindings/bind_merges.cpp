// bind_merges.cpp: the words of a GGUF file with merges, straight from the map: no Python object for each merge.
#include <bitset>
#include <functional>
#include <set>

#include "bindings/convert.h"
#include "bindings/models.h"
#include "checkpoint/gguf.h"
#include "core/bytes.h"
#include "text/merge_model.h"

namespace gemmantle::bindings {
namespace {

constexpr std::string_view kSpace = "\u2581";  // how a space is written in pieces

bool holds(const GgufMetadata& metadata, std::string_view key, GgufType element) {
  const GgufMetadata::Entry* entry = metadata.find(key);
  return entry != nullptr && entry->type == GgufType::array && entry->element == element;
}

std::vector<std::string_view> strings(const GgufMetadata& metadata, std::string_view key) {
  const GgufStrings found = metadata.get_strings(key);
  std::vector<std::string_view> out;
  out.reserve(found.size());
  for (const std::string_view text : found) out.push_back(text);
  return out;
}

// Files disagree on types: control strings are known by their spelling, too, and so is the unknown piece.
std::vector<PieceKind> kinds_of(const std::vector<std::string_view>& pieces, const GgufMetadata::Entry& types,
                                const std::set<std::string, std::less<>>& control) {
  std::vector<PieceKind> kinds(pieces.size(), PieceKind::normal);
  std::bitset<256> begins;  // first bytes of control strings: few pieces have one
  for (const std::string& spelling : control) {
    if (!spelling.empty()) begins.set(static_cast<unsigned char>(spelling.front()));
  }
  std::optional<size_t> unknown;
  bool has_unknown = false;
  for (size_t id = 0; id < pieces.size(); ++id) {
    const auto type = load<int32_t>(types.bytes.data() + id * sizeof(int32_t));
    for (const PieceKind kind : {PieceKind::byte, PieceKind::control, PieceKind::unknown}) {
      if (type == static_cast<int32_t>(kind)) kinds[id] = kind;
    }
    has_unknown = has_unknown || kinds[id] == PieceKind::unknown;
    if (pieces[id].empty() || !begins.test(static_cast<unsigned char>(pieces[id].front()))) continue;
    if (kinds[id] != PieceKind::unknown && control.contains(pieces[id])) kinds[id] = PieceKind::control;
    if (pieces[id] == "<unk>") unknown = id;
  }
  if (!has_unknown && unknown) kinds[*unknown] = PieceKind::unknown;
  return kinds;
}

py::bytes bytes_of(std::string_view piece, PieceKind kind) {
  if (kind == PieceKind::byte) {
    const char byte = static_cast<char>(std::stoi(std::string(piece.substr(3, 2)), nullptr, 16));
    return to_bytes({&byte, 1});
  }
  size_t space = piece.find(kSpace);
  if (space == std::string_view::npos) return to_bytes(piece);
  std::string out;
  size_t begin = 0;
  for (; space != std::string_view::npos; space = piece.find(kSpace, begin)) {
    out.append(piece.substr(begin, space - begin)).push_back(' ');
    begin = space + kSpace.size();
  }
  out.append(piece.substr(begin));
  return to_bytes(out);
}

py::object model_of_merges(const PyCheckpoint& checkpoint, const std::set<std::string, std::less<>>& control_strings) {
  const GgufMetadata& metadata = checkpoint.files->metadata();
  constexpr std::string_view kTokens = "tokenizer.ggml.tokens", kMerges = "tokenizer.ggml.merges",
                             kTypes = "tokenizer.ggml.token_type";
  if (!holds(metadata, kTokens, GgufType::string) || !holds(metadata, kMerges, GgufType::string) ||
      !holds(metadata, kTypes, GgufType::i32) || metadata.find(kMerges)->count == 0) {
    return py::none();
  }
  const std::vector<std::string_view> pieces = strings(metadata, kTokens);
  const GgufMetadata::Entry& types = *metadata.find(kTypes);
  if (types.count != pieces.size()) return py::none();

  std::vector<PieceKind> kinds;
  std::optional<std::string> model;
  {
    const py::gil_scoped_release unlocked;
    kinds = kinds_of(pieces, types, control_strings);
    model = gemmantle::model_of_merges(pieces, kinds, strings(metadata, kMerges));
  }
  if (!model) return py::none();
  py::list table(pieces.size());
  py::list control;
  for (size_t id = 0; id < pieces.size(); ++id) {
    table[id] = bytes_of(pieces[id], kinds[id]);
    if (kinds[id] == PieceKind::control || kinds[id] == PieceKind::unknown) control.append(id);
  }
  return py::make_tuple(to_bytes(*model), table, control);
}

}  // namespace

void bind_merges(py::module_& m) {
  m.def("model_of_merges", &model_of_merges, py::arg("checkpoint"), py::arg("control"),
        "The words of a GGUF file with merges as (serialised SentencePiece model, exact bytes of every id, control "
        "ids).\n\n"
        "control: spellings that are control strings whatever their type says. None where the file has no merges, or\n"
        "where SentencePiece could encode some text in another way than the merges.");
}

}  // namespace gemmantle::bindings
