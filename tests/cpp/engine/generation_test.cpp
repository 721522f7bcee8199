#include "engine/generation.h"

#include <gtest/gtest.h>
#include <poll.h>

#include <thread>

namespace gemmantle {
namespace {

Delta delta_of(const char* text, int32_t id) {
  Delta delta;
  delta.pieces = {{Channel::content, text}};
  delta.tokens = {TokenInfo{id, Channel::content, text, std::nullopt, {}}};
  return delta;
}

bool is_readable(int fd) {
  pollfd entry{fd, POLLIN, 0};
  return ::poll(&entry, 1, 0) == 1;
}

struct Fixture {
  std::shared_ptr<Mailbox> mailbox = std::make_shared<Mailbox>();
  Generation generation{mailbox};
};

TEST(Generation, what_was_not_read_is_merged) {
  Fixture f;
  f.mailbox->publish(delta_of("a", 1));
  f.mailbox->publish(delta_of("b", 2));
  const std::optional<Delta> delta = f.generation.try_next();
  ASSERT_TRUE(delta);
  EXPECT_EQ(delta->pieces, (std::vector<Piece>{{Channel::content, "ab"}}));
  EXPECT_EQ(delta->tokens.size(), 2u);
  EXPECT_FALSE(f.generation.try_next());
}

TEST(Generation, call_ends_stay_apart_when_deltas_merge) {
  Delta all;
  for (int i = 0; i < 2; ++i) {
    Delta one;
    one.pieces = {{Channel::call, "x"}, {Channel::call_end, ""}};
    all.append(std::move(one));
  }
  EXPECT_EQ(all.pieces,
            (std::vector<Piece>{
                {Channel::call, "x"}, {Channel::call_end, ""}, {Channel::call, "x"}, {Channel::call_end, ""}}));
}

TEST(Generation, after_the_last_delta_nothing_blocks) {
  Fixture f;
  Delta last = delta_of("x", 1);
  last.finish = FinishReason::stop;
  f.mailbox->finish(std::move(last), {});
  EXPECT_FALSE(f.generation.is_over());
  EXPECT_EQ(f.generation.next()->finish, FinishReason::stop);
  EXPECT_TRUE(f.generation.is_over());
  EXPECT_FALSE(f.generation.next());
}

TEST(Generation, an_error_comes_after_what_was_published_and_stays) {
  Fixture f;
  f.mailbox->publish(delta_of("x", 1));
  f.mailbox->fail(Error(ErrorCode::device, "gone"));
  EXPECT_TRUE(f.generation.next());
  for (int i = 0; i < 2; ++i) EXPECT_THROW(f.generation.next(), Error);
}

TEST(Generation, a_timeout_ends_a_wait) {
  Fixture f;
  EXPECT_FALSE(f.generation.next(0.001));
  EXPECT_FALSE(f.generation.next(-1));
}

TEST(Generation, the_descriptor_is_readable_while_something_waits) {
  Fixture f;
  f.mailbox->publish(delta_of("x", 1));
  const int fd = f.generation.fileno();  // made after the fact
  EXPECT_EQ(f.generation.fileno(), fd);
  EXPECT_TRUE(is_readable(fd));
  f.generation.try_next();
  EXPECT_FALSE(is_readable(fd));
  f.mailbox->publish(delta_of("x", 1));
  f.mailbox->publish(delta_of("x", 1));
  EXPECT_TRUE(is_readable(fd));
  f.mailbox->fail(Error(ErrorCode::device, "gone"));
  f.generation.try_next();
  EXPECT_TRUE(is_readable(fd));
  EXPECT_THROW(f.generation.try_next(), Error);
  EXPECT_FALSE(is_readable(fd));
}

TEST(Generation, its_end_cancels) {
  auto mailbox = std::make_shared<Mailbox>();
  { const Generation generation(mailbox); }
  EXPECT_TRUE(mailbox->is_cancelled());
}

TEST(Generation, a_waiting_reader_is_woken) {
  Fixture f;
  std::thread reader([&] { EXPECT_TRUE(f.generation.next()); });
  f.mailbox->publish(delta_of("x", 1));
  reader.join();
}

}  // namespace
}  // namespace gemmantle
