// Mimi, whole, against the published implementation.
#include "mimi_golden.hpp"

namespace {
using mttt::testing::MimiGolden;
using B = mttt::Cpu<float>;
}  // namespace

TEST_CASE("Mimi, whole") { MimiGolden<64, B>("mimi_tiny").all_whole(); }
TEST_CASE("Mimi with a binding window, whole") { MimiGolden<10, B>("mimi_tiny_window").all_whole(); }
