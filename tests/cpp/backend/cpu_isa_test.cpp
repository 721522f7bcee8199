#include "backend/cpu/cpu_isa.h"

#include <gtest/gtest.h>

#include <string>

#include "backend/registry.h"
#include "core/error.h"
#include "support/machines.h"

namespace gemmantle {
namespace {

TEST(cpu_isa, the_best_supported_table_is_chosen) {
  const CpuIsa* best = nullptr;
  for (const CpuIsa& isa : cpu_isas()) {
    if (isa.usable() && best == nullptr) best = &isa;
  }
  EXPECT_EQ(&choose_cpu_isa(""), best);
}

TEST(cpu_isa, a_table_goes_by_its_name_or_says_why_it_cannot_be_used) {
  for (const CpuIsa& isa : cpu_isas()) {
    EXPECT_EQ(isa.usable(), isa.missing().empty()) << isa.name << ": " << isa.missing();
    EXPECT_TRUE(isa.kernels == nullptr || isa.kernels->name == std::string(isa.name)) << isa.name;
  }
  EXPECT_TRUE(cpu_isas().back().usable());
}

TEST(cpu_isa, each_table_is_the_one_that_was_asked_for) {
  for (const test::Machine& machine : test::all_machines()) {
    if (machine.device != "cpu" || !machine.missing.empty()) continue;
    EXPECT_EQ(machine.make()->info().isa, machine.isa);
    EXPECT_EQ(machine.make()->info().threads, machine.threads);
  }
}

TEST(cpu_isa, an_unknown_name_is_answered_with_the_list) {
  try {
    choose_cpu_isa("mmx");
    FAIL() << "no error";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::invalid_argument);
    EXPECT_NE(e.message().find("'mmx'"), std::string::npos);
    for (const CpuIsa& isa : cpu_isas()) EXPECT_NE(e.message().find(isa.name), std::string::npos) << e.message();
  }
}

TEST(registry, every_device_is_available_or_says_why) {
  for (const DeviceInfo& device : devices()) {
    EXPECT_EQ(device.available, device.reason.empty()) << device.name << ": " << device.reason;
  }
}

TEST(registry, an_unknown_device_or_thread_count_is_refused_in_words) {
  BackendOptions options;
  options.device = "tpu";
  try {
    make_backend(options);
    FAIL() << "no error";
  } catch (const Error& e) {
    EXPECT_EQ(e.param(), "device");
    EXPECT_NE(e.message().find("auto, cpu, reference, cuda"), std::string::npos);
  }
  options.device = "cpu";
  options.threads = -2;
  try {
    make_backend(options);
    FAIL() << "no error";
  } catch (const Error& e) {
    EXPECT_EQ(e.param(), "threads");
    EXPECT_NE(e.message().find("-2"), std::string::npos);
  }
}

}  // namespace
}  // namespace gemmantle
