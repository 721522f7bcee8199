#include "backend/cpu/machine_probe.h"

#include <gtest/gtest.h>

#include "backend/cpu/cpu_isa.h"
#include "core/error.h"

namespace gemmantle {
namespace {

TEST(MachineProbe, measures_what_the_instruction_set_has) {
  MachineProbe probe(1);
  EXPECT_EQ(probe.threads(), 1);
  // Far below and far above any machine: a loop that was left out would be outside.
  const double read = probe.read_rate(0.01);
  EXPECT_GT(read, 1e7);
  EXPECT_LT(read, 1e13);
  const cpu::PeakKernels& peaks = *choose_cpu_isa().kernels->peaks;
  const auto in_reach = [&](const char* kind, bool there) {
    const std::optional<double> rate = probe.product_rate(kind, 0.01);
    EXPECT_EQ(rate.has_value(), there) << kind;
    EXPECT_TRUE(!rate || (*rate > 1e6 && *rate < 1e14)) << kind << " " << rate.value_or(0);
  };
  in_reach("f32", true);
  in_reach("bf16", peaks.bf16 != nullptr);
  in_reach("i8", peaks.i8 != nullptr);
}

TEST(MachineProbe, names_what_it_does_not_know) {
  MachineProbe probe(1);
  try {
    probe.product_rate("f64", 0.01);
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.param(), "kind");
  }
  EXPECT_THROW(MachineProbe(-1), Error);
}

}  // namespace
}  // namespace gemmantle
