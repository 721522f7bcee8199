#include "checkpoint/safetensors.h"

#include <gtest/gtest.h>

#include "checkpoint/file_builder.h"

namespace gemmantle {
namespace {

using namespace testing_files;

void expect_corrupt(const std::string& file, const std::vector<std::string>& parts) {
  expect_refused([&] { parse_safetensors(as_bytes(file), "x.safetensors"); }, ErrorCode::corrupt_file, parts);
}

TEST(Safetensors, tensors_come_in_the_order_of_their_bytes) {
  const std::string file =
      safetensors(R"({"__metadata__":{"format":"pt"},"b":{"dtype":"F16","shape":[2],"data_offsets":[8,12]},)"
                  R"("a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},)"
                  R"("s":{"dtype":"BF16","shape":[],"data_offsets":[12,14]}}   )",
                  std::string("\0\0\x80\x3f\0\0\0\x40\0\x3c\0\xc0\x80\x3f", 14));
  const TensorDirectory directory = parse_safetensors(as_bytes(file), "x.safetensors");
  ASSERT_EQ(directory.tensors.size(), 3u);
  EXPECT_EQ(directory.tensors[0].name, "a");
  EXPECT_EQ(directory.tensors[0].shape, (std::vector<int64_t>{2, 1}));
  float values[2];
  read_rows(directory.tensors[0], 0, 2, values);
  EXPECT_EQ(values[0], 1.0f);
  EXPECT_EQ(values[1], 2.0f);
  read_rows(directory.tensors[1], 0, 1, values);
  EXPECT_EQ(values[0], 1.0f);
  EXPECT_EQ(values[1], -2.0f);
  read_rows(directory.tensors[2], 0, 1, values);
  EXPECT_EQ(values[0], 1.0f);
}

TEST(Safetensors, other_dtypes_are_listed_as_unreadable_with_the_reason) {
  const std::string file = safetensors(
      R"({"i":{"dtype":"I64","shape":[1],"data_offsets":[0,8]},"n":{"dtype":"F3","shape":[9],"data_offsets":[8,9]}})",
      std::string(9, '\0'));
  const TensorDirectory directory = parse_safetensors(as_bytes(file), "x.safetensors");
  EXPECT_TRUE(directory.tensors.empty());
  EXPECT_EQ(directory.unreadable.at("i"), "its dtype is I64; F32, BF16 and F16 are read");
  EXPECT_EQ(directory.unreadable.at("n"), "its dtype 'F3' is not known; F32, BF16 and F16 are read");
}

TEST(Safetensors, what_does_not_fit_is_refused_naming_tensor_found_and_wanted) {
  const auto one = [](std::string_view entry, size_t bytes) {
    return safetensors("{\"t\":" + std::string(entry) + "}", std::string(bytes, '\0'));
  };
  expect_corrupt("", {"'x.safetensors' ends inside the length of its header", "byte 0 needs 8 more, 0 are left"});
  expect_corrupt(raw<uint64_t>(1), {"ends inside its header"});
  expect_corrupt(raw<uint64_t>(~0ull) + "{}", {"claims a header of 18446744073709551615 bytes", "at most 100000000"});
  expect_corrupt(safetensors("[]", ""), {"does not begin with '{'"});
  expect_corrupt(safetensors("{\"t\"", ""), {"header of file 'x.safetensors' is not valid JSON (at byte 5)"});
  expect_corrupt(safetensors("{\"t\":{}, \"t\":{}}", ""), {"names the key 't' twice"});
  expect_corrupt(one("[]", 0), {"tensor 't' is array"});
  expect_corrupt(one(R"({"shape":[],"data_offsets":[0,0]})", 0), {"tensor 't' has no dtype"});
  expect_corrupt(one(R"({"dtype":3,"shape":[],"data_offsets":[0,0]})", 0), {"a dtype of type number"});
  expect_corrupt(one(R"({"dtype":"F32","data_offsets":[0,0]})", 0), {"has no shape"});
  expect_corrupt(one(R"({"dtype":"F32","shape":[-1],"data_offsets":[0,4]})", 4), {"'-1' in its shape"});
  expect_corrupt(one(R"({"dtype":"F32","shape":[1.5],"data_offsets":[0,4]})", 4), {"'1.5' in its shape"});
  expect_corrupt(one(R"({"dtype":"F32","shape":[1],"data_offsets":[0]})", 4), {"has 1 data_offsets"});
  expect_corrupt(one(R"({"dtype":"F32","shape":[1],"data_offsets":[4,0]})", 4), {"data_offsets [4, 0]"});
  expect_corrupt(one(R"({"dtype":"F32","shape":[1],"data_offsets":[0,4]})", 3),
                 {"data_offsets [0, 4]; the file holds 3 bytes of data", "cut short"});
  expect_corrupt(one(R"({"dtype":"F32","shape":[2],"data_offsets":[0,4]})", 4), {"has 4 bytes; shape [2] of F32"});
  expect_corrupt(one(R"({"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]})", 0),
                 {"shape [4294967296, 4294967296], more elements"});
  expect_corrupt(one(R"({"dtype":"F32","shape":[2305843009213693952,4],"data_offsets":[0,0]})", 0), {"more elements"});
  expect_corrupt(one(R"({"dtype":"F32","shape":[1152921504606846976],"data_offsets":[0,0]})", 0),
                 {"does not take as many"});
  expect_corrupt(one(R"({"dtype":"F32","shape":[1],"data_offsets":[4,8]})", 8),
                 {"tensor 't' begins at data byte 4; 0 is needed"});
  expect_corrupt(one(R"({"dtype":"F32","shape":[1],"data_offsets":[0,4]})", 5),
                 {"holds 5 bytes of data; its header describes 4"});
}

TEST(Safetensors, overlapping_tensors_are_refused_by_name) {
  expect_corrupt(safetensors(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
                             R"("b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})",
                             std::string(12, '\0')),
                 {"tensors 'a' and 'b' overlap: one ends at data byte 8, the other begins at 4"});
  expect_corrupt(safetensors(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
                             R"("b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})",
                             std::string(4, '\0')),
                 {"overlap"});
}

TEST(Safetensors, deep_json_is_refused_before_it_is_parsed) {
  const std::string deep = "{\"t\":" + std::string(100000, '[') + std::string(100000, ']') + "}";
  expect_corrupt(safetensors(deep, ""), {"is nested 100001 levels deep; at most 8 are read"});
}

TEST(Safetensors, a_file_cut_at_any_byte_is_refused) {
  const std::string whole = safetensors(R"({"a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},)"
                                        R"("b":{"dtype":"BF16","shape":[2],"data_offsets":[8,12]}})",
                                        std::string(12, '\1'));
  EXPECT_EQ(parse_safetensors(as_bytes(whole), "x").tensors.size(), 2u);
  for (size_t size = 0; size < whole.size(); ++size) {
    // A copy of its own, so that the address sanitizer sees a read past the end.
    const std::vector<char> cut(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(size));
    EXPECT_THROW(parse_safetensors(std::as_bytes(std::span(cut)), "x"), Error) << size;
  }
}

TEST(SafetensorsIndex, file_names_stay_in_the_folder) {
  const auto index = [](const std::string& file) {
    return R"({"metadata":{"total_size":1},"weight_map":{"t":")" + file + "\"}}";
  };
  EXPECT_EQ(parse_safetensors_index(index("a-00001-of-00002.safetensors"), "i").at("t"),
            "a-00001-of-00002.safetensors");
  for (const char* name : {"../a.safetensors", "/etc/a.safetensors", "x\\\\a.safetensors", "..", ".safetensors",
                           "a.bin", "", "x/a.safetensors", "a\\u0000.safetensors"}) {
    expect_refused([&] { parse_safetensors_index(index(name), "i"); }, ErrorCode::corrupt_file,
                   {"file 'i' puts tensor 't' into", "a plain name ending in .safetensors"});
  }
  expect_refused([] { parse_safetensors_index("{}", "i"); }, ErrorCode::corrupt_file, {"has no weight_map"});
  expect_refused([] { parse_safetensors_index(R"({"weight_map":{"t":3}})", "i"); }, ErrorCode::corrupt_file,
                 {"a file of type number"});
}

}  // namespace
}  // namespace gemmantle
