// Sessions come, go, fork and return, and each says what it says alone, bit for bit.
#include "sessions_small.hpp"

namespace {
using namespace mttt;
using namespace mttt::testing;
using B = Cpu<float>;
using Talk = SmallTalk<B>;
using Everyone = Sessions<Talk, B>;

struct Fixture {
  static constexpr Index slots = 4;
  Rng rng{5};
  Learned learned{rng};
  B& be = learned.be;
  Company<B> company{be, learned.models(), slots, 11};
  Everyone& all = company.all;

  void frames(Index n, double hears = 1) {
    for (Index t = 0; t < n; ++t) {
      INFO("frame " << t);
      company.frame(hears);
    }
  }
};
}  // namespace

TEST_CASE_METHOD(Fixture, "A session that joins in mid-flight is the one that has all slots for itself") {
  company.join();
  frames(7);
  company.join();
  frames(5);
  all.leave(company.guests.front().id);
  company.guests.pop_front();
  frames(3);
  const SessionId third = company.join().id;
  CHECK(third.slot == 0);
  frames(20, 0.8);
  CHECK(company.audible > 20);
}

TEST_CASE_METHOD(Fixture, "A fork goes on as its origin until it hears something else or draws otherwise") {
  const SessionId origin = company.join().id;
  frames(9);
  const SessionId same = all.fork(origin), other = all.fork(origin);
  all.reseed(other, 77);
  bool differs = false;
  for (Index t = 0; t < 12; ++t) {
    std::vector<float> sound(static_cast<std::size_t>(Talk::frame_size));
    for (float& x : sound) x = static_cast<float>(rng.normal());
    for (const SessionId id : {origin, same, other})
      std::copy(sound.begin(), sound.end(), all.hear(id).data());
    all.step();
    CHECK(laws::detail::same_bits(all.sound(same).data(), all.sound(origin).data(), Talk::frame_size));
    CHECK(same_rows(all.state(), same.slot, all.state(), origin.slot));
    differs = differs ||
              !laws::detail::same_bits(all.sound(other).data(), all.sound(origin).data(), Talk::frame_size);
  }
  CHECK(differs);
  std::fill_n(all.hear(origin).data(), Talk::frame_size, 0.5f);
  std::fill_n(all.hear(same).data(), Talk::frame_size, -0.5f);
  all.step();
  CHECK(!same_rows(all.state(), same.slot, all.state(), origin.slot));
}

TEST_CASE_METHOD(
    Fixture,
    "A conversation that was kept goes on in another slot, in other Sessions, as often as one likes") {
  for (int i = 0; i < 3; ++i) company.join();
  frames(8, 0.7);
  const auto& last = company.guests.back();
  Everyone::Snapshot kept = all.snapshot(last.id);
  Company<B> later(be, learned.models(), slots, 12);
  later.join();
  later.frame(1);
  for (int i = 0; i < 2; ++i) later.guests.push_back({later.all.join(kept), last.alone});
  CHECK(later.guests.back().id.slot == 2);
  CHECK(last.id.slot == 2);
  later.all.leave(later.guests.front().id);
  later.guests.pop_front();
  later.guests.push_back({later.all.join(kept), last.alone});
  CHECK(later.guests.back().id.slot == 0);
  for (int t = 0; t < 12; ++t) later.frame(0.8);
  frames(4);
}

TEST_CASE_METHOD(Fixture, "Any schedule of joining, leaving, starting anew, forking, keeping and returning") {
  for (const std::uint64_t seed : {1u, 2u, 3u}) {
    Company<B> some(be, learned.models(), slots, seed);
    for (Index t = 0; t < 400; ++t) {
      INFO("seed " << seed << ", frame " << t);
      while (some.rng.uniform() < 0.4) some.happen(some.draw(8));
      if (some.guests.empty()) some.join();
      some.frame(0.8);
    }
    for (const Index n : some.happened) CHECK(n >= 5);
    CHECK(some.audible > 300);
  }
}

TEST_CASE_METHOD(Fixture, "A session that hears nothing keeps every bit and is silent") {
  const SessionId quiet = company.join().id, loud = company.join().id;
  frames(6);
  Store<Talk::State, B> before(be, slots);
  for_each_tensor(
      [&](std::string_view, const auto& x, const auto& y) { be.copy(x.data(), y.data(), x.size()); },
      all.state(), *before);
  std::fill_n(all.hear(loud).data(), Talk::frame_size, 0.3f);
  all.step();
  for (Index slot = 0; slot < slots; ++slot)
    CHECK(laws::detail::same_session(all.state(), *before, slot) == (slot != loud.slot));
  CHECK(all.said(loud)(0) != ungenerated_code);
  CHECK(all.said(quiet)(0) == ungenerated_code);
  CHECK(std::all_of(all.sound(quiet).data(), all.sound(quiet).data() + Talk::frame_size,
                    [](float x) { return x == 0; }));
  all.step();  // nobody
  CHECK(all.said(loud)(0) == ungenerated_code);
  CHECK(all.sound(loud)(0, 0) == 0);
}

TEST_CASE_METHOD(Fixture, "A step, a snapshot and a return to it allocate nothing") {
  const SessionId id = company.join().id;
  Everyone::Snapshot room(be);
  const auto frame = [&] {
    std::fill_n(all.hear(id).data(), Talk::frame_size, 0.3f);
    all.step();
    all.snapshot(id, room);
    all.restore(id, room);
    all.leave(all.fork(id));
    all.reset(id, {.seed = 3, .context = 2});
  };
  frame();
  const auto before = allocation_count();
  for (int t = 0; t < 4; ++t) frame();
  CHECK(allocation_count() == before);
}

TEST_CASE_METHOD(Fixture, "What cannot be is refused, and nothing changes") {
  using mttt::test::contains;
  CHECK_THROWS_WITH(Everyone(be, learned.models(), 0), contains("0 slots; expected at least one"));
  std::vector<SessionId> ids;
  for (Index i = 0; i < slots; ++i) ids.push_back(all.join());
  Store<Talk::State, B> before(be, slots);
  const auto all_as_before = [&] {
    for (Index slot = 0; slot < slots; ++slot) {
      if (!laws::detail::same_session(all.state(), *before, slot)) return false;
    }
    return all.taken() == slots;
  };
  for_each_tensor(
      [&](std::string_view, const auto& x, const auto& y) { be.copy(x.data(), y.data(), x.size()); },
      all.state(), *before);
  CHECK_THROWS_WITH(all.join(), contains("sessions in all 4 slots; expected a free slot"));
  CHECK_THROWS_WITH(all.fork(ids[0]), contains("Sessions::fork: found sessions in all 4 slots"));
  Everyone::Snapshot kept = all.snapshot(ids[1]), of_two(be, 2);
  CHECK_THROWS_WITH(all.join(kept), contains("expected a free slot"));
  CHECK_THROWS_WITH(all.restore(ids[0], of_two), contains("a State of 2 sessions; expected a State of one"));
  CHECK_THROWS_WITH(all.snapshot(ids[0], of_two),
                    contains("Sessions::snapshot: found a State of 2 sessions"));
  CHECK_THROWS_WITH(all.reset(ids[0], {.context = -1}),
                    contains("a context of -1 frames; expected 0 or more"));
  CHECK(all_as_before());

  all.leave(ids[2]);
  CHECK(!all.has(ids[2]));
  CHECK_THROWS_WITH(all.hear(ids[2]), contains("session 3 of slot 2, which is not here"));
  CHECK_THROWS_WITH(all.leave(ids[2]),
                    contains("expected one that join or fork of the same Sessions returned"));
  const SessionId next = all.join();
  CHECK(next.slot == 2);
  for (const SessionId id : {ids[2], SessionId{}, SessionId{slots, 1}, SessionId{-1, 1}, SessionId{0, 0}}) {
    CHECK(!all.has(id));
    CHECK_THROWS_AS(all.said(id), Error);
    CHECK_THROWS_AS(all.heard(id), Error);
    CHECK_THROWS_AS(all.sound(id), Error);
    CHECK_THROWS_AS(all.reset(id), Error);
    CHECK_THROWS_AS(all.reseed(id, 1), Error);
    CHECK_THROWS_AS(all.snapshot(id), Error);
    CHECK_THROWS_AS(all.restore(id, kept), Error);
    CHECK_THROWS_AS(all.fork(id), Error);
  }
}
