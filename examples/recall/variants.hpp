// What is compared: models of one size (compiled, in files of their own) and with what they start (numbers).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "mttt/core/tensor.hpp"
#include "mttt/io/json.hpp"

namespace recalls {

using mttt::Index;

/// Segments of these recordings, one after the other, until so many steps are done.
struct Stage {
  std::string data;
  Index frames;
  std::int64_t steps;
};

/// A manifest of conversations with questions, or of recordings without.
struct Test {
  std::string name, data;
};

struct Settings {
  std::vector<Stage> stages;
  std::vector<Test> tests;
  Index frames_a_step = 4800;
  double lr = 1e-3, text_padding_weight = 0.1;
  double text_embedding = 1, outputs = 1;  // times their usual start: the text's embedding, what layers add
  std::int64_t look_every = 250;           // steps between two looks at some of the tests
  Index looked_at = 24;                    // recordings of each test then; at the end all
  std::string from, save;                  // checkpoints
};

struct Variant {
  const char *name, *says;
  nlohmann::json (*run)(const Variant&, const Settings&, std::uint64_t seed);
  double base_lr = 1, gate = 0.1;
};

// Each is compiled in a file of its own.
nlohmann::json local(const Variant&, const Settings&, std::uint64_t seed);
nlohmann::json full(const Variant&, const Settings&, std::uint64_t seed);
nlohmann::json linear(const Variant&, const Settings&, std::uint64_t seed);
nlohmann::json narrow(const Variant&, const Settings&, std::uint64_t seed);
nlohmann::json mlp(const Variant&, const Settings&, std::uint64_t seed);
nlohmann::json after(const Variant&, const Settings&, std::uint64_t seed);
nlohmann::json before(const Variant&, const Settings&, std::uint64_t seed);
nlohmann::json instead(const Variant&, const Settings&, std::uint64_t seed);

inline constexpr Variant variants[] = {
    {"local", "attention in a window", local},
    {"full", "attention over the whole stream", full},
    {"linear", "the window, TTT-Linear beside attention", linear},
    {"narrow", "a window of 16 frames, TTT-Linear beside attention", narrow},
    {"mlp", "the window, TTT-MLP beside attention", mlp, 0.1},
    {"after", "the window, TTT-Linear after attention", after},
    {"before", "the window, TTT-Linear before attention", before},
    {"instead", "TTT-Linear instead of attention but in the first layer", instead},
};

}  // namespace recalls
