// A conversation from sound to sound of a few thousand weights: two streams heard, three spoken, delays of all
// kinds, a TTT layer.
#pragma once

#include "mimi_small.hpp"
#include "moshi_small.hpp"
#include "mttt/lm/duplex.hpp"

namespace mttt::testing {

inline constexpr MoshiConfig duplex_small = [] {
  MoshiConfig c = moshi_small;
  c.n_q = 5;
  c.card = mimi_small.quantizer.card;
  c.delays = {1, 0, 2, 1, 1, 0};
  return c;
}();

template <class B>
using SmallTalk = Duplex<Mimi<mimi_small, B>, LMGen<duplex_small, B>, B>;

/// What was learned: at random, in the host's memory.
struct Learned {
  using B = Cpu<float>;
  using Codec = Mimi<mimi_small, B>;
  using Model = Moshi<duplex_small, B>;
  B be;
  Store<Codec::Params, B> codec{be};
  Store<Codec::Codebooks, B> books{be};
  Store<Model::Params, B> lm;

  explicit Learned(Rng& rng) : lm(laws::random_params<Model>(be, {.perturbation = 0.3}, rng)) {
    Codec::init(*codec, rng);
    Codec::derive(be, *codec, *books);
  }
  SmallTalk<B>::Models models() const { return {*codec, *books, *lm}; }
};

/// Sound for all, some of them active, a few starting anew with another seed.
template <class Input>
void anything(const Input& in, Rng& rng) {
  laws::fill_normal(in.pcm, 1, rng);
  for (Index b = 0; b < in.active.extent(0); ++b) {
    in.active(b) = rng.uniform() < 0.7;
    in.reset(b) = rng.uniform() < 0.1;
    in.seed(b) = static_cast<std::int64_t>(rng.below(1000));
  }
}

}  // namespace mttt::testing
