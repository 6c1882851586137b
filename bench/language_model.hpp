// Timing a Moshi: the frame of a conversation, and a training step. Shared by moshi.cpp and moshi_341m.cpp.
//
// Counted: two FLOPs and one read of every weight that is multiplied with (all but the embeddings) and, in a
// frame, of every attended key and value; three times the FLOPs in training, whose bytes are not counted.
// TTT's inner loops are not counted (see ttt.cpp).
#pragma once

#include "harness.hpp"
#include "mttt/lm/lm_gen.hpp"

namespace bench {

/// Weights that every frame is multiplied with.
template <class Params>
double multiplied_weights(const Params& params) {
  double n = 0;
  mttt::for_each_parameter(
      [&](std::string_view name, const auto& t) {
        if (name.find("emb") == std::string_view::npos) n += static_cast<double>(t.size());
      },
      params);
  return n;
}
/// What reading them takes.
template <class Params>
double multiplied_bytes(const Params& params) {
  double n = 0;
  mttt::for_each_tensor(
      [&](std::string_view name, const auto& t) {
        if (name.find("emb") == std::string_view::npos)
          n += static_cast<double>(t.size()) * static_cast<double>(sizeof(*t.data()));
      },
      params);
  return n;
}

/// Numbers that do not matter, quantised weights among them.
template <class Params>
void fill_weights(Params& params) {
  mttt::for_each_parameter(
      [](std::string_view, auto& p) {
        if constexpr (mttt::is_quantised<std::remove_cvref_t<decltype(p)>>) {
          std::uint32_t word = 12345;
          for (Index i = 0; i < p.values.size(); ++i) {
            word = word * 1664525u + 1013904223u;
            const auto byte = static_cast<std::uint8_t>(word >> 24);
            p.values.data()[i] = static_cast<std::remove_reference_t<decltype(*p.values.data())>>(byte);
          }
          mttt::init_constant(p.scales, 0.03 / (p.values.size() < p.size() ? 8 : 127));
        } else {
          fill_uniform(p.data(), p.size(), 0.03f);
        }
      },
      params);
}

/// Frames of `sessions` conversations that have each lasted `past` frames.
template <mttt::MoshiConfig C, class B = mttt::Cpu<float>>
void converse(Suite& suite, const std::string& name,
              const mttt::Store<typename mttt::Moshi<C, B>::Params, B>& params, Index sessions, Index past) {
  using Gen = mttt::LMGen<C, B>;
  const Index keys = std::min(past, C.temporal.context);
  const double weights = multiplied_weights(*params),
               cache = static_cast<double>(sessions * 2 * keys * C.temporal.dim * C.temporal.num_layers);
  for (const int threads : suite.thread_counts()) {
    B be(threads);
    mttt::Store<typename Gen::State, B> state(be, sessions);
    Gen::reset(be, *params, *state, mttt::Mask{});
    mttt::for_each_tensor(
        [&](std::string_view tensor, auto& t) {
          if (tensor.ends_with("position")) mttt::init_constant(t, static_cast<double>(past));
        },
        *state);
    const auto heard = be.template make<std::int32_t, dyn, Gen::heard_streams>(sessions);
    const auto said = be.template make<std::int32_t, dyn, Gen::spoken>(sessions);
    be.fill(heard.data(), heard.size(), std::int32_t{1});
    suite.run(name + " frame, " + std::to_string(sessions) + (sessions == 1 ? " session, " : " sessions, ") +
                  std::to_string(past) + " past",
              {.threads = threads,
               .flops = 2 * (weights * static_cast<double>(sessions) + cache),
               .bytes = multiplied_bytes(*params) + 4 * cache},
              [&] { Gen::step(be, *params, *state, heard, said, mttt::GenOptions{}); });
  }
}

}  // namespace bench
