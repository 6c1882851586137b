// A session saved to a file goes on tomorrow, in another slot, bit for bit; that of another model is refused.
#include "laws/sessions_small.hpp"

#include "mttt/io/checkpoint.hpp"
#include "scratch.hpp"

TEST_CASE("One session of many goes to a file, and goes on in other Sessions") {
  using namespace mttt;
  using namespace mttt::testing;
  using B = Cpu<float>;
  Rng rng(5);
  Learned learned(rng);
  B& be = learned.be;
  Company<B> today(be, learned.models(), 4, 21);
  for (int i = 0; i < 3; ++i) today.join();
  for (int t = 0; t < 9; ++t) today.frame(0.8);

  const Scratch scratch;
  const auto path = scratch / "session.safetensors";
  const nlohmann::json model = {{"model", "duplex_small"}};
  save_state(path, be, today.all.snapshot(today.guests.back().id), model);

  Company<B> tomorrow(be, learned.models(), 4, 22);
  tomorrow.join();
  tomorrow.frame(1);
  Company<B>::Everyone::Snapshot loaded(be);
  load_state(path, be, loaded, model);
  tomorrow.guests.push_back({tomorrow.all.join(loaded), today.guests.back().alone});
  CHECK(tomorrow.guests.back().id.slot == 1);
  for (int t = 0; t < 10; ++t) tomorrow.frame(0.8);

  Store<LMGen<duplex_small, B>::State, B> other(be);
  check_refused([&] { load_state(path, be, other); }, "missing tensor 'codes'");
  Store<SmallTalk<B>::State, B> two(be, 2);
  check_refused([&] { load_state(path, be, two); }, "2 sessions");
}
