// Batches: random segments of coded recordings; micro-batch i of a training is a function of (seed, i) alone.
//
// Rule:    segment b of micro-batch i draws Philox at counter i * batch + b: a recording, with a chance in
//          proportion to its frames, then a first frame after which a whole segment is left. A shorter
//          recording is taken from its start and padded with -1, which the loss leaves out.
// Shapes:  codes (B, K, T).
// Units:   frames.
// Errors:  no recordings; recordings of different streams, frame rates, codecs; a batch or length below 1.
// Not supported: every segment exactly once an epoch; recordings larger than memory.
// Source:  none.
#pragma once

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "mttt/core/rng.hpp"
#include "mttt/data/codes.hpp"

namespace mttt {

struct BatchOptions {
  Index batch, frames;  // segments a micro-batch, frames a segment
  std::uint64_t seed = 0;
};

class Batches {
 public:
  Batches(std::vector<CodedRecording> recordings, BatchOptions options)
      : recordings_(std::move(recordings)), options_(options) {
    if (options.batch < 1 || options.frames < 1) {
      fail("Batches",
           std::to_string(options.batch) + " segments of " + std::to_string(options.frames) + " frames",
           "one or more of each", "correct the batch and the duration");
    }
    if (recordings_.empty()) fail("Batches", "no recordings", "at least one", "encode some first");
    for (std::size_t i = 0; i < recordings_.size(); ++i) {
      check_codes(recordings_[i], "recording " + std::to_string(i));
      check_alike(i);
      total_frames_ += recordings_[i].frames;
    }
  }

  Index streams() const { return recordings_[0].streams; }
  Index total_frames() const { return total_frames_; }
  double frame_rate() const { return recordings_[0].frame_rate; }
  const std::vector<CodedRecording>& recordings() const { return recordings_; }

  struct Segment {
    std::size_t recording;
    Index start;
  };
  Segment segment(std::int64_t index, Index b) const {
    const auto counter = static_cast<std::uint64_t>(index * options_.batch + b);
    const PhiloxBlock draw = philox(options_.seed, counter, stream_of_numbers);
    Index frame = scaled(draw.word[0], draw.word[1], total_frames_);
    std::size_t i = 0;
    for (; frame >= recordings_[i].frames; ++i) frame -= recordings_[i].frames;
    const Index spare = recordings_[i].frames - options_.frames;
    return {i, spare > 0 ? scaled(draw.word[2], draw.word[3], spare + 1) : 0};
  }

  /// Fills codes (B, K, T) in the host's memory with micro-batch `index`.
  void fill(std::int64_t index, Tensor<std::int32_t, dyn, dyn, dyn> codes) const {
    if (codes.extents() != std::array<Index, 3>{options_.batch, streams(), options_.frames}) {
      fail("Batches::fill", "another shape", "(batch, streams, frames)",
           "make the tensor of the options' extents");
    }
    for (Index b = 0; b < options_.batch; ++b) {
      const Segment from = segment(index, b);
      const CodedRecording& recording = recordings_[from.recording];
      const Index have = std::min(options_.frames, recording.frames - from.start);
      for (Index k = 0; k < streams(); ++k) {
        const std::int32_t* source = recording.stream(k).data() + from.start;
        std::int32_t* target = &codes(b, k, 0);
        std::copy_n(source, have, target);
        std::fill(target + have, target + options_.frames, -1);
      }
    }
  }

  /// Micro-batch `index` in the backend's arena.
  template <class B>
  Tensor<std::int32_t, dyn, dyn, dyn> make(B& be, std::int64_t index) const {
    const auto codes =
        be.template make<std::int32_t, dyn, dyn, dyn>(options_.batch, streams(), options_.frames);
    std::vector<std::int32_t> host(static_cast<std::size_t>(codes.size()));
    fill(index, {host.data(), codes.extents()});
    be.to_device(host.data(), codes.data(), codes.size());
    return codes;
  }

 private:
  static constexpr std::uint64_t stream_of_numbers = 0x6261746368;  // apart from other draws of the same seed

  /// A whole number in [0, n) from 64 random bits.
  static Index scaled(std::uint32_t low, std::uint32_t high, Index n) {
    const std::uint64_t word = low | (static_cast<std::uint64_t>(high) << 32);
    return static_cast<Index>((static_cast<unsigned __int128>(word) * static_cast<std::uint64_t>(n)) >> 64);
  }

  void check_alike(std::size_t i) const {
    const CodedRecording &a = recordings_[0], &b = recordings_[i];
    const auto text = [](const CodedRecording& r) {
      return std::to_string(r.streams) + " streams at " + std::to_string(r.frame_rate) +
             " frames a second, text_card " + std::to_string(r.text_card) + ", card " +
             std::to_string(r.card) + ", codec '" + r.codec + "'";
    };
    if (a.streams == b.streams && a.frame_rate == b.frame_rate && a.text_card == b.text_card &&
        a.card == b.card && a.codec == b.codec)
      return;
    fail("recording " + std::to_string(i), text(b), text(a) + ", as recording 0",
         "encode all recordings with one codec and one tokenizer");
  }

  std::vector<CodedRecording> recordings_;
  BatchOptions options_;
  Index total_frames_ = 0;
};

}  // namespace mttt
