// A session may attend to fewer steps than the block was compiled for: its numbers are then those of the
// smaller block.
#include <cstring>

#include "catch.hpp"
#include "mttt/backend/cpu/cpu.hpp"
#include "mttt/core/store.hpp"
#include "mttt/laws.hpp"
#include "mttt/nn/attention.hpp"

namespace {
using namespace mttt;
using B = Cpu<float>;
using Roomy = Attention<AttentionConfig{.dim = 8, .num_heads = 2, .context = 9}, B>;
using Narrow = Attention<AttentionConfig{.dim = 8, .num_heads = 2, .context = 4}, B>;
}  // namespace

TEST_CASE("a context narrowed at run time") {
  B be;
  Rng rng(5);
  Store<Roomy::Params, B> wide(be);
  Store<Narrow::Params, B> narrow(be);
  Roomy::init(*wide, rng);
  be.copy(wide.data(), narrow.data(), wide.bytes());
  const Index steps = 30;
  const auto x = be.make<float, dyn, dyn, 8>(2, steps), y = be.make<float, dyn, dyn, 8>(2, steps);
  const auto narrow_y = be.make<float, dyn, dyn, 8>(2, steps), wide_y = be.make<float, dyn, dyn, 8>(2, steps);
  laws::fill_normal(x, 1, rng);

  Store<Roomy::State, B> state(be, 2), full(be, 2);
  Store<Narrow::State, B> narrow_state(be, 2);
  Roomy::reset(be, *wide, *state, Mask{});
  state->context(0) = 4;    // session 0 attends to 4 steps,
  state->context(1) = 100;  // and session 1 to all that there are
  Roomy::step(be, *wide, *state, x, y, Mask{});
  Roomy::step(be, *wide, *full, x, wide_y, Mask{});
  Narrow::step(be, *narrow, *narrow_state, x, narrow_y, Mask{});
  const auto bytes = static_cast<std::size_t>(steps) * 8 * sizeof(float);
  CHECK(std::memcmp(&y(0, 0, 0), &narrow_y(0, 0, 0), bytes) == 0);
  CHECK(std::memcmp(&y(1, 0, 0), &wide_y(1, 0, 0), bytes) == 0);
  CHECK(std::memcmp(&y(0, 0, 0), &wide_y(0, 0, 0), bytes) != 0);
}
