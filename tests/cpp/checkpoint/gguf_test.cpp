#include "checkpoint/gguf.h"

#include <gtest/gtest.h>

#include <random>

#include "checkpoint/file_builder.h"

namespace gemmantle {
namespace {

using namespace testing_files;

GgufFile parse(const std::string& file) { return parse_gguf(as_bytes(file), "x.gguf"); }

void expect_corrupt(const std::string& file, const std::vector<std::string>& parts) {
  expect_refused([&] { parse(file); }, ErrorCode::corrupt_file, parts);
}

void expect_unsupported(const std::string& file, const std::vector<std::string>& parts) {
  expect_refused([&] { parse(file); }, ErrorCode::unsupported, parts);
}

Gguf small_file() {
  Gguf file;
  file.key("general.architecture", GgufType::string, Gguf::text("gemma3"))
      .key("u8", GgufType::u8, raw<uint8_t>(200))
      .key("i16", GgufType::i16, raw<int16_t>(-5))
      .key("u64", GgufType::u64, raw<uint64_t>(~0ull))
      .key("eps", GgufType::f32, raw(0.5f))
      .key("f64", GgufType::f64, raw(1e300))
      .key("yes", GgufType::boolean, "\1")
      .array("tokens", GgufType::string, 3, Gguf::text("a") + Gguf::text("") + Gguf::text("\xff bytes"))
      .array("scores", GgufType::f32, 2, raw(-1.0f) + raw(2.0f))
      .array("types", GgufType::i32, 2, raw<int32_t>(3) + raw<int32_t>(-1))
      .array("pattern", GgufType::boolean, 2, std::string("\1\0", 2))
      .tensor("q", {32, 2}, 8, 0)            // Q8_0: 68 bytes
      .tensor("norm", {4}, 0, 96)            // F32: 16 bytes
      .tensor("other", {256}, 10, 112 + 16)  // Q2_K
      .data(160);
  return file;
}

// Touches everything a reader can ask for.
void read_all(const GgufFile& file) {
  for (const auto& entry : file.metadata.entries()) {
    if (entry.type != GgufType::array) continue;
    if (entry.element == GgufType::string) {
      uint64_t count = 0;
      for (const std::string_view text : file.metadata.get_strings(entry.key))
        count += text.size() < ~size_t{0} ? 1 : 0;
      EXPECT_EQ(count, entry.count);
    }
  }
  for (const StoredTensor& tensor : file.directory.tensors) {
    std::vector<float> values(static_cast<size_t>(tensor.elements()));
    const int64_t cols = tensor.shape.empty() ? 1 : tensor.shape.back();
    if (cols > 0) read_rows(tensor, 0, tensor.elements() / cols, values.data());
  }
}

TEST(Gguf, metadata_of_every_type_is_read) {
  const std::string bytes = small_file().str();
  const GgufFile file = parse(bytes);
  const GgufMetadata& metadata = file.metadata;
  EXPECT_EQ(metadata.entries().size(), 11u);
  EXPECT_EQ(metadata.entries()[0].key, "general.architecture");
  EXPECT_EQ(metadata.get_string("general.architecture"), "gemma3");
  EXPECT_EQ(metadata.get_u64("u8"), 200u);
  EXPECT_EQ(metadata.get_i64("i16"), -5);
  EXPECT_EQ(metadata.get_u64("u64"), ~uint64_t{0});
  EXPECT_EQ(metadata.get_f64("eps"), 0.5);
  EXPECT_EQ(metadata.get_f64("f64"), 1e300);
  EXPECT_EQ(metadata.get_f64("u8"), 200.0);
  EXPECT_TRUE(metadata.get_bool("yes"));
  EXPECT_EQ(metadata.get_u64("absent", 7), 7u);
  EXPECT_TRUE(metadata.is_array("tokens"));
  const GgufStrings tokens = metadata.get_strings("tokens");
  EXPECT_EQ(std::vector<std::string>(tokens.begin(), tokens.end()), (std::vector<std::string>{"a", "", "\xff bytes"}));
  EXPECT_EQ(metadata.get_f32s("scores"), (std::vector<float>{-1, 2}));
  EXPECT_EQ(metadata.get_i64s("types"), (std::vector<int64_t>{3, -1}));
  EXPECT_EQ(metadata.get_i64s("pattern"), (std::vector<int64_t>{1, 0}));
}

TEST(Gguf, tensors_are_outermost_first_and_other_types_are_listed_as_unreadable) {
  const std::string bytes = small_file().str();
  const GgufFile file = parse(bytes);
  ASSERT_EQ(file.directory.tensors.size(), 2u);
  EXPECT_EQ(file.directory.tensors[0].name, "q");
  EXPECT_EQ(file.directory.tensors[0].shape, (std::vector<int64_t>{2, 32}));
  EXPECT_EQ(file.directory.tensors[0].bytes.size(), 68u);
  EXPECT_EQ(file.directory.tensors[1].name, "norm");
  EXPECT_EQ(file.directory.unreadable.at("other").substr(0, 17), "its type is Q2_K;");
  read_all(file);
}

TEST(Gguf, a_wrong_question_names_key_found_and_wanted) {
  const std::string bytes = small_file().str();
  const GgufFile file = parse(bytes);
  const GgufMetadata& metadata = file.metadata;
  const auto corrupt = ErrorCode::corrupt_file;
  expect_refused([&] { metadata.get_u64("gone"); }, corrupt, {"'x.gguf' has no metadata key 'gone'"});
  expect_refused([&] { metadata.get_u64("eps"); }, corrupt, {"'eps' of type f32; a whole number"});
  expect_refused([&] { metadata.get_u64("i16"); }, corrupt, {"has -5 under metadata key 'i16'"});
  expect_refused([&] { metadata.get_i64("u64"); }, corrupt, {"18446744073709551615", "below 2^63"});
  expect_refused([&] { metadata.get_string("tokens"); }, corrupt, {"'tokens' of type array of string; a string"});
  expect_refused([&] { metadata.get_strings("scores"); }, corrupt, {"an array of strings is needed"});
  expect_refused([&] { metadata.get_i64s("scores"); }, corrupt, {"an array of whole numbers"});
  expect_refused([&] { metadata.get_f32s("tokens"); }, corrupt, {"an array of numbers"});
  expect_refused([&] { metadata.get_bool("u8"); }, corrupt, {"true or false"});
  expect_refused([&] { metadata.get_u64("types"); }, corrupt, {"type array of i32"});
}

TEST(Gguf, other_containers_versions_and_parts_are_refused_in_words) {
  expect_corrupt("GGML0000", {"does not begin with 'GGUF'"});
  Gguf old;
  old.version = 1;
  expect_unsupported(old.str(), {"is GGUF version 1; versions 2 and 3 are read"});
  Gguf big;
  big.version = 0x03000000;
  expect_unsupported(big.str(), {"big-endian", "little-endian one is needed"});
  Gguf part;
  part.key("split.no", GgufType::u16, raw<uint16_t>(1)).key("split.count", GgufType::u16, raw<uint16_t>(4));
  expect_unsupported(part.str(), {"is part 2 of 4", "merge the parts"});
  Gguf nested;
  nested.array("deep", GgufType::array, 1, Gguf::type(GgufType::u8) + raw<uint64_t>(0));
  expect_unsupported(nested.str(), {"array of arrays under metadata key 'deep'"});
  Gguf second;
  second.version = 2;
  EXPECT_NO_THROW(parse(second.str()));
}

TEST(Gguf, absurd_counts_and_lengths_are_refused_before_anything_is_allocated) {
  constexpr uint64_t kHuge[] = {~0ull, 1ull << 63, 1ull << 40, 1 << 20};
  for (const uint64_t huge : kHuge) {
    Gguf keys;
    keys.key_count = huge;
    expect_corrupt(keys.str(), {"claims " + std::to_string(huge) + " metadata keys"});
    Gguf tensors;
    tensors.tensor_count = huge;
    expect_corrupt(tensors.str(), {"claims " + std::to_string(huge) + " tensors"});
    Gguf array;
    array.array("a", GgufType::u64, huge, raw<uint64_t>(1));
    expect_corrupt(array.str(), {"claims " + std::to_string(huge) + " values in metadata array 'a'"});
    Gguf strings;
    strings.array("a", GgufType::string, huge, "");
    expect_corrupt(strings.str(), {"claims " + std::to_string(huge)});
    Gguf text;
    text.key("a", GgufType::string, raw(huge));
    expect_corrupt(text.str(), {"ends inside a metadata string", std::to_string(huge) + " more"});
    Gguf shape;
    shape.tensor("t", {huge, huge, huge}, 0, 0);
    expect_corrupt(shape.str(), {"'x.gguf': tensor 't' "});
    Gguf offset;
    offset.tensor("t", {32}, 0, huge / 32 * 32).data(128);
    expect_corrupt(offset.str(), {"tensor 't' needs 128 bytes at data byte"});
  }
  expect_corrupt(
      "GGUF" + raw<uint32_t>(3) + raw<uint64_t>(0) + raw<uint64_t>(1) + raw<uint64_t>(~0ull) + std::string(64, 'k'),
      {"has a metadata key of 18446744073709551615 bytes", "at most 4096"});
}

TEST(Gguf, what_does_not_fit_is_refused_naming_tensor_found_and_wanted) {
  expect_corrupt(Gguf().tensor("t", {1, 1, 1, 1, 1}, 0, 0).data(4).str(), {"'t' has 5 dimensions; at most 4"});
  expect_corrupt(Gguf().tensor("t", {33}, 8, 0).data(64).str(),
                 {"'t' has rows of 33 values; Q8_0 needs a multiple of 32"});
  expect_corrupt(Gguf().tensor("t", {16, 16}, 12, 0).data(144).str(),
                 {"rows of 16 values; Q4_K needs a multiple of 256"});
  expect_corrupt(Gguf().tensor("t", {8}, 0, 0).data(31).str(),
                 {"needs 32 bytes at data byte 0", "holds 31 bytes", "cut short"});
  expect_corrupt(Gguf().tensor("t", {8}, 0, 4).data(64).str(),
                 {"begins at data byte 4; a multiple of the alignment 32"});
  expect_corrupt(Gguf().tensor("t", {8}, 0, 0).tensor("t", {8}, 0, 32).data(64).str(), {"tensor 't' is there twice"});
  expect_corrupt(Gguf().tensor("a", {16}, 0, 0).tensor("b", {8}, 0, 32).data(64).str(),
                 {"tensors 'a' and 'b' overlap: one ends at data byte 64, the other begins at 32"});
  expect_corrupt(Gguf().key("k", GgufType::u8, "\1").key("k", GgufType::u8, "\1").str(), {"metadata key 'k' twice"});
  expect_corrupt(Gguf().key("k", static_cast<GgufType>(13), "\1").str(), {"key 'k' the type 13; types 0 to 12"});
  expect_corrupt(Gguf().key("k", GgufType::boolean, "\2").str(), {"has 2 as a boolean under metadata key 'k'"});
  expect_corrupt(Gguf().key("\xff", GgufType::u8, "\1").str(), {"a metadata key '\\xff' that is not UTF-8"});
  for (const uint32_t bad : {0u, 3u, 48u, 1u << 21}) {
    expect_corrupt(Gguf().key("general.alignment", GgufType::u32, raw(bad)).str(),
                   {"has general.alignment " + std::to_string(bad) + "; a power of two"});
  }
}

TEST(Gguf, a_file_cut_at_any_byte_is_refused_or_read) {
  const std::string whole = small_file().str();
  size_t refused = 0;
  for (size_t size = 0; size <= whole.size(); ++size) {
    const std::vector<char> cut(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(size));
    try {
      read_all(parse_gguf(std::as_bytes(std::span(cut)), "x"));
    } catch (const Error&) {
      ++refused;
    }
  }
  EXPECT_GE(refused, whole.size() - 160 + 112);  // all but those that lose only bytes no readable tensor needs
}

TEST(Gguf, files_with_changed_bytes_are_refused_or_read) {
  constexpr uint32_t kSeed = 20261121;
  std::mt19937 random(kSeed);
  const std::string whole = small_file().str();
  for (int round = 0; round < 20000; ++round) {
    std::vector<char> changed(whole.begin(), whole.end());
    for (uint32_t n = 1 + random() % 4; n > 0; --n) changed[random() % changed.size()] = static_cast<char>(random());
    try {
      read_all(parse_gguf(std::as_bytes(std::span(changed)), "x"));
    } catch (const Error& error) {
      ASSERT_NE(error.code(), ErrorCode::internal)
          << error.message() << " (seed " << kSeed << ", round " << round << ")";
    }
  }
}

}  // namespace
}  // namespace gemmantle
