// Sessions beside the same conversations, each with all slots for itself: no bit may differ.
#pragma once

#include <array>
#include <iterator>
#include <list>

#include "duplex_small.hpp"
#include "mttt/lm/gates.hpp"
#include "mttt/lm/sessions.hpp"

namespace mttt::testing {

inline constexpr GenOptions lively{.text = {.temperature = 0.9, .top_k = 6},
                                   .audio = {.temperature = 1.1, .top_k = 0}};

/// Whether row i of a State and row j of another hold the same bits; both in the host's memory.
template <class S>
bool same_rows(const S& a, Index i, const S& b, Index j) {
  bool same = true;
  for_each_tensor(
      [&](std::string_view, const auto& x, const auto& y) {
        const Index width = x.size() / x.extent(0);
        same = same && laws::detail::same_bits(x.data() + i * width, y.data() + j * width, width);
      },
      a, b);
  return same;
}

/// What a session sounds like, says and has heard in a frame.
struct Reply {
  std::vector<float> sound;
  std::vector<std::int32_t> said, heard;
  bool operator==(const Reply&) const = default;
};

/// One conversation in a batch of empty slots: Talk by hand.
template <class B>
class Alone {
 public:
  using Talk = SmallTalk<B>;
  using Models = typename Talk::Models;

  Alone(B& be, const Models& models, Index slots, Index row, const SessionOptions& options)
      : be_(be),
        models_(models),
        row_(row),
        state_(be, slots),
        in_(be, slots),
        out_(be, slots),
        host_in_(host_, slots),
        host_out_(host_, slots) {
    reset(options);
  }
  Alone(const Alone& other)
      : be_(other.be_),
        models_(other.models_),
        row_(other.row_),
        state_(other.be_, other.state_),
        in_(other.be_, other.in_),
        out_(other.be_, other.out_),
        host_in_(host_, other.host_in_),
        host_out_(host_, other.host_out_) {}

  void reset(const SessionOptions& options) {
    host_in_->seed(row_) = options.seed;
    upload(be_, host_in_, in_);
    Talk::reset(be_, models_, *state_, Mask{}, in_->seed);
    if (options.context != 0) set_context(be_, state_->lm, options.context);
  }
  void reseed(std::int64_t seed) { be_.fill(state_->lm.seed.data() + row_, 1, seed); }

  Reply frame(const std::vector<float>& sound) {
    std::copy(sound.begin(), sound.end(), &host_in_->pcm(row_, 0, 0));
    host_in_->active(row_) = 1;
    upload(be_, host_in_, in_);
    Talk::step(be_, models_, *state_, {in_->pcm, in_->active, {}, {}}, *out_, lively);
    download(be_, out_, host_out_);
    const auto row = [&](const auto& t) {
      const Index width = t.size() / t.extent(0);
      return std::vector(t.data() + row_ * width, t.data() + (row_ + 1) * width);
    };
    return {row(host_out_->pcm), row(host_out_->said), row(host_out_->heard)};
  }
  Index row() const { return row_; }
  Store<typename Talk::State, Cpu<float>> state() {
    Store<typename Talk::State, Cpu<float>> copy(host_, state_.batch());
    download(be_, state_, copy);
    return copy;
  }

 private:
  B& be_;
  Models models_;
  Index row_;
  Cpu<float> host_{1};
  Store<typename Talk::State, B> state_;
  Store<typename Talk::Input, B> in_;
  Store<typename Talk::Output, B> out_;
  Store<typename Talk::Input, Cpu<float>> host_in_;
  Store<typename Talk::Output, Cpu<float>> host_out_;
};

/// Sessions and, for each, the same conversation alone, whose row need not be the session's slot.
template <class B>
class Company {
 public:
  using Talk = SmallTalk<B>;
  using Everyone = Sessions<Talk, B>;
  using Single = Alone<B>;

  Company(B& be, const typename Talk::Models& models, Index slots, std::uint64_t seed)
      : rng(seed), be_(be), models_(models), all(be, models, slots, lively) {}

  struct Guest {
    SessionId id;
    Single alone;
  };
  struct Kept {
    typename Everyone::Snapshot session;
    Single alone;
  };

  Index draw(Index n) { return static_cast<Index>(rng.below(static_cast<std::uint64_t>(n))); }
  SessionOptions options() {
    return {.seed = draw(1000), .context = rng.uniform() < 0.4 ? 1 + draw(duplex_small.temporal.context) : 0};
  }
  Guest& join() {
    const SessionOptions chosen = options();
    guests.push_back({all.join(chosen), Single(be_, models_, all.slots(), draw(all.slots()), chosen)});
    return guests.back();
  }

  /// Something that may happen between two frames; `kind` 0 to 7.
  void happen(Index kind) {
    const bool room = all.taken() < all.slots(), any = !guests.empty(), memory = !kept.empty();
    const auto one_of = [&](auto& list) {
      return list.empty() ? list.end() : std::next(list.begin(), draw(static_cast<Index>(list.size())));
    };
    const auto guest = one_of(guests);
    const auto past = one_of(kept);
    const auto count = [&] { ++happened[static_cast<std::size_t>(kind)]; };
    if (kind == 0 && room) join(), count();
    if (kind == 1 && any) {
      all.leave(guest->id), count();
      guests.erase(guest);
    }
    if (kind == 2 && any) {
      const SessionOptions anew = options();
      all.reset(guest->id, anew), guest->alone.reset(anew), count();
    }
    if (kind == 3 && any && room) {
      guests.push_back({all.fork(guest->id), guest->alone}), count();
    }
    if (kind == 4 && any) {
      if (kept.size() == 3) kept.pop_front();
      kept.push_back({all.snapshot(guest->id), guest->alone}), count();
    }
    if (kind == 5 && memory && room) {
      guests.push_back({all.join(past->session), past->alone}), count();
    }
    if (kind == 6 && any && memory) {
      const SessionId id = guest->id;
      all.restore(id, past->session), count();
      guests.erase(guest);
      guests.push_back({id, past->alone});
    }
    if (kind == 7 && any) {
      const std::int64_t seed = draw(1000);
      all.reseed(guest->id, seed), guest->alone.reseed(seed), count();
    }
  }

  /// One frame, in which a guest hears something with this probability.
  void frame(double hears) {
    constexpr std::size_t size = static_cast<std::size_t>(Talk::frame_size * Talk::channels);
    const Reply none{std::vector<float>(size), std::vector<std::int32_t>(1 + Talk::voices, ungenerated_code),
                     std::vector<std::int32_t>(Talk::hears, ungenerated_code)};
    std::vector<Reply> expected;
    for (Guest& guest : guests) {
      expected.push_back(none);
      if (rng.uniform() >= hears) continue;
      std::vector<float> sound(size);
      for (float& x : sound) x = static_cast<float>(rng.normal());
      std::copy(sound.begin(), sound.end(), all.hear(guest.id).data());
      expected.back() = guest.alone.frame(sound);
      audible += expected.back().said[0] != ungenerated_code;
    }
    all.step();
    Cpu<float> host(1);
    Store<typename Talk::State, Cpu<float>> states(host, all.slots());
    for_each_tensor([&](std::string_view, const auto& from,
                        const auto& to) { be_.to_host(from.data(), to.data(), from.size()); },
                    all.state(), *states);
    auto reply = expected.begin();
    for (Guest& guest : guests) {
      INFO("slot " << guest.id.slot << ", alone in row " << guest.alone.row());
      const auto same = [](const auto& from, const auto& to) {
        return laws::detail::same_bits(from.data(), to.data(), to.size());
      };
      CHECK(same(reply->sound, all.sound(guest.id)));
      CHECK(same(reply->said, all.said(guest.id)));
      CHECK(same(reply->heard, all.heard(guest.id)));
      ++reply;
      const auto alone = guest.alone.state();
      REQUIRE(same_rows(*states, guest.id.slot, *alone, guest.alone.row()));
    }
  }

  Rng rng;

 private:
  B& be_;
  typename Talk::Models models_;

 public:
  Everyone all;
  std::list<Guest> guests;
  std::list<Kept> kept;
  std::array<Index, 8> happened{};
  Index audible = 0;
};

}  // namespace mttt::testing
