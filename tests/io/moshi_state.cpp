// A conversation saved to a file goes on tomorrow with the same codes.
#include "mttt/lm/lm_gen.hpp"

#include "laws/moshi_small.hpp"
#include "mttt/io/checkpoint.hpp"
#include "scratch.hpp"

TEST_CASE("A conversation continues from its file, code by code and bit by bit") {
  using namespace mttt;
  using namespace mttt::testing;
  using B = Cpu<float>;
  using Gen = LMGen<moshi_small, B>;
  constexpr Index batch = 2;
  B be;
  Rng rng(3);
  const auto params = laws::random_params<Gen::Model>(be, {.perturbation = 0.3}, rng);
  Store<Gen::State, B> state(be, batch), restored(be, batch);
  const std::int64_t seeds[]{5, -6};
  Gen::reset(be, *params, *state, Mask{}, Tensor<const std::int64_t, dyn>(seeds, {batch}));
  const auto heard = be.make<std::int32_t, dyn, Gen::heard_streams>(batch);
  const auto said = be.make<std::int32_t, dyn, Gen::spoken>(batch);
  const auto talk = [&](Store<Gen::State, B>& session, Index from, Index to) {
    std::vector<std::int32_t> all;
    for (Index t = from; t < to; ++t) {
      for (Index b = 0; b < batch; ++b)
        heard(b, 0) = static_cast<std::int32_t>((3 * t + b) % moshi_small.card);
      Gen::step(be, *params, *session, heard, said, {});
      all.insert(all.end(), said.data(), said.data() + said.size());
    }
    return all;
  };
  talk(state, 0, 8);  // the ring has wrapped, a mini-batch of the TTT layer is open

  const Scratch scratch;
  save_state(scratch / "state.safetensors", be, state);
  load_state(scratch / "state.safetensors", be, restored);
  for (Index b = 0; b < batch; ++b) CHECK(laws::detail::same_session(*state, *restored, b));
  const auto expected = talk(state, 8, 20);
  CHECK(talk(restored, 8, 20) == expected);
  for (Index b = 0; b < batch; ++b) CHECK(laws::detail::same_session(*state, *restored, b));
}
