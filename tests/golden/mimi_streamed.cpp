// Mimi, streamed, against the published implementation.
#include "mimi_golden.hpp"

namespace {
using mttt::testing::MimiGolden;
using B = mttt::Cpu<float>;
}  // namespace

TEST_CASE("Mimi, streamed") { MimiGolden<64, B>("mimi_tiny").all_streamed(); }
TEST_CASE("Mimi with a binding window, streamed") { MimiGolden<10, B>("mimi_tiny_window").all_streamed(); }
