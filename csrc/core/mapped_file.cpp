#include "core/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>

#include "core/bytes.h"
#include "core/error.h"

namespace gemmantle {
namespace {

struct Descriptor {
  int fd;
  ~Descriptor() {
    if (fd >= 0) ::close(fd);
  }
};

}  // namespace

std::shared_ptr<const MappedFile> MappedFile::open(const std::string& path) {
  // O_NONBLOCK: opening a pipe must not wait for its writer.
  const Descriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
  if (file.fd < 0) {
    const int reason = errno;
    if (reason == ENOENT || reason == ENOTDIR) {
      throw Error(ErrorCode::not_found, str("file ", quote(path), " does not exist; check the path"));
    }
    throw Error(ErrorCode::invalid_argument,
                str("file ", quote(path), " cannot be opened: ", std::strerror(reason), "; check its permissions"));
  }
  struct stat status {};
  if (::fstat(file.fd, &status) != 0) {
    throw Error(ErrorCode::invalid_argument, str("file ", quote(path), " cannot be read: ", std::strerror(errno)));
  }
  if (!S_ISREG(status.st_mode)) {
    throw Error(ErrorCode::unsupported,
                str(quote(path), " is a ", S_ISDIR(status.st_mode) ? "folder" : "device or pipe",
                    "; a regular file is needed, because model files are mapped into memory"));
  }
  const auto size = static_cast<size_t>(status.st_size);
  const std::byte* data = nullptr;
  if (size > 0) {
    void* map = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, file.fd, 0);
    if (map == MAP_FAILED) {
      throw Error(ErrorCode::invalid_argument, str("file ", quote(path), " (", size, " bytes) cannot be mapped: ",
                                                   std::strerror(errno), "; is its file system local?"));
    }
    data = static_cast<const std::byte*>(map);
  }
  return std::shared_ptr<const MappedFile>(new MappedFile(path, {data, size}));
}

MappedFile::~MappedFile() {
  if (!bytes_.empty()) ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

namespace {

// Of the whole pages among these bytes. Advice only: a system that knows nothing of it refuses it, and loses nothing.
void advise(std::span<const std::byte> bytes, int advice) noexcept {
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto begin = (reinterpret_cast<uintptr_t>(bytes.data()) + page - 1) / page * page;
  const auto end = (reinterpret_cast<uintptr_t>(bytes.data()) + bytes.size()) / page * page;
  if (begin < end) ::madvise(reinterpret_cast<void*>(begin), end - begin, advice);
}

}  // namespace

void expect_single_rows(std::span<const std::byte> bytes) noexcept {
#if defined(MADV_NOHUGEPAGE)
  advise(bytes, MADV_NOHUGEPAGE);
#else
  (void)bytes;
#endif
}

void release_pages(std::span<const std::byte> bytes) noexcept { advise(bytes, MADV_DONTNEED); }

}  // namespace gemmantle
