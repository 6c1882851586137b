// Batches: segments of coded recordings; micro-batch i of a training is a function of (seed, i) alone.
//
// Rule:    A recording belongs to a source, and sources are drawn by their weights.
//          random      segment b of micro-batch i draws Philox at counter i * whole + b: a source, a recording
//                      with a chance in proportion to its frames, then a first frame after which a whole
//                      segment is left.
//          sequential  the batch has lanes; each plays a recording from its start to its end, a segment a
//                      micro-batch, then takes the next one of the queue. Place q of the queue draws a source,
//                      whose recordings come in their order, over and over.
//          What a recording lacks of a segment is -1, which the loss leaves out. Where segments grow longer
//          in a later stage of the training, lanes go on from where they are.
// Shapes:  codes (B, K, T).
// Units:   frames.
// Errors:  no recordings; recordings of different streams, frame rates, codecs; a batch or length below 1;
//          sources without recordings, weights that are not above 0.
// Not supported: every random segment exactly once an epoch; sequential segments of one object asked for
//          by several threads.
// Source:  kyutai-labs/moshi-finetune finetune/data/dataset.py `interleave_iterators`.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "mttt/core/rng.hpp"
#include "mttt/data/codes.hpp"
#include "mttt/train/ranks.hpp"

namespace mttt {

enum class Order { random, sequential };

/// From a micro-batch on, segments of another length.
struct LengthStage {
  std::int64_t first;
  Index frames;
};

struct BatchOptions {
  Index batch, frames;  // segments a micro-batch, frames a segment
  std::uint64_t seed = 0;
  Index first = 0, whole = 0;  // these are segments [first, first + batch) of `whole`; 0: all there are
  Order order = Order::random;
  std::vector<LengthStage> stages = {};  // after `frames`, each later than the one before
};

/// What one of several ranks has of each micro-batch: the segments of its lanes. The whole micro-batch is the same,
/// however many share it.
inline BatchOptions share_of(BatchOptions all, int rank, int size) {
  if (all.batch < size) {
    fail("a micro-batch for " + std::to_string(size) + " ranks", std::to_string(all.batch) + " segments",
         "one or more a rank", "start fewer processes, or raise batch_size");
  }
  const RankPart part = even_parts(all.batch, size)[static_cast<std::size_t>(rank)];
  all.whole = all.batch;
  all.first = part.from;
  all.batch = part.count;
  return all;
}

/// Recordings that are drawn together.
struct DataSource {
  std::vector<CodedRecording> recordings;
  double weight = 1;
};

class Batches {
 public:
  Batches(std::vector<CodedRecording> recordings, BatchOptions options)
      : Batches(one_source(std::move(recordings)), std::move(options)) {}
  Batches(std::vector<DataSource> sources, BatchOptions options) : options_(std::move(options)) {
    if (options_.batch < 1 || options_.frames < 1) {
      fail("Batches",
           std::to_string(options_.batch) + " segments of " + std::to_string(options_.frames) + " frames",
           "one or more of each", "correct the batch and the duration");
    }
    std::int64_t before = 0;
    for (const LengthStage& stage : options_.stages) {
      if (stage.frames < 1 || stage.first <= before)
        fail("Batches",
             "segments of " + std::to_string(stage.frames) + " frames from micro-batch " +
                 std::to_string(stage.first) + " on",
             "one frame or more, later than micro-batch " + std::to_string(before), "correct the stages");
      before = stage.first;
    }
    for (DataSource& source : sources) {
      const std::string name = "source " + std::to_string(sources_.size());
      if (!(source.weight > 0) || !std::isfinite(source.weight))
        fail(name, "weight " + std::to_string(source.weight), "a number above 0", "correct the weights");
      if (source.recordings.empty())
        fail(sources.size() == 1 ? "Batches" : name, "no recordings", "at least one", "encode some first");
      Span span{recordings_.size(), recordings_.size() + source.recordings.size(), 0, 0};
      for (CodedRecording& recording : source.recordings) {
        check_codes(recording, "recording " + std::to_string(recordings_.size()));
        recordings_.push_back(std::move(recording));
        check_alike(recordings_.size() - 1);
        span.frames += recordings_.back().frames;
      }
      total_frames_ += span.frames;
      total_weight_ += source.weight;
      span.weight_end = total_weight_;
      sources_.push_back(span);
    }
    if (recordings_.empty()) fail("Batches", "no recordings", "at least one", "encode some first");
    if (options_.whole == 0) options_.whole = options_.batch;
    if (options_.first < 0 || options_.first + options_.batch > options_.whole) {
      fail("Batches", "segments from " + std::to_string(options_.first) + " on",
           std::to_string(options_.batch) + " of " + std::to_string(options_.whole), "use share_of");
    }
  }

  Index streams() const { return recordings_[0].streams; }
  Index total_frames() const { return total_frames_; }
  double frame_rate() const { return recordings_[0].frame_rate; }
  const std::vector<CodedRecording>& recordings() const { return recordings_; }
  const BatchOptions& options() const { return options_; }
  Index frames_at(std::int64_t index) const {
    Index frames = options_.frames;
    for (const LengthStage& stage : options_.stages) {
      if (index >= stage.first) frames = stage.frames;
    }
    return frames;
  }

  struct Segment {
    std::size_t recording;
    Index start;
    bool continues = false;  // goes on where this lane's segment of the micro-batch before ended
  };
  Segment segment(std::int64_t index, Index b) const {
    b += options_.first;
    if (options_.order == Order::sequential) return lanes_at(index)[static_cast<std::size_t>(b)];
    const auto counter = static_cast<std::uint64_t>(index * options_.whole + b);
    const PhiloxBlock draw = philox(options_.seed, counter, stream_of_numbers);
    const Span& source = sources_[source_at(counter)];
    Index frame = scaled(draw.word[0], draw.word[1], source.frames);
    std::size_t i = source.first;
    for (; frame >= recordings_[i].frames; ++i) frame -= recordings_[i].frames;
    const Index spare = recordings_[i].frames - frames_at(index);
    return {i, spare > 0 ? scaled(draw.word[2], draw.word[3], spare + 1) : 0};
  }

  /// Fills codes (B, K, T) in the host's memory with micro-batch `index`.
  void fill(std::int64_t index, Tensor<std::int32_t, dyn, dyn, dyn> codes) const {
    const Index frames = frames_at(index);
    expect_shape(codes, frames, "(batch, streams, frames)");
    for (Index b = 0; b < options_.batch; ++b) {
      const Segment from = segment(index, b);
      const CodedRecording& recording = recordings_[from.recording];
      const Index have = std::min(frames, recording.frames - from.start);
      for (Index k = 0; k < streams(); ++k) {
        std::int32_t* target = &codes(b, k, 0);
        recording.read(k, from.start, {target, static_cast<std::size_t>(have)});
        std::fill(target + have, target + frames, -1);
      }
    }
  }
  /// The frames before micro-batch `index`, (B, K, any number), which the delays of a segment that goes on
  /// reach back to; where a recording starts, initial(k).
  template <class F>
  void fill_before(std::int64_t index, Tensor<std::int32_t, dyn, dyn, dyn> codes, F&& initial) const {
    const Index n = codes.extent(2);
    expect_shape(codes, n, "(batch, streams, any number)");
    for (Index b = 0; b < options_.batch; ++b) {
      const Segment from = segment(index, b);
      const Index have = from.continues ? std::min(n, from.start) : 0;
      for (Index k = 0; k < streams(); ++k) {
        std::int32_t* target = &codes(b, k, 0);
        std::fill_n(target, n - have, initial(k));
        recordings_[from.recording].read(k, from.start - have,
                                         {target + n - have, static_cast<std::size_t>(have)});
      }
    }
  }

 private:
  static constexpr std::uint64_t stream_of_numbers = 0x6261746368,  // apart from other draws of the same seed
      stream_of_sources = 0x736f75726365;

  struct Span {
    std::size_t first, end;  // of the source's recordings
    Index frames;
    double weight_end;  // of this source and those before
  };

  static std::vector<DataSource> one_source(std::vector<CodedRecording> recordings) {
    std::vector<DataSource> sources(1);
    sources[0].recordings = std::move(recordings);
    return sources;
  }

  std::size_t source_at(std::uint64_t counter) const {
    if (sources_.size() == 1) return 0;
    const double place =
        total_weight_ * uniform_from(philox(options_.seed, counter, stream_of_sources).word[0]);
    std::size_t i = 0;
    while (i + 1 < sources_.size() && place >= sources_[i].weight_end) ++i;
    return i;
  }

  /// Where the lanes stand in micro-batch `index`: they are played on, or from the start again.
  const std::vector<Segment>& lanes_at(std::int64_t index) const {
    if (lanes_.empty() || index < lanes_index_) {
      lanes_.clear();
      taken_.assign(sources_.size(), 0);
      queue_ = 0;
      for (Index b = 0; b < options_.whole; ++b) lanes_.push_back(next_recording());
      lanes_index_ = 0;
    }
    for (; lanes_index_ < index; ++lanes_index_) {
      for (Segment& lane : lanes_) {
        const Index next = lane.start + frames_at(lanes_index_);
        lane = next < recordings_[lane.recording].frames ? Segment{lane.recording, next, true}
                                                         : next_recording();
      }
    }
    return lanes_;
  }
  Segment next_recording() const {
    const std::size_t s = source_at(queue_++);
    return {sources_[s].first + taken_[s]++ % (sources_[s].end - sources_[s].first), 0};
  }

  void expect_shape(const Tensor<std::int32_t, dyn, dyn, dyn>& codes, Index frames, const char* shape) const {
    if (codes.extents() != std::array<Index, 3>{options_.batch, streams(), frames})
      fail("Batches", "another shape", shape, "make the tensor of the options' extents");
  }
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
  std::vector<Span> sources_;
  BatchOptions options_;
  Index total_frames_ = 0;
  double total_weight_ = 0;
  // Sequential: a play head, which an index sets.
  mutable std::vector<Segment> lanes_;
  mutable std::int64_t lanes_index_ = 0;
  mutable std::vector<std::size_t> taken_;  // recordings of each source so far
  mutable std::uint64_t queue_ = 0;
};

}  // namespace mttt
