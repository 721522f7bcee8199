#include "core/mapped_file.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

namespace gemmantle {
namespace {

// Pages of files that this process holds in memory.
int64_t file_pages() {
  int64_t size = 0, resident = 0, shared = 0;
  std::ifstream("/proc/self/statm") >> size >> resident >> shared;
  return shared;
}

TEST(MappedFileTest, released_pages_leave_memory_and_stay_readable) {
  const std::string path = (std::filesystem::path(testing::TempDir()) / "released_pages").string();
  constexpr size_t kBytes = 16 << 20;
  std::ofstream(path, std::ios::binary) << std::string(kBytes, 'x');
  {
    const auto file = MappedFile::open(path);
    const auto has_all = [&] {
      return std::all_of(file->bytes().begin(), file->bytes().end(), [](std::byte b) { return b == std::byte{'x'}; });
    };
    ASSERT_TRUE(has_all());
    const int64_t before = file_pages();
    release_pages(file->bytes().subspan(5, kBytes - 10));  // whole pages among them only
    EXPECT_LT(file_pages(), before - 2048) << "of 4096";
    EXPECT_TRUE(has_all());
    release_pages({});
  }
  std::filesystem::remove(path);
}

}  // namespace
}  // namespace gemmantle
