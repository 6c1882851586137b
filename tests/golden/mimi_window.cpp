// Mimi with an attention window that binds: streamed and whole give the published offline result.
#include "mimi_golden.hpp"
#include "mttt/io/checkpoint.hpp"

TEST_CASE("Mimi with a binding window equals the published offline implementation") {
  mttt::testing::MimiGolden<10>("mimi_tiny_window").all();
}
