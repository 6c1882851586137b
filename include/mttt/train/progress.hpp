// What a training program shows and hears: a progress line, and the signals that ask it to stop.
//
// Shapes:  none.   Units: seconds, frames.
// Errors:  none.
// Not supported: systems without POSIX; several StopSignals at a time.
// Source:  POSIX.1-2017 sigaction, isatty.
#pragma once

#include <unistd.h>
#include <cmath>

#include <csignal>
#include <cstdint>
#include <cstdio>
#include <string>

namespace mttt {

/// One optimiser step as it is reported: to the progress line and to the metrics file.
struct StepReport {
  std::int64_t step, max_steps;
  double loss, learning_rate, gradient_norm;  // the norm before clipping
  double frames_per_second;                   // since run() was called
  double seconds, seconds_left;
};

/// "1h02m", "2m10s", "7s"
inline std::string duration_text(double seconds) {
  const long long s = std::llround(seconds);
  char text[48];
  if (s >= 3600) {
    std::snprintf(text, sizeof text, "%lldh%02lldm", s / 3600, s / 60 % 60);
  } else if (s >= 60) {
    std::snprintf(text, sizeof text, "%lldm%02llds", s / 60, s % 60);
  } else {
    std::snprintf(text, sizeof text, "%llds", s);
  }
  return text;
}

inline std::string progress_text(const StepReport& r) {
  char text[200];
  std::snprintf(text, sizeof text, "step %lld/%lld  loss %.4f  lr %.2e  |grad| %.3f  %.0f frames/s  %s left",
                static_cast<long long>(r.step), static_cast<long long>(r.max_steps), r.loss, r.learning_rate,
                r.gradient_norm, r.frames_per_second, duration_text(r.seconds_left).c_str());
  return text;
}

/// On a terminal one line that is rewritten at every step, elsewhere a line for each step to be logged.
class ProgressLine {
 public:
  /// Null: silent.
  explicit ProgressLine(std::FILE* out) : out_(out), terminal_(out != nullptr && ::isatty(::fileno(out))) {}
  ~ProgressLine() {
    if (open_) std::fputc('\n', out_);
  }
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;

  void show(const StepReport& report, bool logged) {
    if (out_ == nullptr || !(terminal_ || logged)) return;
    std::fprintf(out_, terminal_ ? "\r\033[K%s" : "%s\n", progress_text(report).c_str());
    std::fflush(out_);
    open_ = terminal_;
  }

 private:
  std::FILE* out_;
  bool terminal_, open_ = false;
};

/// While it lives, SIGINT, SIGTERM and SIGUSR1 (SLURM: `--signal=USR1@120` before the time is up) set a flag. A
/// second signal of the same kind ends the program at once.
class StopSignals {
 public:
  StopSignals() {
    flag() = 0;
    struct sigaction action {};
    action.sa_handler = [](int) { flag() = 1; };
    action.sa_flags = static_cast<int>(SA_RESETHAND | SA_RESTART);
    ::sigaction(SIGINT, &action, &old_interrupt_);  // the second Ctrl-C ends it
    action.sa_flags = SA_RESTART;                   // timeout and mpirun may send these twice
    ::sigaction(SIGTERM, &action, &old_terminate_);
    ::sigaction(SIGUSR1, &action, &old_user_);
  }
  ~StopSignals() {
    ::sigaction(SIGINT, &old_interrupt_, nullptr);
    ::sigaction(SIGTERM, &old_terminate_, nullptr);
    ::sigaction(SIGUSR1, &old_user_, nullptr);
  }
  StopSignals(const StopSignals&) = delete;
  StopSignals& operator=(const StopSignals&) = delete;

  bool requested() const { return flag() != 0; }

 private:
  static volatile std::sig_atomic_t& flag() {
    static volatile std::sig_atomic_t raised = 0;
    return raised;
  }
  struct sigaction old_interrupt_ {
  }, old_terminate_{}, old_user_{};
};

}  // namespace mttt
