// Streams of codes: special codes, the delay of each stream, and the check of codes from outside.
//
// Formula: delayed[b, k, t] = codes[b, k, t - delay_k], the initial code where that lies before the start;
//          what the model reads at t is delayed[b, k, t - 1], so that it predicts delayed[b, k, t].
//          Frames before the start may be given: those of a recording whose next segment the codes are.
//          A position t of stream k has a prediction, mask 1, where t + delay_k < T and its code is not -1.
// Shapes:  codes, delayed (B, K, T), stream 0 is text; masks (count, B, T), stream-major like the logits.
// Units:   frames.
// Errors:  check_streams refuses codes that the model has no embedding for.
// Not supported: more than max_streams streams; several text streams.
// Source:  kyutai-labs/moshi models/lm_utils.py `_delay_sequence`, `_undelay_sequence`; models/lm.py LMModel.
#pragma once

#include <cstdint>
#include <string>

#include "mttt/backend/backend.hpp"
#include "mttt/nn/embedding.hpp"

namespace mttt {

inline constexpr Index max_streams = 40;

/// Frames by which each stream lags. A plain array: it travels into kernels by value.
struct Delays {
  int of[max_streams];

  constexpr Index largest(Index streams) const {
    int most = 0;
    for (Index k = 0; k < streams; ++k) most = of[k] > most ? of[k] : most;
    return most;
  }
};

/// Beside zero_code (-1: nothing here, predict nothing): "to be predicted", as an input and as an output.
inline constexpr std::int32_t ungenerated_code = -2;

/// What the model reads before a stream starts: one past its codes.
struct InitialCodes {
  std::int32_t text, audio;

  MTTT_HD constexpr std::int32_t of(Index stream) const { return stream == 0 ? text : audio; }
};

template <class I>
using Streams = Tensor<I, dyn, dyn, dyn>;

namespace detail {

struct DelayCode {
  const std::int32_t* codes;
  std::int32_t* out;
  Delays delays;
  InitialCodes initial;
  Index streams, steps, lead;
  const std::int32_t* before;  // (B, K, earlier)
  Index earlier;
  MTTT_HD void operator()(Index i) const {
    const Index t = i % steps, k = i / steps % streams, from = t - delays.of[k] - lead;
    if (from < 0) {
      out[i] = from < -earlier ? initial.of(k) : before[i / steps * earlier + earlier + from];
    } else {
      out[i] = codes[i - t + from];
    }
  }
};

struct UndelayCode {
  const std::int32_t* delayed;
  std::int32_t* out;
  Delays delays;
  Index streams, steps;
  std::int32_t fill;
  MTTT_HD void operator()(Index i) const {
    const Index t = i % steps, from = t + delays.of[i / steps % streams];
    out[i] = from < steps ? delayed[i - t + from] : fill;
  }
};

struct DelayMask {
  const std::int32_t* codes;
  std::uint8_t* mask;
  Delays delays;
  Index batch, streams, steps, first;
  MTTT_HD void operator()(Index i) const {
    const Index t = i % steps, b = i / steps % batch, k = first + i / steps / batch;
    mask[i] = t + delays.of[k] < steps && codes[(b * streams + k) * steps + t] != zero_code;
  }
};

/// parts[p] = n - (the first place of a bad code in part p), or 0.
struct FindBadCode {
  const std::int32_t* codes;
  const std::uint8_t* mask;
  Index* parts;
  Index n, streams, steps, first;
  std::int32_t lowest, end_text, end_audio;
  static constexpr Index part = 1 << 12;
  template <class Team>
  MTTT_HD void operator()(Team team, Index p) const {
    const auto self = *this;
    const Index begin = p * part, count = part < n - begin ? part : n - begin;
    const Index largest = team.template max<Index>(count, [=](Index at) {
      const Index i = begin + at, k = self.first + i / self.steps % self.streams;
      const std::int32_t code = self.codes[i], end = k == 0 ? self.end_text : self.end_audio;
      const bool good = code >= self.lowest && code < end;
      return good || !active(self.mask, i / self.steps / self.streams) ? Index{0} : self.n - i;
    });
    if (team.leader()) parts[p] = largest;
  }
};

struct LargestOf {
  const Index* parts;
  Index* largest;
  Index count;
  template <class Team>
  MTTT_HD void operator()(Team team, Index) const {
    const Index* x = parts;
    const Index found = team.template max<Index>(count, [=](Index p) { return x[p]; });
    if (team.leader()) *largest = found;
  }
};

}  // namespace detail

/// `lead` 0: what is predicted at t; 1: what is read at t. `before` (B, K, any number) are the frames that
/// end where codes start.
template <class B>
void delay_codes(B& be, Streams<const std::int32_t> codes, const Delays& delays, InitialCodes initial,
                 Index lead, Streams<std::int32_t> out, Streams<const std::int32_t> before = {}) {
  be.for_each(codes.size(),
              detail::DelayCode{codes.data(), out.data(), delays, initial, codes.extent(1), codes.extent(2),
                                lead, before.data(), before.data() == nullptr ? 0 : before.extent(2)});
}

/// Back to the time of the codes; the last delay_k frames are not known yet: `fill`.
template <class B>
void undelay_codes(B& be, Streams<const std::int32_t> delayed, const Delays& delays, std::int32_t fill,
                   Streams<std::int32_t> out) {
  be.for_each(delayed.size(), detail::UndelayCode{delayed.data(), out.data(), delays, delayed.extent(1),
                                                  delayed.extent(2), fill});
}

/// mask (count, B, T) of streams [first, first + count).
template <class B>
void delay_mask(B& be, Streams<const std::int32_t> codes, const Delays& delays, Index first,
                Streams<std::uint8_t> mask) {
  be.for_each(mask.size(), detail::DelayMask{codes.data(), mask.data(), delays, codes.extent(0),
                                             codes.extent(1), codes.extent(2), first});
}

/// What codes may be, from `lowest` to below the ends.
struct CodeRange {
  std::int32_t lowest, end_text, end_audio;
};

/// Looks for codes out of range in streams [first, first + K) of active sessions; `found`, in the backend's
/// memory, is what refuse_bad_code wants to know, later.
template <class B>
void find_bad_code(B& be, Streams<const std::int32_t> codes, Index first, CodeRange range, Mask mask,
                   Index* found) {
  using Find = detail::FindBadCode;
  const Index n = codes.size(), count = (n + Find::part - 1) / Find::part;
  if (n == 0) return be.fill(found, 1, Index{0});
  const auto scope = be.scope();
  Index* parts = be.template make<Index, dyn>(count).data();
  be.rows(count,
          Find{codes.data(), mask.data(), parts, n, codes.extent(1), codes.extent(2), first, range.lowest,
               range.end_text, range.end_audio},
          0, 4 * Find::part);
  be.rows(1, detail::LargestOf{parts, found, count}, 0, count);
}

/// Throws if find_bad_code found one; `found` is in the host's memory by now.
template <class B>
void refuse_bad_code(B& be, std::string_view subject, Streams<const std::int32_t> codes, Index first,
                     CodeRange range, Index found) {
  if (found == 0) return;
  const Index streams = codes.extent(1), steps = codes.extent(2);
  const Index i = codes.size() - found, stream = first + i / steps % streams;
  std::int32_t code = 0;
  be.to_host(codes.data() + i, &code, Index{1});
  fail(subject,
       "code " + std::to_string(code) + " in session " + std::to_string(i / steps / streams) + ", stream " +
           std::to_string(stream) + ", frame " + std::to_string(i % steps),
       std::to_string(range.lowest) + " to " +
           std::to_string((stream == 0 ? range.end_text : range.end_audio) - 1),
       "use codes made for this model");
}

/// Both at once: throws at a code out of range. One number travels to the host.
template <class B>
void check_streams(B& be, std::string_view subject, Streams<const std::int32_t> codes, Index first,
                   CodeRange range, Mask mask = {}) {
  const auto scope = be.scope();
  const auto where = be.template make<Index, 1>();
  find_bad_code(be, codes, first, range, mask, where.data());
  Index found = 0;
  be.to_host(where.data(), &found, Index{1});
  refuse_bad_code(be, subject, codes, first, range, found);
}

}  // namespace mttt
