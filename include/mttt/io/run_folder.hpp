// The folder of one training run: metrics.jsonl and the newest few training checkpoints.
//
// Layout:  FOLDER/metrics.jsonl, FOLDER/step_000100.safetensors; where segments go on from each other,
//          FOLDER/carried_000100.safetensors beside it, which is written first: a training checkpoint that is
//          there is complete. So are files of other trainings beside it (FOLDER/NAME_000100.safetensors: the
//          discriminator of a codec), save_beside. Several ranks train in one folder, in which the first one writes: what their
//          sessions carry is joined in the order of the ranks, so that another number of ranks may go on.
// Shapes:  none.   Units: those of StepReport.
// Errors:  a folder that cannot be made; what files and checkpoints throw.
// Not supported: two runs in one folder at a time.
// Source:  none.
#pragma once

#include <optional>

#include "mttt/core/concepts.hpp"
#include "mttt/io/checkpoint.hpp"
#include "mttt/io/json_lines.hpp"

namespace mttt {

class RunFolder {
 public:
  template <class R = OneRank>
  explicit RunFolder(std::filesystem::path folder, int keep = 3, const R& ranks = {})
      : folder_(std::move(folder)), keep_(keep) {
    if (ranks.rank() != 0) return;
    make_folders(folder_);
    metrics_.emplace(folder_ / "metrics.jsonl");
  }

  const std::filesystem::path& path() const { return folder_; }

  /// Appends a line with the report and the fields of `more` (the losses of single streams, say).
  void log(const StepReport& report, const nlohmann::json& more = nlohmann::json::object()) {
    if (!metrics_) return;
    nlohmann::json line = {{"step", report.step},
                           {"max_steps", report.max_steps},
                           {"loss", report.loss},
                           {"lr", report.learning_rate},
                           {"grad_norm", report.gradient_norm},
                           {"frames_per_second", report.frames_per_second},
                           {"seconds", report.seconds}};
    line.update(more);
    metrics_->append(line);
  }

  /// Saves, then removes all but the newest `keep` checkpoints (0 keeps all). `carried` is what the next
  /// segment starts from; `leave_out`: see save_training. All ranks call it.
  template <class P, class B, class M, class R, class S = NoState>
  void save(B& be, const Trainer<P, B, M, R>& trainer, const nlohmann::json& config = {},
            const Store<S, B>* carried = nullptr, const LeaveOut& leave_out = {}) {
    if (carried != nullptr)
      save_rows(file("carried", trainer.adam.step), be, *carried, trainer.ranks(), config);
    save_training(file("step", trainer.adam.step), be, trainer, config, leave_out);
    if (metrics_) remove_old();
  }

  /// Another trainer's checkpoint, that belongs to step `step` of the run's own and is saved before it.
  template <class P, class B, class M, class R>
  void save_beside(const char* name, std::int64_t step, B& be, const Trainer<P, B, M, R>& other,
                   const nlohmann::json& config = {}) {
    save_training(file(name, step), be, other, config);
  }
  /// Whether there was one.
  template <class P, class B, class M, class R>
  bool resume_beside(const char* name, std::int64_t step, B& be, Trainer<P, B, M, R>& other,
                     const nlohmann::json& config = {}) {
    if (!std::filesystem::exists(file(name, step))) return false;
    load_training(file(name, step), be, other, config);
    return true;
  }

  /// The checkpoint of the highest step; nothing in a fresh folder.
  std::optional<std::filesystem::path> newest() const { return newest_in(folder_); }
  /// The same of any folder, which need not be that of a run.
  static std::optional<std::filesystem::path> newest_in(const std::filesystem::path& folder) {
    const auto all = checkpoints(folder);
    return all.empty() ? std::nullopt : std::optional(all.back().second);
  }

  /// Goes on from the newest checkpoint and notes so in the metrics; whether there was one. All ranks call
  /// it: each reads what it needs of the checkpoint that the first one has found.
  template <class P, class B, class M, class R, class S = NoState>
  bool resume(B& be, Trainer<P, B, M, R>& trainer, const nlohmann::json& config = {},
              Store<S, B>* carried = nullptr) {
    const auto all = metrics_ ? checkpoints(folder_) : std::vector<Checkpoint>{};
    const double step = trainer.ranks().sum(all.empty() ? 0 : 1 + static_cast<double>(all.back().first));
    if (step == 0) return false;
    load_training(file("step", static_cast<long long>(step) - 1), be, trainer, config);
    if (carried != nullptr)
      load_rows(file("carried", trainer.adam.step), be, *carried, trainer.ranks(), config);
    if (!metrics_) return true;
    remove_old();         // a run that was killed may have left one too many
    nlohmann::json line;  // not braces in the call, which nvcc garbles
    line["resumed_at"] = trainer.adam.step;
    metrics_->append(line);  // later lines replace earlier ones past this step
    return true;
  }

 private:
  using Checkpoint = std::pair<long long, std::filesystem::path>;

  /// The rows of a state that each rank has, of those of all.
  template <class S, class B, class R>
  static RankParts rows_of(const Store<S, B>& own, const R& ranks) {
    RankParts parts =
        even_parts(static_cast<Index>(ranks.sum(static_cast<double>(own.batch()))), ranks.size());
    const Index expected = parts[static_cast<std::size_t>(ranks.rank())].count;
    if (own.batch() != expected) {
      fail("sessions of rank " + std::to_string(ranks.rank()), std::to_string(own.batch()),
           std::to_string(expected), "share the sessions out as even_parts does");
    }
    return parts;
  }

  template <class S, class B, class R>
  static void save_rows(const std::filesystem::path& path, B& be, const Store<S, B>& own, const R& ranks,
                        const nlohmann::json& config) {
    if (ranks.size() == 1) return save_state(path, be, own, config);
    const RankParts rows = rows_of(own, ranks);
    const bool first = ranks.rank() == 0;
    Cpu<float> host;
    Store<S, Cpu<float>> all(host, first ? rows.back().from + rows.back().count : own.batch());
    for_each_tensor(
        [&](std::string_view, const auto& mine, auto& joined) {
          const Index width =
              mine.size() / std::max<Index>(1, own.batch()) *
              static_cast<Index>(sizeof(typename std::remove_cvref_t<decltype(mine)>::value_type));
          std::vector<std::byte> bytes(static_cast<std::size_t>(width * own.batch()));
          be.to_host(reinterpret_cast<const std::byte*>(mine.data()), bytes.data(), width * own.batch());
          RankParts parts = rows;
          for (RankPart& part : parts) part.from *= width, part.count *= width;
          ranks.gather(bytes.data(), first ? reinterpret_cast<std::byte*>(joined.data()) : nullptr, parts);
        },
        *own, *all);
    if (first) save_state(path, host, all, config);
  }
  template <class S, class B, class R>
  static void load_rows(const std::filesystem::path& path, B& be, Store<S, B>& own, const R& ranks,
                        const nlohmann::json& config) {
    if (ranks.size() == 1) return load_state(path, be, own, config);
    const RankParts rows = rows_of(own, ranks);
    Cpu<float> host;
    Store<S, Cpu<float>> all(host, rows.back().from + rows.back().count);
    load_state(path, host, all, config);
    for_each_tensor(
        [&](std::string_view, auto& mine, const auto& joined) {
          const Index width = mine.size() / std::max<Index>(1, own.batch());
          be.to_device(joined.data() + rows[static_cast<std::size_t>(ranks.rank())].from * width, mine.data(),
                       mine.size());
        },
        *own, *all);
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
      const std::string end = file("", all[i].first).filename().string();  // what is saved beside it
      for (const auto& item : std::filesystem::directory_iterator(folder_))
        if (item.path().filename().string().ends_with(end)) std::filesystem::remove(item.path());
    }
  }

  static std::vector<Checkpoint> checkpoints(const std::filesystem::path& folder) {
    std::vector<Checkpoint> all;
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
  std::optional<JsonLines> metrics_;  // of the first rank
};

}  // namespace mttt
