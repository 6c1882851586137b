// A conversation saved to a file goes on tomorrow with the same codes.
#include "mttt/lm/lm_gen.hpp"

#include <limits>
#include <utility>

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

TEST_CASE("A state with a number that no conversation reaches is refused, and the conversation goes on") {
  using namespace mttt;
  using namespace mttt::testing;
  using B = Cpu<float>;
  using Gen = LMGen<moshi_small, B>;
  B be;
  Store<Gen::State, B> state(be, 2), hostile(be, 2);
  const Scratch scratch;
  const auto path = scratch / "state.safetensors";
  const auto refused = [&](auto& number, auto value, const std::string& words) {
    const auto old = std::exchange(number, static_cast<std::remove_reference_t<decltype(number)>>(value));
    save_state(path, be, hostile);
    number = old;
    const Store<Gen::State, B> before(be, state);
    check_refused([&] { load_state(path, be, state); }, words);
    for (Index b = 0; b < 2; ++b) CHECK(laws::detail::same_session(*state, *before, b));
  };
  constexpr std::int64_t never = std::int64_t{1} << 48;
  auto& layers = hostile->transformer;
  for (const std::int64_t position : {std::int64_t{-1}, never, std::numeric_limits<std::int64_t>::min()}) {
    const std::string at = ": " + std::to_string(position) + " at element 1";
    refused(hostile->offset(1), position, "'offset'" + at);
    refused(layers.plain[0].self_attn.position(1), position, "self_attn.position'" + at);
    refused(layers.learning[0].self_attn.context(1), position, "self_attn.context'" + at);
    refused(layers.learning[0].ttt.position(1), position, "ttt.position'" + at);
  }
  const Index row = moshi_small.streams() * Gen::ring;
  refused(hostile->codes(1, 0, 0), moshi_small.text_card + 1,
          "'codes': 10 at element " + std::to_string(row));
  refused(hostile->codes(0, 1, 0), moshi_small.card + 1,
          "'codes': 7 at element " + std::to_string(Gen::ring));
  refused(hostile->codes(0, 1, 0), -3, "'codes': -3");
  hostile->codes(0, 0, 0) = moshi_small.text_card, hostile->codes(0, 1, 0) = ungenerated_code;
  hostile->seed(0) = -5, hostile->offset(0) = never - 1;
  save_state(path, be, hostile);
  load_state(path, be, state);
  for (Index b = 0; b < 2; ++b) CHECK(laws::detail::same_session(*state, *hostile, b));
}
