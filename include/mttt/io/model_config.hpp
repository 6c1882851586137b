// The configuration of a model as JSON, which a checkpoint carries: the fields of the published config.json.
//
// Formula, shapes: see lm/moshi.hpp.
// Units:   contexts and delays in frames.
// Errors:  none; expect_config (io/config.hpp) compares.
// Not supported: reading a JSON into a config: shapes are compile time, a file can only agree or not.
// Source:  kyutai-labs/moshi models/loaders.py `_lm_kwargs`.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "mttt/lm/moshi.hpp"

namespace mttt {

inline const char* name_of(TttVariant variant) { return variant == TttVariant::lm ? "lm" : "video"; }
inline const char* name_of(Placement placement) {
  switch (placement) {
    case Placement::after_attention:
      return "after_attention";
    case Placement::before_attention:
      return "before_attention";
    case Placement::parallel:
      return "parallel";
    case Placement::instead_of_attention:
      return "instead_of_attention";
  }
  return "";
}

/// `preset` is the name under which the config was compiled.
template <MoshiConfig C>
nlohmann::json config_json(const std::string& preset) {
  nlohmann::json delays = nlohmann::json::array(), layers = nlohmann::json::array();
  for (Index k = 0; k < C.streams(); ++k) delays.push_back(C.delays.of[k]);
  for (Index i = 0; i < C.temporal.num_layers; ++i) {
    if (C.temporal.ttt_layers.contains(i)) layers.push_back(i);
  }
  nlohmann::json json = {{"preset", preset},
                         {"n_q", C.n_q},
                         {"dep_q", C.dep_q},
                         {"card", C.card},
                         {"text_card", C.text_card},
                         {"existing_text_padding_id", C.existing_text_padding_id},
                         {"delays", delays},
                         {"dim", C.temporal.dim},
                         {"num_heads", C.temporal.num_heads},
                         {"kv_repeat", C.temporal.kv_repeat},
                         {"num_layers", C.temporal.num_layers},
                         {"gating_hidden", C.temporal.hidden},
                         {"context", C.temporal.context},
                         {"max_period", C.temporal.max_period},
                         {"depformer_dim", C.depformer.dim},
                         {"depformer_num_heads", C.depformer.num_heads},
                         {"depformer_num_layers", C.depformer.num_layers},
                         {"depformer_gating_hidden", C.depformer.hidden}};
  if (C.lora.rank > 0) json["lora"] = {{"rank", C.lora.rank}, {"scaling", C.lora.scaling}};
  if (!layers.empty()) {
    constexpr TttConfig ttt = C.temporal.ttt_config();
    json["ttt"] = {{"layers", layers},
                   {"placement", name_of(C.temporal.placement)},
                   {"layer_context", C.temporal.ttt_layer_context},
                   {"variant", name_of(ttt.variant)},
                   {"num_heads", ttt.num_heads},
                   {"mini_batch_size", ttt.mini_batch_size},
                   {"inner_layers", ttt.layers},
                   {"expansion", ttt.expansion},
                   {"rope", ttt.rope},
                   {"rope_theta", ttt.rope_theta}};
    if (ttt.inner_clip > 0) json["ttt"]["inner_clip"] = ttt.inner_clip;
  }
  return json;
}

}  // namespace mttt
