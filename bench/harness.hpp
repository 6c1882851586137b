// Timing with the machine's peaks measured next to every figure, one table for all benchmarks.
//
// Formula: time = median over rounds of (batch time / repetitions);
//          spread = (third quartile - first) / median;
//          share of a peak = median over rounds of figure / peak, where each round measures the peak right
//          before the figure, so that a ratio holds on a machine that other programs use too.
//          Peaks: GEMM is Eigen's own float product of 1024^3; read is the sum of 256 MB in four streams;
//          copy is 256 MB copied with vector instructions, its bytes counted once read and once written.
// Shapes:  none.
// Units:   seconds, bytes and operations within; ms, MB, MFLOP, GFLOP/s and GB/s in print, powers of ten.
// Errors:  unknown arguments print the usage and exit 2.
// Not supported: peaks of other types than float.
// Source:  the roofline model (Williams, Waterman, Patterson 2009); STREAM for the copy.
#pragma once

#include <unistd.h>

#include <Eigen/Core>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "mttt/backend/cpu/cpu.hpp"
#include "mttt/core/rng.hpp"
#include "mttt/core/store.hpp"

namespace bench {

using mttt::dyn;
using mttt::Index;

/// Keeps a result alive in the eyes of the optimiser.
template <class T>
inline void keep(const T& value) {
  asm volatile("" : : "r"(&value) : "memory");
}

/// Seconds of the wall, or of this thread's processor time: on a machine that others keep busy, a figure of
/// one thread still holds by the latter.
inline bool processor_time = false;
inline double now() {
  if (processor_time) {
    timespec t{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
  }
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

inline double quantile(std::vector<double> values, double q) {
  std::sort(values.begin(), values.end());
  const double at = q * static_cast<double>(values.size() - 1);
  const auto low = static_cast<std::size_t>(at), high = std::min(low + 1, values.size() - 1);
  return values[low] + (at - std::floor(at)) * (values[high] - values[low]);
}
inline double median(const std::vector<double>& values) { return quantile(values, 0.5); }

/// Cheap numbers in [-1, 1) for buffers whose values do not matter but must not be denormal or equal.
inline void fill_uniform(float* data, Index n, float scale = 1) {
  std::uint32_t word = 12345;
  for (Index i = 0; i < n; ++i) {
    word = word * 1664525u + 1013904223u;
    data[i] = scale * (static_cast<float>(word >> 8) * 0x1p-23f - 1.0f);
  }
}
template <class Aggregate>
void fill_tensors(Aggregate& aggregate, float scale) {
  mttt::for_each_tensor(
      [&](std::string_view, auto& t) {
        if constexpr (std::is_same_v<std::remove_cvref_t<decltype(*t.data())>, float>) {
          fill_uniform(t.data(), t.size(), scale);
        }
      },
      aggregate);
}

/// What the programs here are told; whether to be quick.
inline bool read_arguments(int argc, char** argv, std::string& json) {
  bool quick = false;
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    if (argument == "--quick") {
      quick = true;
    } else if (argument == "--cpu-time") {
      processor_time = true;
    } else if (argument == "--json" && i + 1 < argc) {
      json = argv[++i];
    } else {
      std::fprintf(stderr, "%s: found argument %s; expected [--quick] [--cpu-time] [--json FILE]\n", argv[0],
                   argv[i]);
      std::exit(2);
    }
  }
  return quick;
}

enum class Against { read, copy };  // which bandwidth the bytes are held against

/// What a case moves and computes, counted by formula.
struct Work {
  int threads = 1;
  double flops = 0;
  double bytes = 0;
  Against against = Against::read;
};

struct Row {
  std::string name;
  Work work;
  double seconds, best, spread;
  double gemm, bandwidth;              // peaks, per second
  double gemm_share, bandwidth_share;  // medians of the rounds' ratios
};

/// The peaks' work; each call runs one once and returns FLOP/s or bytes/s.
class Peaks {
 public:
  explicit Peaks(bool quick)
      : n_(quick ? Index{1} << 20 : Index{1} << 26),
        from_(n_ * 4),
        to_(n_ * 4),
        a_(Eigen::MatrixXf::Random(size(quick), size(quick))),
        b_(Eigen::MatrixXf::Random(size(quick), size(quick))),
        c_(a_) {
    fill_uniform(static_cast<float*>(from_.data()), n_);
  }

  double gemm(int threads) {
    Eigen::setNbThreads(threads);
    const double start = now();
    c_.noalias() = a_ * b_;
    keep(c_);
    const double cube =
        static_cast<double>(a_.rows()) * static_cast<double>(a_.rows()) * static_cast<double>(a_.rows());
    return 2 * cube / (now() - start);
  }
  double read(int threads) {
    const double seconds = split(threads, [](const float* x, float*, Index n) {
      Packet sum[8];  // of four streams, which the processor fetches faster than one
      for (auto& s : sum) s = Eigen::internal::pset1<Packet>(0.0f);
      for (Index i = 0; i < n / 4; i += 2 * width) {
        for (Index k = 0; k < 8; ++k) {
          const float* at = x + k / 2 * (n / 4) + i + k % 2 * width;
          sum[k] = Eigen::internal::padd(sum[k], Eigen::internal::ploadu<Packet>(at));
        }
      }
      for (Index k = 1; k < 8; ++k) sum[0] = Eigen::internal::padd(sum[0], sum[k]);
      const float total = Eigen::internal::predux(sum[0]);
      keep(total);
    });
    return static_cast<double>(n_) * 4 / seconds;
  }
  double copy(int threads) {
    const double seconds = split(threads, [](const float* x, float* y, Index n) {
      for (Index i = 0; i < n; i += width) {
        Eigen::internal::pstoreu(y + i, Eigen::internal::ploadu<Packet>(x + i));
      }
    });
    return static_cast<double>(n_) * 8 / seconds;
  }

 private:
  using Packet = Eigen::internal::packet_traits<float>::type;
  static constexpr Index width = Eigen::internal::packet_traits<float>::size;
  static Index size(bool quick) { return quick ? 128 : 1024; }

  template <class F>
  double split(int threads, const F& f) {
    const auto* x = static_cast<const float*>(from_.data());
    auto* y = static_cast<float*>(to_.data());
    const double start = now();
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int t = 0; t < threads; ++t) {
      const Index begin = n_ / 1024 * t / threads * 1024, end = n_ / 1024 * (t + 1) / threads * 1024;
      f(x + begin, y + begin, end - begin);
    }
    return now() - start;
  }

  Index n_;
  mttt::CpuMemory from_, to_;
  Eigen::MatrixXf a_, b_, c_;
};

/// One program's cases: measures each when it is added, prints all at the end.
class Suite {
 public:
  Suite(std::string name, int argc, char** argv)
      : name_(std::move(name)), quick_(read_arguments(argc, argv, json_)), peaks_(quick_) {
#ifdef _OPENMP
    if (!processor_time) all_ = omp_get_max_threads();
#endif
    for (int i = 0; i < 2; ++i) peaks_.gemm(all_), peaks_.copy(all_);  // pages touched, clock up
  }

  bool quick() const { return quick_; }
  int all_threads() const { return all_; }
  /// 1 and all threads, once each.
  std::vector<int> thread_counts() const {
    return all_ > 1 ? std::vector<int>{1, all_} : std::vector<int>{1};
  }

  /// Times f and keeps a row. f runs once a repetition.
  void run(std::string name, Work work, const std::function<void()>& f) {
    f();
    const double start = now();
    f();
    const double once = std::max(1e-9, now() - start);
    const double wanted = quick_ ? 0 : 0.03;
    const int repetitions = static_cast<int>(std::clamp(wanted / once, 1.0, 1e6));
    const int rounds = quick_ ? 1 : std::clamp(static_cast<int>(1.0 / (once * repetitions)), 5, 11);

    std::vector<double> seconds, gemm, bandwidth, gemm_share, bandwidth_share;
    for (int round = 0; round < rounds; ++round) {
      const double peak_flops = work.flops > 0 ? peaks_.gemm(work.threads) : 0;
      const double peak_bytes = work.bytes <= 0                 ? 0
                                : work.against == Against::read ? peaks_.read(work.threads)
                                                                : peaks_.copy(work.threads);
      f();  // the peaks have emptied the caches
      const double begin = now();
      for (int i = 0; i < repetitions; ++i) f();
      const double each = (now() - begin) / repetitions;
      seconds.push_back(each);
      gemm.push_back(peak_flops), bandwidth.push_back(peak_bytes);
      gemm_share.push_back(peak_flops > 0 ? work.flops / each / peak_flops : 0);
      bandwidth_share.push_back(peak_bytes > 0 ? work.bytes / each / peak_bytes : 0);
    }
    const double middle = median(seconds);
    rows_.push_back({std::move(name), work, middle, quantile(seconds, 0),
                     (quantile(seconds, 0.75) - quantile(seconds, 0.25)) / middle, median(gemm),
                     median(bandwidth), median(gemm_share), median(bandwidth_share)});
    if (isatty(2) != 0) std::fprintf(stderr, "\r%-78.78s", rows_.back().name.c_str());
  }

  /// A line below the table.
  void note(std::string text) { notes_.push_back(std::move(text)); }
  const Row& last() const { return rows_.back(); }

  /// Prints the table, writes the JSON file; the program's exit status.
  int finish() {
    if (isatty(2) != 0) std::fprintf(stderr, "\r%78s\r", "");
    std::size_t wide = 4;
    for (const Row& row : rows_) wide = std::max(wide, row.name.size());
    std::printf("%s%s\n", name_.c_str(),
                quick_           ? " (quick: figures mean nothing)"
                : processor_time ? " (processor time, 1 thread)"
                                 : "");
    std::printf("%-*s  thr        ms    best  +-%%     MFLOP       MB  GFLOP/s %%GEMM    GB/s   %%BW\n",
                static_cast<int>(wide), "case");
    for (const Row& row : rows_) print(row, static_cast<int>(wide));
    print_peaks();
    for (const std::string& text : notes_) std::printf("%s\n", text.c_str());
    std::printf("\n");
    if (!json_.empty()) write_json();
    return 0;
  }

 private:
  static void print(const Row& row, int wide) {
    const Work& w = row.work;
    std::printf("%-*s  %3d  %8.4g %7.4g %4.0f", wide, row.name.c_str(), w.threads, row.seconds * 1e3,
                row.best * 1e3, 100 * row.spread);
    std::printf(w.flops > 0 ? "  %8.4g" : "         -", w.flops * 1e-6);
    std::printf(w.bytes > 0 ? " %8.4g" : "        -", w.bytes * 1e-6);
    std::printf(w.flops > 0 ? " %8.4g  %4.0f" : "        -     -", w.flops / row.seconds * 1e-9,
                100 * row.gemm_share);
    std::printf(w.bytes > 0 ? " %7.4g  %4.0f%s\n" : "       -     -\n", w.bytes / row.seconds * 1e-9,
                100 * row.bandwidth_share, w.against == Against::read ? "r" : "c");
  }

  /// Medians over all rows that used a peak.
  void print_peaks() const {
    for (int threads : thread_counts()) {
      std::vector<double> gemm, read, copy;
      for (const Row& row : rows_) {
        if (row.work.threads != threads) continue;
        if (row.gemm > 0) gemm.push_back(row.gemm);
        if (row.bandwidth > 0) (row.work.against == Against::read ? read : copy).push_back(row.bandwidth);
      }
      std::printf("peaks, %d thread%s:", threads, threads == 1 ? "" : "s");
      if (!gemm.empty()) std::printf("  GEMM %.4g GFLOP/s", median(gemm) * 1e-9);
      if (!read.empty()) std::printf("  read (r) %.4g GB/s", median(read) * 1e-9);
      if (!copy.empty()) std::printf("  copy (c) %.4g GB/s", median(copy) * 1e-9);
      std::printf("\n");
    }
  }

  void write_json() const {
    std::ofstream out(json_);
    out.precision(6);
    out << "{\"bench\": \"" << name_ << "\", \"quick\": " << (quick_ ? "true" : "false") << ", \"rows\": [";
    const char* comma = "\n";
    for (const Row& row : rows_) {
      out << comma << "{\"case\": \"" << row.name << "\", \"threads\": " << row.work.threads
          << ", \"seconds\": " << row.seconds << ", \"best\": " << row.best << ", \"spread\": " << row.spread
          << ", \"flops\": " << row.work.flops << ", \"bytes\": " << row.work.bytes << ", \"against\": \""
          << (row.work.against == Against::read ? "read" : "copy") << "\""
          << ", \"peak_flops\": " << row.gemm << ", \"peak_bytes\": " << row.bandwidth
          << ", \"flops_share\": " << row.gemm_share << ", \"bytes_share\": " << row.bandwidth_share << "}";
      comma = ",\n";
    }
    out << "\n]}\n";
    if (!out) {
      std::fprintf(stderr, "%s: found a file that cannot be written; expected a writable path\n",
                   json_.c_str());
      std::exit(2);
    }
  }

  std::string name_, json_;
  bool quick_;
  int all_ = 1;
  Peaks peaks_;
  std::vector<Row> rows_;
  std::vector<std::string> notes_;
};

}  // namespace bench
