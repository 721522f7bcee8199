// mapped_file.h: a whole file, read-only in memory, without copying it.
//
// Holders of a view keep the MappedFile alive. Refuses folders, pipes and devices. The map is shared with the page
// cache; a file that another program cuts short while it is mapped ends the process (SIGBUS), so model files are
// replaced by renaming, never overwritten in place.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>

namespace gemmantle {

class MappedFile {
 public:
  // Throws not_found when nothing is there, unsupported when it is no regular file, invalid_argument when the system
  // refuses to open or map it.
  static std::shared_ptr<const MappedFile> open(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::string& path() const noexcept { return path_; }
  std::span<const std::byte> bytes() const noexcept { return bytes_; }

 private:
  MappedFile(std::string path, std::span<const std::byte> bytes) : path_(std::move(path)), bytes_(bytes) {}

  std::string path_;
  std::span<const std::byte> bytes_;
};

// Of these bytes of a map, rows here and there are all that will be read: a huge page of the page cache around such a
// row shall not count as memory of this process.
void expect_single_rows(std::span<const std::byte> bytes) noexcept;

// Gives back the memory that these bytes of a map count for. They stay readable, and in the page cache. `bytes` must
// lie in a map of a file: other memory would be lost.
void release_pages(std::span<const std::byte> bytes) noexcept;

}  // namespace gemmantle
