// Where a program hears and speaks, frame by frame: sound files, or raw samples through standard input and
// output, so that `arecord | stream | aplay` talks.
//
// Raw samples are mono, of the codec's rate, s16le or f32le. One frame goes out for each that came in,
// silence too. An input that pauses is waited for; what ends within a frame is filled up with silence; an interrupt
// ends the conversation after the frame that is being answered, as the end of the input does.
#pragma once

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "mttt/core/tensor.hpp"
#include "mttt/io/file.hpp"
#ifdef MTTT_HAS_AUDIO
#include "mttt/io/audio.hpp"
#endif

enum class RawFormat { s16le, f32le };
inline std::size_t bytes_of(RawFormat format) { return format == RawFormat::s16le ? 2 : 4; }

/// While it lives, Ctrl-C and SIGTERM only raise a flag, once (the second ends the process), and a reader
/// that has gone is an error of write().
class Interrupts {
 public:
  Interrupts() {
    interrupted = 0;
    struct sigaction action {};
    action.sa_handler = [](int) { interrupted = 1; };
    action.sa_flags = static_cast<int>(SA_RESETHAND);  // no SA_RESTART: a read that waits must end
    ::sigaction(SIGINT, &action, &old_[0]);
    ::sigaction(SIGTERM, &action, &old_[1]);
    action.sa_handler = SIG_IGN, action.sa_flags = 0;
    ::sigaction(SIGPIPE, &action, &old_[2]);
  }
  Interrupts(const Interrupts&) = delete;
  Interrupts& operator=(const Interrupts&) = delete;
  ~Interrupts() {
    ::sigaction(SIGINT, &old_[0], nullptr);
    ::sigaction(SIGTERM, &old_[1], nullptr);
    ::sigaction(SIGPIPE, &old_[2], nullptr);
  }
  static bool asked() { return interrupted != 0; }

 private:
  static inline volatile std::sig_atomic_t interrupted = 0;
  struct sigaction old_[3];
};

[[noreturn]] inline void fail_without_audio(const std::string& name) {
  mttt::fail(name, "a sound file, for a program that was built without libsndfile and soxr", "-",
             "name - and pipe raw samples through it, or build with both libraries");
}

/// Frames to be heard, of a file or of standard input.
class Microphone {
 public:
  Microphone(const std::string& name, RawFormat format, int rate, mttt::Index frame)
      : raw_(name == "-"), format_(format), frame_(static_cast<std::size_t>(frame)) {
    if (!raw_) open(name, rate);
    if (raw_ && ::isatty(STDIN_FILENO)) {
      mttt::fail("standard input", "a terminal", "raw samples",
                 "pipe them in, as from: arecord -q -t raw -f S16_LE -r 24000 -c 1");
    }
    bytes_.resize(frame_ * bytes_of(format_));
  }

  /// False at the end; else fills `out`, with silence where the sound ends earlier.
  bool next(float* out) {
    std::fill_n(out, frame_, 0.0f);
    if (raw_) return next_raw(out);
    const std::size_t left = samples_.size() - at_, n = std::min(frame_, left);
    std::copy_n(samples_.begin() + static_cast<std::ptrdiff_t>(at_), n, out);
    at_ += n;
    return n > 0 && !Interrupts::asked();
  }

 private:
  void open([[maybe_unused]] const std::string& name, [[maybe_unused]] int rate) {
#ifdef MTTT_HAS_AUDIO
    samples_ = mttt::load_mono(name, rate, mttt::Convert::yes).samples;
#else
    fail_without_audio(name);
#endif
  }

  bool next_raw(float* out) {
    const std::size_t each = bytes_of(format_), got = read_bytes();
    if (Interrupts::asked() || got == 0) return false;
    if (got % each != 0) std::fprintf(stderr, "the input ends within a sample, which is left out\n");
    for (std::size_t i = 0; i < got / each; ++i, ++at_) {
      std::int16_t whole = 0;
      if (format_ == RawFormat::s16le) {
        std::memcpy(&whole, bytes_.data() + i * each, each);
        out[i] = static_cast<float>(whole) / 32768;
      } else {
        std::memcpy(out + i, bytes_.data() + i * each, each);
        if (!(std::abs(out[i]) <= 8)) {  // NaN would stay in the conversation for ever
          mttt::fail("standard input", mttt::detail::cat(out[i], " at sample ", at_),
                     "samples between -1 and 1", "check that they are of the format that --raw says");
        }
      }
    }
    return true;
  }
  /// A whole frame, or what is left of the last one.
  std::size_t read_bytes() {
    std::size_t got = 0;
    int waited = 0;  // quarters of a second
    while (got < bytes_.size() && !Interrupts::asked()) {
      pollfd input{STDIN_FILENO, POLLIN, 0};
      const int ready = ::poll(&input, 1, 250);
      if (ready == 0 && ++waited == 8) std::fprintf(stderr, "waiting for input\n");
      if (ready <= 0) continue;
      waited = 0;
      const auto n = ::read(STDIN_FILENO, bytes_.data() + got, bytes_.size() - got);
      if (n < 0 && (errno == EINTR || errno == EAGAIN)) continue;
      if (n < 0) mttt::detail::fail_system("standard input", "reading it", errno);
      if (n == 0) break;
      got += static_cast<std::size_t>(n);
    }
    return got;
  }

  bool raw_;
  RawFormat format_;
  std::size_t frame_, at_ = 0;
  std::vector<float> samples_;
  std::vector<char> bytes_;
};

/// Frames that were said: kept for a file that is written at the end, or written at once.
class Speaker {
 public:
  Speaker(const std::string& name, RawFormat format, int rate, mttt::Index frame)
      : name_(name), format_(format), rate_(rate), frame_(static_cast<std::size_t>(frame)) {
    if (raw() && ::isatty(STDOUT_FILENO)) {
      mttt::fail("standard output", "a terminal", "a program or a file that takes raw samples",
                 "pipe them, as into: aplay -q -t raw -f S16_LE -r 24000 -c 1");
    }
#ifndef MTTT_HAS_AUDIO
    if (!raw()) fail_without_audio(name_);
#endif
  }
  bool raw() const { return name_ == "-"; }
  /// The reader of standard output has gone: there is nobody to speak to.
  bool closed() const { return closed_; }

  /// `audible` is false for the first frames, which say nothing yet: a file leaves them out.
  void say(const float* pcm, bool audible) {
    if (!raw()) {
      if (audible) samples_.insert(samples_.end(), pcm, pcm + frame_);
      return;
    }
    std::vector<char> bytes(frame_ * bytes_of(format_));
    for (std::size_t i = 0; i < frame_; ++i) {
      const float x = std::clamp(pcm[i], -1.0f, 1.0f);
      const auto whole = static_cast<std::int16_t>(std::lround(x * 32767));
      if (format_ == RawFormat::s16le) std::memcpy(bytes.data() + 2 * i, &whole, 2);
      if (format_ == RawFormat::f32le) std::memcpy(bytes.data() + 4 * i, pcm + i, 4);
    }
    write(bytes);
  }
  void finish() {
#ifdef MTTT_HAS_AUDIO
    if (!raw()) mttt::write_audio(name_, {samples_, 1, rate_}, mttt::SampleFormat::pcm16);
#endif
  }

 private:
  void write(const std::vector<char>& bytes) {
    for (std::size_t at = 0; at < bytes.size() && !closed_;) {
      const auto n = ::write(STDOUT_FILENO, bytes.data() + at, bytes.size() - at);
      if (n < 0 && errno == EPIPE) closed_ = true;
      if (n < 0 && errno == EINTR && !Interrupts::asked()) continue;
      if (n < 0 && errno == EINTR) closed_ = true;  // a reader that stalls must not keep us from ending
      if (n < 0 && !closed_) mttt::detail::fail_system("standard output", "writing a frame", errno);
      at += static_cast<std::size_t>(std::max<std::ptrdiff_t>(n, 0));
    }
  }

  std::string name_;
  RawFormat format_;
  [[maybe_unused]] int rate_;
  std::size_t frame_;
  std::vector<float> samples_;
  bool closed_ = false;
};
