#include "checkpoint/checkpoint.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <nlohmann/json.hpp>

#include "checkpoint/file_builder.h"

namespace gemmantle {
namespace {

using namespace testing_files;

std::string one_tensor(const std::string& name, float value) {
  return safetensors("{\"" + name + R"(":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", raw(value));
}

float value_of(const Checkpoint& checkpoint, std::string_view name) {
  const StoredTensor* tensor = checkpoint.find(name);
  EXPECT_NE(tensor, nullptr) << name;
  float value = 0;
  if (tensor != nullptr) read_rows(*tensor, 0, 1, &value);
  return value;
}

void expect_refused_folder(const Folder& folder, ErrorCode code, const std::vector<std::string>& parts) {
  expect_refused([&] { Checkpoint::open(folder.path()); }, code, parts);
}

TEST(Checkpoint, a_folder_with_one_file_is_read) {
  const Folder folder;
  folder.write("config.json", R"({"model_type":"gemma4"})");
  folder.write("generation_config.json", R"({"eos_token_id":[1,106]})");
  const std::string file = folder.write("model.safetensors", one_tensor("a", 3));
  const auto checkpoint = Checkpoint::open(folder.path());
  EXPECT_EQ(checkpoint->container(), Container::safetensors);
  EXPECT_EQ(checkpoint->files(), std::vector<std::string>{file});
  EXPECT_EQ(checkpoint->config().at("model_type"), "gemma4");
  EXPECT_EQ(checkpoint->generation_config().at("eos_token_id").size(), 2u);
  EXPECT_EQ(value_of(*checkpoint, "a"), 3.0f);
  EXPECT_EQ(checkpoint->find("b"), nullptr);
  EXPECT_EQ(checkpoint->unreadable("b"), nullptr);
  EXPECT_TRUE(checkpoint->metadata().entries().empty());
}

TEST(Checkpoint, shards_are_read_by_their_index) {
  const Folder folder;
  folder.write("config.json", "{}");
  folder.write("model-00001-of-00002.safetensors", one_tensor("a", 1));
  folder.write("model-00002-of-00002.safetensors", one_tensor("b", 2));
  const auto index = [](const std::string& second) {
    return R"({"weight_map":{"a":"model-00001-of-00002.safetensors","b":")" + second + "\"}}";
  };
  folder.write("model.safetensors.index.json", index("model-00002-of-00002.safetensors"));
  const auto checkpoint = Checkpoint::open(folder.path());
  EXPECT_EQ(value_of(*checkpoint, "a"), 1.0f);
  EXPECT_EQ(value_of(*checkpoint, "b"), 2.0f);
  EXPECT_EQ(checkpoint->files().size(), 2u);
  EXPECT_EQ(checkpoint->find("b")->file, 1);

  folder.write("model.safetensors.index.json", index("model-00001-of-00002.safetensors"));
  expect_refused_folder(folder, ErrorCode::corrupt_file,
                        {"puts tensor 'b' into 'model-00001-of-00002.safetensors', which does not hold it"});
  folder.write("model.safetensors.index.json", index("model-00003-of-00002.safetensors"));
  expect_refused_folder(folder, ErrorCode::not_found,
                        {"model-00003-of-00002.safetensors' is named by", "is not there"});
  folder.write("model.safetensors.index.json", index("../secret.safetensors"));
  expect_refused_folder(folder, ErrorCode::corrupt_file, {"'../secret.safetensors'"});
}

TEST(Checkpoint, what_is_missing_is_named) {
  expect_refused([] { Checkpoint::open("/nowhere/model"); }, ErrorCode::not_found, {"'/nowhere/model' does not exist"});
  const Folder folder;
  expect_refused_folder(folder, ErrorCode::not_found, {"has no .safetensors file; is the download complete?"});
  folder.write("pytorch_model.bin", "");
  expect_refused_folder(folder, ErrorCode::unsupported, {"'pytorch_model.bin', a pickle file"});
  folder.write("model.gguf", "");
  expect_refused_folder(folder, ErrorCode::not_found, {"to use 'model.gguf', give the path of that file"});
  folder.write("a.safetensors", one_tensor("a", 1));
  expect_refused_folder(folder, ErrorCode::not_found, {"has no config.json"});
  folder.write("b.safetensors", one_tensor("b", 1));
  expect_refused_folder(folder, ErrorCode::not_found, {"has 2 .safetensors files and no model.safetensors.index.json"});
}

TEST(Checkpoint, other_files_are_refused_with_the_remedy) {
  const Folder folder;
  const auto refused = [&](const std::string& name, const std::string& content, ErrorCode code, const char* part) {
    const std::string path = folder.write(name, content);
    expect_refused([&] { Checkpoint::open(path); }, code, {part});
  };
  refused("x.gguf", "", ErrorCode::corrupt_file, "does not begin with 'GGUF'");
  refused("x.safetensors", one_tensor("a", 1), ErrorCode::unsupported, "give the folder that holds it");
  refused("x.bin", "PK", ErrorCode::unsupported, "give a GGUF file, or a folder");
  const std::string pipe = folder.path() + "/pipe.gguf";
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  expect_refused([&] { Checkpoint::open(pipe); }, ErrorCode::unsupported, {"is a device or pipe; a regular file"});
}

TEST(Checkpoint, hostile_configurations_are_refused) {
  const Folder folder;
  folder.write("model.safetensors", one_tensor("a", 1));
  const auto refused = [&](const std::string& config, const char* part) {
    folder.write("config.json", config);
    expect_refused_folder(folder, ErrorCode::corrupt_file, {"config.json'", part});
  };
  refused("", "is not valid JSON");
  refused("{", "is not valid JSON");
  refused("[1]", "holds a value of type array; an object is needed");
  refused("{\"a\":\"\xff\"}", "is not valid JSON");
  refused("{\"a\":1e999}", "cannot be read as JSON");
  refused(std::string(100000, '['), "is nested 100000 levels deep; at most 64 are read");
  refused("[" + std::string(size_t{2} << 20, ',') + "]", "values; at most 1048576 are read");
  refused(std::string(size_t{17} << 20, ' '), "has 17825792 bytes; at most 16777216 are read");
}

TEST(Checkpoint, a_gguf_file_is_read_and_outlives_its_opener) {
  const Folder folder;
  const std::string path =
      folder.write("model.bin", Gguf().tensor("t", {8}, 0, 0).tensor("u", {8}, 28, 32).data(96).str());
  const auto checkpoint = Checkpoint::open(path);
  EXPECT_EQ(checkpoint->container(), Container::gguf);
  EXPECT_TRUE(checkpoint->config().empty());
  EXPECT_EQ(checkpoint->find("u"), nullptr);
  ASSERT_NE(checkpoint->unreadable("u"), nullptr);
  EXPECT_NE(checkpoint->unreadable("u")->find("its type is F64"), std::string::npos);
  const StoredTensor copy = *checkpoint->find("t");
  std::vector<float> values(8);
  read_rows(copy, 0, 1, values.data());
  EXPECT_EQ(values[0], values[7]);
  EXPECT_THROW(read_rows(copy, 1, 1, values.data()), Error);
  EXPECT_THROW(read_rows(copy, 0, -1, values.data()), Error);
}

}  // namespace
}  // namespace gemmantle
