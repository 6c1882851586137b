// Loads a folder that reference.py wrote and compares what the models make of the same codes and sounds.
//
//   compare FOLDER [bf16]
//
// It prints a line for each comparison, differences in parts of the largest value, and answers 1 if one is
// too large. A config.json that is refused, or tensors that do not fit, are printed too; what can go on goes
// on.
#pragma once

#include <chrono>
#include <cstdio>

#include "mttt/io/published.hpp"
#include "mttt/presets/mimi.hpp"
#include "mttt/presets/moshi.hpp"

namespace mttt::full_size {

/// `small` of reference.py.
inline constexpr MoshiConfig small{
    .n_q = 16,
    .dep_q = 8,
    .card = 2048,
    .text_card = 500,
    .delays = {0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1},
    .temporal = {.dim = 256, .num_heads = 4, .num_layers = 3, .hidden = 704, .context = 3000},
    .depformer = {.dim = 128, .num_heads = 4, .num_layers = 2, .hidden = 352}};

class Clock {
 public:
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

struct Report {
  bool good = true;
  /// Ours against theirs; NaN of theirs is where there is nothing to compare.
  template <class T>
  void difference(const char* what, const std::vector<T>& ours, const std::vector<float>& theirs, Index width,
                  double tolerance) {
    double off = 0, largest = 0;
    Index same = 0, rows = 0;
    for (std::size_t at = 0; at + static_cast<std::size_t>(width) <= theirs.size();
         at += static_cast<std::size_t>(width)) {
      if (std::isnan(theirs[at])) continue;
      std::size_t a = at, b = at;
      for (std::size_t i = at; i < at + static_cast<std::size_t>(width); ++i) {
        const double mine = static_cast<double>(ours[i]), other = static_cast<double>(theirs[i]);
        const double error = std::abs(mine - other);
        off = error <= off ? off : error;  // takes NaN
        largest = std::max(largest, std::abs(other));
        if (static_cast<double>(ours[a]) < mine) a = i;
        if (theirs[b] < theirs[i]) b = i;
      }
      same += a == b, ++rows;
    }
    const bool fits = ours.size() == theirs.size() && rows > 0 && largest > 0 && off <= tolerance * largest;
    good = good && fits;
    std::printf("%-14s difference %.2e of %.3g (limit %.0e), likeliest equal in %td of %td rows: %s\n", what,
                off / largest, largest, tolerance, same, rows, fits ? "good" : "BAD");
  }
  template <class F>
  bool attempt(const char* what, F&& f) {
    try {
      const Clock clock;
      f();
      std::printf("%-14s %.1f s\n", what, clock.seconds());
      return true;
    } catch (const Error& error) {
      good = false;
      std::printf("%-14s BAD: %s\n", what, error.what());
      return false;
    }
  }
};

template <class B, class T, Index... E>
std::vector<std::remove_const_t<T>> to_host(B& be, Tensor<T, E...> t) {
  std::vector<std::remove_const_t<T>> values(static_cast<std::size_t>(t.size()));
  be.to_host(t.data(), values.data(), t.size());
  return values;
}

template <MoshiConfig C, class B>
void compare_moshi(B& be, ModelFiles files, const SafetensorsFile& reference, Report& report,
                   double tolerance) {
  using Model = Moshi<C, B>;
  if (!report.attempt("config.json", [&] { expect_published_config<C>("config.json", files.config); }))
    files.config_file.clear();
  Store<typename Model::Params, B> params(be);
  if (!report.attempt("load Moshi", [&] { load_moshi<C>(files, be, params); })) return;
  std::printf("%-14s %.2f GB\n", "", static_cast<double>(params.bytes()) * 1e-9);

  const auto scope = be.scope();
  const auto& entry = reference.at("codes");
  const auto codes =
      be.template make<std::int32_t, dyn, dyn, dyn>(entry.shape[0], entry.shape[1], entry.shape[2]);
  const auto values = reference.read<std::int32_t>(entry);
  be.to_device(values.data(), codes.data(), codes.size());
  typename Model::Saved saved;
  const Clock clock;
  const auto out = Model::forward(be, *params, codes, saved);
  const auto text = to_host(be, out.text_logits);
  std::printf("%-14s %.2f s\n", "forward", clock.seconds());
  report.difference("text logits", text, reference.read<float>(reference.at("text_logits")), C.text_card,
                    tolerance);
  report.difference("audio logits", to_host(be, out.logits), reference.read<float>(reference.at("logits")),
                    C.card, tolerance);
}

/// Mimi stores float32 here, whatever the language model does.
template <class B>
void compare_mimi(B& be, const ModelFiles& files, const SafetensorsFile& reference, Report& report,
                  double tolerance) {
  using Codec = Mimi<presets::mimi_24khz, B>;
  Store<typename Codec::Params, B> params(be);
  if (!report.attempt("load Mimi", [&] { load_mimi<presets::mimi_24khz>(files, be, params); })) return;
  Store<typename Codec::Codebooks, B> books(be);
  Codec::derive(be, *params, *books);

  const auto scope = be.scope();
  const auto pcm = reference.read<float>(reference.at("pcm"));
  const auto& entry = reference.at("pcm_codes");
  const auto theirs = reference.read<std::int32_t>(entry);
  const Index codebooks = entry.shape[1], frames = entry.shape[2];
  const auto sound = be.template make<float, dyn, dyn, 1>(Index{1}, static_cast<Index>(pcm.size()));
  be.to_device(pcm.data(), sound.data(), sound.size());
  const auto codes = be.template make<std::int32_t, dyn, dyn, dyn>(Index{1}, codebooks, frames);
  Codec::encode(be, *params, *books, sound, codes);
  const auto ours = to_host(be, codes);
  Index equal = 0;
  for (std::size_t i = 0; i < ours.size(); ++i) equal += ours[i] == theirs[i];
  // A tie within rounding changes a code, and with it those of the following codebooks of its frame.
  const bool fits = equal * 100 >= 99 * static_cast<Index>(ours.size());
  report.good = report.good && fits;
  std::printf("%-14s %td of %zu equal: %s\n", "codes of Mimi", equal, ours.size(), fits ? "good" : "BAD");

  be.to_device(theirs.data(), codes.data(), codes.size());
  const auto back = be.template make<float, dyn, dyn, 1>(Index{1}, frames * Codec::frame_size);
  Codec::decode(be, *params, *books, codes, back);
  report.difference("sound of Mimi", to_host(be, back), reference.read<float>(reference.at("pcm_back")),
                    frames * Codec::frame_size, tolerance);
}

/// B stores what the language model stores.
template <MoshiConfig C, class B, class Codec>
int compare(const std::filesystem::path& folder, B& be, Codec& codec_be, double tolerance) {
  const auto files = find_model(folder);
  const SafetensorsFile reference(folder / "reference.safetensors");
  Report report;
  if (reference.find("pcm_back")) compare_mimi(codec_be, files, reference, report, 2e-4);
  if (reference.find("logits")) compare_moshi<C>(be, files, reference, report, tolerance);
  report.good = report.good && reference.find("pcm_back") && reference.find("logits");
  std::printf("%s\n", report.good ? "all good" : "NOT all good");
  return report.good ? 0 : 1;
}

template <template <class> class Device>
int run(int argc, char** argv) {
  try {
    if (argc < 2) fail("compare", "no folder", "compare FOLDER [bf16]");
    const std::filesystem::path folder = argv[1];
    const bool half = argc > 2 && std::string_view(argv[2]) == "bf16";
    const bool large = find_model(folder).config.value("hidden_size", 0) == 4096;
    const auto with = [&]<class T>(T, double tolerance) {
      Device<T> be;
      auto codec = be.template as<float>();
      return large ? compare<presets::moshi_7b>(folder, be, codec, tolerance)
                   : compare<small>(folder, be, codec, tolerance);
    };
    // bf16 keeps 8 bits, and 32 layers add up what they round.
    return half ? with(bf16{}, 5e-2) : with(float{}, 2e-4);
  } catch (const std::exception& error) {
    std::printf("compare: %s\n", error.what());
    return 1;
  }
}

}  // namespace mttt::full_size
