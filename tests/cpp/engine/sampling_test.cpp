#include "engine/sampling.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

#include "core/error.h"

namespace gemmantle {
namespace {

struct Case {
  const char* field;
  std::function<void(SamplingParams&)> spoil;
};

std::string field_of_error(const SamplingParams& params) {
  try {
    params.validate(100);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::invalid_argument);
    EXPECT_NE(error.message().find(error.param()), std::string::npos) << error.message();
    return error.param();
  }
  return "";
}

TEST(SamplingParams, defaults_and_limits_are_valid) {
  SamplingParams params;
  EXPECT_EQ(field_of_error(params), "");
  params.temperature = 0;
  params.top_p = 0;
  params.min_p = 1;
  params.top_k = 1 << 20;
  params.logprobs = params.prompt_logprobs = 20;
  params.max_tokens = 0;
  params.stop = {"a"};
  params.stop_token_ids = params.suppress = {0, 99};
  params.logit_bias = {{0, -100.0f}, {99, 100.0f}};
  EXPECT_EQ(field_of_error(params), "");
}

TEST(SamplingParams, a_wrong_field_is_named) {
  constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
  constexpr double kInf = std::numeric_limits<double>::infinity();
  const Case cases[] = {
      {"max_tokens", [](SamplingParams& p) { p.max_tokens = -2; }},
      {"temperature", [](SamplingParams& p) { p.temperature = -0.1; }},
      {"temperature", [](SamplingParams& p) { p.temperature = kNaN; }},
      {"temperature", [](SamplingParams& p) { p.temperature = kInf; }},
      {"top_p", [](SamplingParams& p) { p.top_p = 1.01; }},
      {"top_p", [](SamplingParams& p) { p.top_p = kNaN; }},
      {"top_k", [](SamplingParams& p) { p.top_k = -1; }},
      {"min_p", [](SamplingParams& p) { p.min_p = -0.5; }},
      {"repetition_penalty", [](SamplingParams& p) { p.repetition_penalty = 0; }},
      {"presence_penalty", [](SamplingParams& p) { p.presence_penalty = kNaN; }},
      {"frequency_penalty", [](SamplingParams& p) { p.frequency_penalty = 1000; }},
      {"logit_bias",
       [](SamplingParams& p) {
         p.logit_bias = {{1, 101.0f}};
       }},
      {"logit_bias",
       [](SamplingParams& p) {
         p.logit_bias = {{100, 1.0f}};
       }},
      {"logit_bias",
       [](SamplingParams& p) {
         p.logit_bias = {{1, 1.0f}, {1, 2.0f}};
       }},
      {"stop",
       [](SamplingParams& p) {
         p.stop = {"a", ""};
       }},
      {"stop_token_ids", [](SamplingParams& p) { p.stop_token_ids = {-1}; }},
      {"min_tokens", [](SamplingParams& p) { p.min_tokens = -1; }},
      {"logprobs", [](SamplingParams& p) { p.logprobs = 21; }},
      {"prompt_logprobs", [](SamplingParams& p) { p.prompt_logprobs = -2; }},
      {"suppress", [](SamplingParams& p) { p.suppress = {100}; }},
  };
  for (const Case& c : cases) {
    SamplingParams params;
    c.spoil(params);
    EXPECT_EQ(field_of_error(params), c.field);
  }
}

}  // namespace
}  // namespace gemmantle
