// Mimi, streamed, against the published implementation.
#include "mimi_golden.hpp"
#include "mttt/io/checkpoint.hpp"

namespace {
using mttt::testing::MimiGolden;
}

TEST_CASE("Mimi, streamed") { MimiGolden<64>("mimi_tiny").all_streamed(); }
TEST_CASE("Mimi with a binding window, streamed") { MimiGolden<10>("mimi_tiny_window").all_streamed(); }
