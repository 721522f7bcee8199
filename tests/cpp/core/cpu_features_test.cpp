#include "core/cpu_features.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>

namespace gemmantle {
namespace {

namespace fs = std::filesystem;

class CpuFeaturesTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
    root_ = fs::path(::testing::TempDir()) / (std::string("gemmantle_") + info->name());
    fs::remove_all(root_);
  }
  void TearDown() override { fs::remove_all(root_); }

  void write(const std::string& path, const std::string& text) {
    fs::create_directories((root_ / path).parent_path());
    std::ofstream(root_ / path) << text << "\n";
  }
  std::string path(const std::string& name) const { return (root_ / name).string(); }

  fs::path root_;
};

TEST_F(CpuFeaturesTest, threads_of_one_core_count_once) {
  for (int cpu = 0; cpu < 8; ++cpu) {
    write("cpu/cpu" + std::to_string(cpu) + "/topology/core_id", std::to_string(cpu % 2));
    write("cpu/cpu" + std::to_string(cpu) + "/topology/physical_package_id", std::to_string(cpu / 4));
  }
  EXPECT_EQ(physical_cores({0, 1, 2, 3, 4, 5, 6, 7}, path("cpu")), 4);
  EXPECT_EQ(physical_cores({0, 2}, path("cpu")), 1);
  EXPECT_EQ(physical_cores({0, 4}, path("cpu")), 2);
}

TEST_F(CpuFeaturesTest, without_topology_every_processor_is_a_core) {
  EXPECT_EQ(physical_cores({0, 1, 5}, path("none")), 3);
}

TEST_F(CpuFeaturesTest, the_tightest_group_above_limits) {
  write("membership", "0::/a/b");
  write("fs/a/cpu.max", "250000 100000");
  write("fs/a/b/cpu.max", "max 100000");
  EXPECT_EQ(cgroup_cpus(path("membership"), path("fs")), 2);
  write("fs/a/b/cpu.max", "50000 100000");
  EXPECT_EQ(cgroup_cpus(path("membership"), path("fs")), 1);
}

TEST_F(CpuFeaturesTest, version_one_quotas_count) {
  write("membership", "5:memory:/x\n4:cpu,cpuacct:/x");
  write("fs/cpu/x/cpu.cfs_quota_us", "300000");
  write("fs/cpu/x/cpu.cfs_period_us", "100000");
  EXPECT_EQ(cgroup_cpus(path("membership"), path("fs")), 3);
  write("fs/cpu/x/cpu.cfs_quota_us", "-1");
  EXPECT_EQ(cgroup_cpus(path("membership"), path("fs")), 0);
}

TEST_F(CpuFeaturesTest, no_groups_or_nonsense_is_no_limit) {
  EXPECT_EQ(cgroup_cpus(path("missing"), path("fs")), 0);
  write("membership", "nonsense\n0::/");
  write("fs/cpu.max", "a lot");
  EXPECT_EQ(cgroup_cpus(path("membership"), path("fs")), 0);
}

TEST(cpu_features, avx512_implies_avx2) { EXPECT_TRUE(!cpu_features().avx512 || cpu_features().avx2); }

}  // namespace
}  // namespace gemmantle
