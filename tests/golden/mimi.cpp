// Mimi, whole, against the published implementation.
#include "mimi_golden.hpp"
#include "mttt/io/checkpoint.hpp"

namespace {
using mttt::testing::MimiGolden;
}

TEST_CASE("Mimi, whole") { MimiGolden<64>("mimi_tiny").all_whole(); }
TEST_CASE("Mimi with a binding window, whole") { MimiGolden<10>("mimi_tiny_window").all_whole(); }
