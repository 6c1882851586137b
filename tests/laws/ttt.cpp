#include "mttt/ttt/ttt.hpp"
#include "laws.hpp"

// Streaming == offline is also the law "primal == dual": step is the primal form, forward the dual one.
namespace {
using namespace mttt;
template <class B>
using TttLinear = Ttt<TttConfig{.dim = 12, .num_heads = 3, .mini_batch_size = 4}, B>;
template <class B>
using TttLinearVideo =
    Ttt<TttConfig{.dim = 12, .num_heads = 2, .mini_batch_size = 4, .variant = TttVariant::video}, B>;
template <class B>
using TttLinearVideoNoRope =
    Ttt<TttConfig{
            .dim = 12, .num_heads = 2, .mini_batch_size = 5, .variant = TttVariant::video, .rope = false},
        B>;
constexpr TttConfig clipped(double clip) {
  return {.dim = 12, .num_heads = 2, .mini_batch_size = 4, .inner_clip = clip};
}
template <class B>
using TttLinearClipped = Ttt<clipped(1), B>;
}  // namespace

TEST_CASE("TTT-Linear, lm variant") { mttt::testing::hold_to_all_laws<TttLinear>(); }
TEST_CASE("TTT-Linear, video variant") { mttt::testing::hold_to_all_laws<TttLinearVideo>(); }
TEST_CASE("TTT-Linear, video variant without RoPE") {
  mttt::testing::hold_to_all_laws<TttLinearVideoNoRope>();
}
TEST_CASE("TTT-Linear, inner gradients shortened") { mttt::testing::hold_to_all_laws<TttLinearClipped>(); }

TEST_CASE("a clip that nothing exceeds changes no bit, one of nothing stops all learning") {
  using B = Cpu<double>;
  B be;
  Rng rng(3);
  const auto params = laws::random_params<Ttt<clipped(0), B>>(be, {}, rng);
  const auto x = be.make<double, dyn, dyn, 12>(2, 9);
  laws::fill_normal(x, 1, rng);
  const auto answers = [&](auto block) {
    using Block = decltype(block);
    const auto y = be.make<double, dyn, dyn, 12>(2, 9);
    typename Block::Saved saved;
    typename Block::Params same;
    for_each_tensor([](std::string_view, const auto& from, auto& to) { to = from; }, *params, same);
    Block::forward(be, same, x, y, saved);
    return y;
  };
  const auto free = answers(Ttt<clipped(0), B>{}), far = answers(Ttt<clipped(1e6), B>{}),
             near = answers(Ttt<clipped(1), B>{}), still = answers(Ttt<clipped(1e-30), B>{});
  CHECK(laws::detail::same_bits(free.data(), far.data(), free.size()));
  CHECK(laws::largest_difference(free.data(), near.data(), free.size()) > 1e-3);
  // Without learning an answer depends on its own token alone.
  const auto first = be.make<double, 1, 12>();
  for (Index i = 0; i < 12; ++i) first(0, i) = x(0, 0, i), x(0, 0, i) += 1;
  const auto after = answers(Ttt<clipped(1e-30), B>{});
  CHECK(laws::largest_difference(&still(0, 0, 0), &after(0, 0, 0), 12) > 1e-3);
  CHECK(laws::largest_difference(&still(0, 1, 0), &after(0, 1, 0), 8 * 12) < 1e-12);
}
