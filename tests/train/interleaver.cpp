// Streams of text worked out by hand from the published rule, at 10 frames a second unless said.
#include "mttt/data/interleaver.hpp"

#include "catch.hpp"

namespace {
using namespace mttt;
using Stream = std::vector<std::int32_t>;
constexpr std::int32_t pad = 3, end = 0;

Stream stream_of(std::vector<TimedTokens> words, Index frames, const InterleaverOptions& options = {}) {
  return interleave(words, frames, 10, options);
}
/// A word is its letters' codes.
Stream spell(const std::string& word) { return {word.begin(), word.end()}; }
}  // namespace

TEST_CASE("interleaver: no words, no frames") {
  CHECK(stream_of({}, 3) == Stream{pad, pad, pad});
  CHECK(stream_of({{{7}, 0, 1}}, 0).empty());
}

TEST_CASE("interleaver: a word starts in the frame of its start, after the end of padding") {
  CHECK(stream_of({{{7, 8}, 0.35, 0.6}}, 8) == Stream{pad, pad, end, 7, 8, pad, pad, pad});
  // Exactly on the border of a frame is that frame; the one before belongs to nobody yet.
  CHECK(stream_of({{{7}, 0.5, 0.6}}, 8) == Stream{pad, pad, pad, pad, end, 7, pad, pad});
  // In the first frame there is no padding to end.
  CHECK(stream_of({{{7}, 0.05, 0.1}}, 3) == Stream{7, pad, pad});
  // Cut at the end of the stream, or beyond it.
  CHECK(stream_of({{{7, 8, 9}, 0.15, 0.9}}, 3) == Stream{end, 7, 8});
  CHECK(stream_of({{{7}, 0.31, 0.4}}, 3) == Stream{pad, pad, pad});
}

TEST_CASE("interleaver: tokens run on from word to word without an end of padding") {
  CHECK(stream_of({{{7, 8}, 0.1, 0.3}, {{9}, 0.3, 0.4}}, 6) == Stream{end, 7, 8, 9, pad, pad});
  CHECK(stream_of({{{7}, 0.1, 0.2}, {{9}, 0.3, 0.4}}, 6) == Stream{end, 7, end, 9, pad, pad});
}

TEST_CASE("interleaver: a word that starts too early replaces the last one, or waits") {
  const std::vector<TimedTokens> words{{{5, 6, 7, 8}, 0.1, 0.3}, {{9}, 0.3, 0.4}};
  CHECK(stream_of(words, 7) == Stream{end, 5, 6, 9, pad, pad, pad});
  CHECK(stream_of(words, 7, {.keep_and_shift = true}) == Stream{end, 5, 6, 7, 8, 9, pad});
  // Two words in one frame: the second one only, or both.
  const std::vector<TimedTokens> close{{{5}, 0.21, 0.24}, {{6}, 0.25, 0.3}};
  CHECK(stream_of(close, 5) == Stream{pad, end, 6, pad, pad});
  CHECK(stream_of(close, 5, {.keep_and_shift = true}) == Stream{pad, end, 5, 6, pad});
}

TEST_CASE("interleaver: padding within a word reaches to the frame of its end") {
  const InterleaverOptions options{.in_word_padding = 4};
  CHECK(stream_of({{{7}, 0.1, 0.45}}, 7, options) == Stream{end, 7, 4, 4, 4, pad, pad});
  // It gives way to the end of padding like the other padding does.
  CHECK(stream_of({{{7}, 0.1, 0.45}, {{9}, 0.4, 0.5}}, 7, options) == Stream{end, 7, 4, end, 9, 4, pad});
  CHECK(stream_of({{{7}, 0.0, 0.3}}, 3, options) == Stream{7, 4, 4});
}

TEST_CASE("interleaver: a negative delay leaves no text at the start") {
  CHECK(stream_of({{{7}, 0.1, 0.2}, {{8}, 0.4, 0.5}}, 6, {.audio_delay = -0.3}) ==
        Stream{-1, -1, -1, end, 8, pad});
  CHECK(stream_of({}, 2, {.audio_delay = -9}) == Stream{-1, -1});
}

TEST_CASE("interleaver: 12.5 frames a second") {
  // 0.24 s * 12.5 = 3, 0.79 s * 12.5 = 9.875
  CHECK(interleave(std::vector<TimedTokens>{{{7, 8, 9}, 0.24, 0.5}, {{5}, 0.79, 0.9}}, 12, 12.5) ==
        Stream{pad, pad, end, 7, 8, 9, pad, pad, end, 5, pad, pad});
}

TEST_CASE("text_stream: sorts, encodes each word, drops words without duration") {
  const std::vector<Word> words{{"c", 0.5, 0.6}, {"ab", 0.1, 0.3}, {"x", 0.3, 0.3}};
  CHECK(text_stream(words, 7, 10, spell) == Stream{end, 'a', 'b', pad, end, 'c', pad});
}

TEST_CASE("text_stream: of the main speaker alone, or of all") {
  const std::vector<Word> words{{"a", 0.1, 0.2}, {"u", 0.3, 0.4, "SPEAKER_00"}};
  CHECK(text_stream(words, 5, 10, spell, {.keep_main_only = true}) == Stream{end, 'a', pad, pad, pad});
  CHECK(text_stream(words, 5, 10, spell) == Stream{end, 'a', end, 'u', pad});
  CHECK(text_stream(words, 5, 10, spell, {.keep_main_only = true, .speaker = "SPEAKER_00"}) ==
        Stream{pad, pad, end, 'u', pad});
}

TEST_CASE("text_stream: with a delay of the sound, text comes early and words before it are lost") {
  const std::vector<Word> words{{"a", 0.0, 0.2}, {"b", 0.1, 0.4}, {"c", 0.5, 0.6}};
  // b starts before the stream and ends within: frame 0. c moves from 0.5 to 0.3 s.
  CHECK(text_stream(words, 6, 10, spell, {.audio_delay = 0.2}) == Stream{'b', pad, end, 'c', pad, pad});
  // The other way: a moves from 0 to 0.2 s, b to 0.3, c to 0.7; the first two frames have no text.
  CHECK(text_stream(words, 9, 10, spell, {.audio_delay = -0.2}) ==
        Stream{-1, -1, 'a', 'b', pad, pad, end, 'c', pad});
}

TEST_CASE("interleaver: impossible frames are refused") {
  using test::contains;
  CHECK_THROWS_WITH(interleave({}, -1, 12.5), contains("-1 frames"));
  CHECK_THROWS_WITH(interleave({}, 1, 0), contains("a rate above 0"));
  CHECK_THROWS_WITH(interleave({}, 1, NAN), contains("a rate above 0"));
}
