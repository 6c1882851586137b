// The folder of one training run: metrics.jsonl and the newest few training checkpoints.
//
// Layout:  FOLDER/metrics.jsonl, FOLDER/step_000100.safetensors; where segments go on from each other,
//          FOLDER/carried_000100.safetensors beside it, which is written first: a training checkpoint that is
//          there is complete.
// Shapes:  none.   Units: those of StepReport.
// Errors:  a folder that cannot be made; what files and checkpoints throw.
// Not supported: two runs in one folder at a time.
// Source:  none.
#pragma once

#include "mttt/core/concepts.hpp"
#include "mttt/io/checkpoint.hpp"
#include "mttt/io/json_lines.hpp"

namespace mttt {

class RunFolder {
 public:
  explicit RunFolder(std::filesystem::path folder, int keep = 3)
      : folder_(made(std::move(folder))), keep_(keep), metrics_(folder_ / "metrics.jsonl") {}

  const std::filesystem::path& path() const { return folder_; }

  /// Appends a line with the report and the fields of `more` (the losses of single streams, say).
  void log(const StepReport& report, const nlohmann::json& more = nlohmann::json::object()) {
    nlohmann::json line = {{"step", report.step},
                           {"max_steps", report.max_steps},
                           {"loss", report.loss},
                           {"lr", report.learning_rate},
                           {"grad_norm", report.gradient_norm},
                           {"frames_per_second", report.frames_per_second},
                           {"seconds", report.seconds}};
    line.update(more);
    metrics_.append(line);
  }

  /// Saves, then removes all but the newest `keep` checkpoints (0 keeps all). `carried` is what the next
  /// segment starts from.
  template <class P, class B, class M, class S = NoState>
  void save(B& be, const Trainer<P, B, M>& trainer, const nlohmann::json& config = {},
            const Store<S, B>* carried = nullptr) {
    if (carried != nullptr) save_state(file("carried", trainer.adam.step), be, *carried, config);
    save_training(file("step", trainer.adam.step), be, trainer, config);
    remove_old();
  }

  /// The checkpoint of the highest step; nothing in a fresh folder.
  std::optional<std::filesystem::path> newest() const { return newest_in(folder_); }
  /// The same of any folder, which need not be that of a run.
  static std::optional<std::filesystem::path> newest_in(const std::filesystem::path& folder) {
    const auto all = checkpoints(folder);
    return all.empty() ? std::nullopt : std::optional(all.back().second);
  }

  /// Goes on from the newest checkpoint and notes so in the metrics; whether there was one.
  template <class P, class B, class M, class S = NoState>
  bool resume(B& be, Trainer<P, B, M>& trainer, const nlohmann::json& config = {},
              Store<S, B>* carried = nullptr) {
    const auto path = newest();
    if (!path) return false;
    load_training(*path, be, trainer, config);
    if (carried != nullptr) load_state(file("carried", trainer.adam.step), be, *carried, config);
    remove_old();         // a run that was killed may have left one too many
    nlohmann::json line;  // not braces in the call, which nvcc garbles
    line["resumed_at"] = trainer.adam.step;
    metrics_.append(line);  // later lines replace earlier ones past this step
    return true;
  }

 private:
  static std::filesystem::path made(std::filesystem::path folder) {
    make_folders(folder);
    return folder;
  }

  std::filesystem::path file(const char* what, long long step) const {
    char name[64];
    std::snprintf(name, sizeof name, "%s_%06lld.safetensors", what, step);
    return folder_ / name;
  }

  void remove_old() const {
    const auto all = checkpoints(folder_);
    if (keep_ <= 0) return;
    for (std::size_t i = 0; i + static_cast<std::size_t>(keep_) < all.size(); ++i) {
      std::filesystem::remove(all[i].second);
      std::filesystem::remove(file("carried", all[i].first));
    }
  }

  static std::vector<std::pair<long long, std::filesystem::path>> checkpoints(
      const std::filesystem::path& folder) {
    std::vector<std::pair<long long, std::filesystem::path>> all;
    for (const auto& item : std::filesystem::directory_iterator(folder)) {
      long long step = 0;
      int end = 0;
      const std::string name = item.path().filename().string();
      if (std::sscanf(name.c_str(), "step_%lld.safetensors%n", &step, &end) == 1 &&
          end == static_cast<int>(name.size()))
        all.emplace_back(step, item.path());
    }
    std::sort(all.begin(), all.end());
    return all;
  }

  std::filesystem::path folder_;
  int keep_;
  JsonLines metrics_;
};

}  // namespace mttt
