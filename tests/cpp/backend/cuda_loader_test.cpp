#include "backend/cuda/cuda_loader.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

#include "core/error.h"

namespace gemmantle {
namespace {

// Sets an environment variable for one test; nullptr removes it.
class ScopedVariable {
 public:
  ScopedVariable(const char* name, const char* value) : name_(name) {
    if (const char* old = std::getenv(name)) {
      had_ = true;
      old_ = old;
    }
    set(value);
  }
  ~ScopedVariable() { set(had_ ? old_.c_str() : nullptr); }
  ScopedVariable(const ScopedVariable&) = delete;
  ScopedVariable& operator=(const ScopedVariable&) = delete;

 private:
  void set(const char* value) {
    if (value == nullptr) {
      unsetenv(name_);
    } else {
      setenv(name_, value, 1);
    }
  }

  const char* name_;
  bool had_ = false;
  std::string old_;
};

CudaStatus ask_fake(const char* role) {
  ScopedVariable variable("GEMMANTLE_FAKE_CUDA", role);
  return open_cuda_plugin(GEMMANTLE_FAKE_CUDA_PLUGIN);
}

#define EXPECT_CONTAINS(text, part) EXPECT_NE((text).find(part), std::string::npos) << (text)

TEST(CudaLoader, the_variable_names_the_plugin) {
  ScopedVariable variable("GEMMANTLE_CUDA_LIBRARY", "/some/where/plugin.so");
  EXPECT_EQ(cuda_plugin_path(), "/some/where/plugin.so");
}

TEST(CudaLoader, without_the_variable_the_plugin_is_looked_for_beside_this_code) {
  ScopedVariable variable("GEMMANTLE_CUDA_LIBRARY", nullptr);
  const std::string path = cuda_plugin_path();
  EXPECT_CONTAINS(path, "libgemmantle_cuda.so");
}

TEST(CudaLoader, a_missing_plugin_is_a_reason_that_names_the_path_and_the_variable) {
  const CudaStatus status = open_cuda_plugin("/no/such/libgemmantle_cuda.so");
  EXPECT_FALSE(status.available);
  EXPECT_CONTAINS(status.reason, "/no/such/libgemmantle_cuda.so");
  EXPECT_CONTAINS(status.reason, "GEMMANTLE_CUDA_LIBRARY");
  EXPECT_CONTAINS(status.reason, "CUDA plugin");
  EXPECT_TRUE(status.library.empty());
}

TEST(CudaLoader, a_file_that_is_no_library_is_a_reason) {
  const CudaStatus status = open_cuda_plugin(std::string(GEMMANTLE_SOURCE_DIR) + "/pyproject.toml");
  EXPECT_FALSE(status.available);
  EXPECT_CONTAINS(status.reason, "cannot be opened");
}

TEST(CudaLoader, another_interface_version_is_a_different_build) {
  const CudaStatus status = ask_fake("other_interface");
  EXPECT_FALSE(status.available);
  EXPECT_CONTAINS(status.reason, "different build");
}

TEST(CudaLoader, another_build_id_is_a_different_build_and_both_are_named) {
  const CudaStatus status = ask_fake("other_build");
  EXPECT_FALSE(status.available);
  EXPECT_CONTAINS(status.reason, "different build");
  EXPECT_CONTAINS(status.reason, "0.0.0-elsewhere");
  EXPECT_CONTAINS(status.reason, GEMMANTLE_BUILD_ID);
}

TEST(CudaLoader, the_plugins_own_reason_is_passed_on) {
  const CudaStatus status = ask_fake("refuses");
  EXPECT_FALSE(status.available);
  EXPECT_EQ(status.reason, "no NVIDIA driver was found");
  EXPECT_EQ(status.plugin.device_count, 0);
}

TEST(CudaLoader, a_usable_device_is_available) {
  const CudaStatus status = ask_fake("");
  EXPECT_TRUE(status.available) << status.reason;
  EXPECT_EQ(status.description, "a device of paper");
  EXPECT_EQ(status.library, GEMMANTLE_FAKE_CUDA_PLUGIN);
}

TEST(CudaLoader, making_a_backend_without_a_device_says_why) {
  if (cuda_status().available) GTEST_SKIP() << "this machine has a usable CUDA device: " << cuda_status().description;
  try {
    make_cuda_backend(BackendOptions{});
    FAIL() << "expected an Error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::unsupported);
    EXPECT_EQ(error.param(), "device");
    EXPECT_CONTAINS(error.message(), cuda_status().reason);
  }
}

TEST(CudaLoader, the_real_plugin_loads_and_says_what_it_found) {
#ifdef GEMMANTLE_CUDA_PLUGIN
  const CudaStatus status = open_cuda_plugin(GEMMANTLE_CUDA_PLUGIN);
  EXPECT_EQ(status.library, GEMMANTLE_CUDA_PLUGIN) << status.reason;
  EXPECT_STREQ(status.plugin.build_id, GEMMANTLE_BUILD_ID);
  EXPECT_GE(status.plugin.runtime_version, 12040);
  EXPECT_EQ(status.available, status.plugin.device_count > 0);
  if (status.plugin.driver_version == 0) {
    EXPECT_CONTAINS(status.reason, "no NVIDIA driver");
  } else if (status.plugin.device_count == 0) {
    EXPECT_CONTAINS(status.reason, "driver");
  } else {
    EXPECT_CONTAINS(status.description, "compute capability");
  }
  RecordProperty("reason", status.reason);
#else
  GTEST_SKIP() << "configured with GEMMANTLE_CUDA=OFF: use --preset cuda";
#endif
}

}  // namespace
}  // namespace gemmantle
