// Hostile states of a conversation: what a file puts into one must be refused, or go on frame by frame.
#include "fuzz.hpp"
#include "laws/duplex_small.hpp"
#include "mttt/io/checkpoint.hpp"

namespace {
using namespace mttt;
using B = Cpu<float>;

using Codec = Mimi<testing::mimi_small, B>;
using Gen = LMGen<testing::duplex_small, B>;
using Talk = testing::SmallTalk<B>;

struct Conversation {
  static constexpr Index batch = 2;
  B be{1};
  Store<Codec::Params, B> codec{be};
  Store<Codec::Codebooks, B> books{be};
  Store<Gen::Params, B> lm{be};
  Store<Talk::State, B> state{be, batch};
  Store<Talk::Input, B> in{be, batch};
  Store<Talk::Output, B> out{be, batch};
  Talk::Models models{*codec, *books, *lm};

  Conversation() {
    Rng rng(1);
    Codec::init(*codec, rng);
    Codec::derive(be, *codec, *books);
    Gen::Model::init(*lm, rng);
    Talk::reset(be, models, *state, Mask{});
    in->active(0) = 1;
  }
  /// Session 0 goes on, session 1 waits: it must stay as it is.
  void step(Index frames) {
    const Store<Talk::State, B> before(be, state);
    for (Index t = 0; t < frames; ++t) {
      for (Index i = 0; i < in->pcm.size(); ++i)
        in->pcm.data()[i] = 0.01f * static_cast<float>((7 * i + t) % 50);
      Talk::step(be, models, *state, *in, *out, {});
      // What is said can be looked up by those who listen.
      for (Index k = 0; k < Gen::spoken; ++k) {
        if (out->said(0, k) < ungenerated_code || out->said(0, k) > testing::duplex_small.card) std::abort();
      }
    }
    for_each_tensor(
        [&](std::string_view, const auto& now, const auto& old) {
          const Index row = now.size() / batch;
          if (row > 0 && !std::equal(now.data() + row, now.data() + 2 * row, old.data() + row)) std::abort();
        },
        *state, *before);
  }
};
}  // namespace

void seeds(const std::filesystem::path& folder) {
  Conversation talk;
  save_state(folder / "fresh", talk.be, talk.state);
  talk.step(3);
  save_state(folder / "early", talk.be, talk.state);
  talk.step(8);
  save_state(folder / "late", talk.be, talk.state);
}

void try_file(const std::filesystem::path& path, std::span<const std::byte>) {
  static Conversation talk;
  const bool on = fuzz::accepted([&] { load_state(path, talk.be, talk.state); });
  if (on) talk.step(4);
  fuzz::accepted([&] { load_state(path, talk.be, talk.lm); });
}
