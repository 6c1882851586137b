// Coded recordings to files and back, and what is refused.
#include "mttt/io/codes.hpp"

#include "mttt/core/rng.hpp"
#include "scratch.hpp"

namespace {
using namespace mttt;

CodedRecording small(Index card = 256) {
  return {3,         2,         {3, 0, -1, static_cast<std::int32_t>(card - 1), 4, 5}, 12.5, 512, card,
          "codec 1", "source 2"};
}
}  // namespace

TEST_CASE("codes: a round trip, whatever number of bits a code needs") {
  const Scratch scratch;
  const Index card = GENERATE(6, 256, 2048, 32768, 32769, 2000000000);
  const CodedRecording saved = small(card);
  save_codes(scratch / "a.safetensors", saved);
  const CodedRecording loaded = load_codes(scratch / "a.safetensors");
  CHECK(loaded.streams == 3);
  CHECK(loaded.frames == 2);
  CHECK(loaded.codes == saved.codes);
  CHECK(loaded.frame_rate == 12.5);
  CHECK(loaded.text_card == 512);
  CHECK(loaded.card == card);
  CHECK(loaded.codec == "codec 1");
  CHECK(loaded.source == "source 2");
  CHECK(std::vector(loaded.stream(1).begin(), loaded.stream(1).end()) ==
        std::vector<std::int32_t>{-1, static_cast<std::int32_t>(card - 1)});
}

TEST_CASE("codes: 2048 of them take 11 bits each") {
  const Scratch scratch;
  Rng rng(1);
  constexpr Index frames = 1001;  // 11 bits of them end inside of a byte
  CodedRecording saved{17, frames, {}, 12.5, 32000, 2048, "codec", "source"};
  for (Index i = 0; i < 17 * frames; ++i)
    saved.codes.push_back(static_cast<std::int32_t>(rng.uniform() * (i < frames ? 32000 : 2048)));
  saved.codes[20] = -1;                                    // text: 32001 values still take 15 bits
  saved.codes[static_cast<std::size_t>(frames) + 7] = -1;  // 2049 values take 12
  save_codes(scratch / "a.safetensors", saved);
  const SafetensorsFile file(scratch / "a.safetensors");
  CHECK(file.at("codes").dtype == DType::U8);
  CHECK(file.at("codes").count() == 1877 + 1502 + 15 * 1377);
  CHECK(file.metadata().at("bits") == "15+,12+,11,11,11,11,11,11,11,11,11,11,11,11,11,11,11");
  CHECK(load_codes(file.path()).codes == saved.codes);

  // Read piece by piece, wherever a piece begins.
  const CodedRecording opened = open_codes(file.path());
  CHECK(opened.codes.empty());
  for (const auto& [k, first, n] :
       {std::array<Index, 3>{0, 0, frames}, {0, 13, 29}, {1, 3, 9}, {5, 7, 1}, {16, 1000, 1}, {16, 5, 996}}) {
    std::vector<std::int32_t> piece(static_cast<std::size_t>(n));
    opened.read(k, first, piece);
    const auto* expected = saved.codes.data() + k * frames + first;
    CHECK(piece == std::vector<std::int32_t>(expected, expected + n));
  }
}

TEST_CASE("codes: a file that is encoded again, or damaged, while it is read") {
  const Scratch scratch;
  const auto path = scratch / "a.safetensors";
  CodedRecording recording = small(200);  // 8 bits say more than 200 codes
  recording.codes[2] = 1;
  save_codes(path, recording);
  const CodedRecording opened = open_codes(path);
  std::vector<std::int32_t> piece(2);
  opened.read(1, 0, piece);
  CHECK(piece == std::vector<std::int32_t>{1, 199});
  std::string bytes(WholeFile(path).text());
  bytes[bytes.size() - 1] = '\xff';
  scratch.put("a.safetensors", bytes);
  check_refused([&] { opened.read(2, 0, piece); }, "code 255 in stream 2, frame 1");
  recording.activity = SpeechActivity{0.5, 0.25, 0.375};
  save_codes(path, recording);
  check_refused([&] { opened.read(1, 0, piece); }, "as when it was opened");
  CHECK(open_codes(path).activity->dominance() == Approx(2.0 / 3));
  CHECK(open_codes(path).activity->silence == 0.375);
}

TEST_CASE("codes: who speaks in how many frames") {
  std::vector<float> model(1000, 0.0f), user(1000, 0.0f);
  for (std::size_t i = 0; i < 450; ++i) model[i] = i % 2 == 0 ? 0.1f : -0.1f;
  for (std::size_t i = 300; i < 500; ++i) user[i] = 0.004f;  // -48 dB
  const auto activity = speech_activity(model, user, 100);
  CHECK(activity.model == 0.5);
  CHECK(activity.user == 0.2);
  CHECK(activity.silence == 0.5);
  CHECK(speech_activity(model, user, 100, -40).user == 0);
  CHECK(speech_activity(model, user, 300).model == 0.5);  // frames of 300, 300, 300 and 100
  CHECK(speech_activity({}, {}, 100).dominance() == 0);
}

TEST_CASE("codes: impossible ones are neither written nor read") {
  const Scratch scratch;
  const auto refused = [&](auto&& damage, const std::string& words) {
    CodedRecording recording = small();
    damage(recording);
    check_refused([&] { save_codes(scratch / "a.safetensors", recording); }, words);
    CHECK(scratch.files() == 0);
  };
  refused([](auto& r) { r.codes[3] = 256; }, "code 256 in stream 1, frame 1");
  refused([](auto& r) { r.codes[0] = -2; }, "code -2 in stream 0, frame 0");
  refused([](auto& r) { r.codes[1] = 512; }, "-1 to 511");
  refused([](auto& r) { r.codes.pop_back(); }, "5 codes for 3 streams of 2 frames");
  refused([](auto& r) { r.frame_rate = 0; }, "frame rate 0");
  refused([](auto& r) { r.frame_rate = INFINITY; }, "frame rate inf");
  refused([](auto& r) { r.card = 0; }, "card 0");
}

TEST_CASE("codes: damaged and foreign files are refused") {
  const Scratch scratch;
  const auto path = scratch / "a.safetensors";
  const std::vector<std::int16_t> codes{3, 0, 1, 255};
  const auto write = [&](std::vector<std::int64_t> shape, const std::map<std::string, std::string>& changes) {
    SafetensorsWriter writer;
    SafetensorsMetadata all{{"kind", "codes"},    {"format_version", "1"}, {"frame_rate", "12.5"},
                            {"text_card", "512"}, {"card", "256"},         {"codec", "c"},
                            {"source", "s"}};
    for (const auto& [key, value] : changes) all[key] = value;
    for (const auto& [key, value] : all) {
      if (value != "none") writer.set_metadata(key, value);
    }
    writer.add("codes", shape, std::span<const std::int16_t>(codes));
    writer.write(path);
  };
  const auto load = [&] { load_codes(path); };
  write({2, 2}, {});
  CHECK(load_codes(path).codes == std::vector<std::int32_t>{3, 0, 1, 255});
  write({4}, {});
  check_refused(load, "codes of shape [4]");
  write({2, 2}, {{"card", "255"}});
  check_refused(load, "code 255 in stream 1, frame 1");
  write({2, 2}, {{"card", "25x"}});
  check_refused(load, "metadata 'card' = '25x'");
  write({2, 2}, {{"codec", "none"}});
  check_refused(load, "no metadata 'codec'");
  write({2, 2}, {{"kind", "params"}});
  check_refused(load, "a file of kind 'params'");
  check_refused([&] { load_codes(scratch / "none.safetensors"); }, "no such file");
}

TEST_CASE("codes: packed ones that are damaged are refused") {
  const Scratch scratch;
  const auto path = scratch / "a.safetensors";
  const auto refused = [&](const char* key, const char* value, const std::string& words,
                           std::size_t bytes = 4) {
    SafetensorsWriter writer;
    SafetensorsMetadata all{{"kind", "codes"},    {"format_version", "1"}, {"frame_rate", "12.5"},
                            {"text_card", "256"}, {"card", "256"},         {"codec", "c"},
                            {"source", "s"},      {"streams", "2"},        {"frames", "2"},
                            {"bits", "8,8"}};
    all[key] = value;
    for (const auto& [name, text] : all) writer.set_metadata(name, text);
    const std::vector<std::uint8_t> codes(bytes, 255);
    writer.add("codes", {static_cast<std::int64_t>(bytes)}, std::span<const std::uint8_t>(codes));
    writer.write(path);
    if (words.empty()) {
      CHECK(load_codes(path).codes == std::vector<std::int32_t>{255, 255, 255, 255});
    } else {
      check_refused([&] { load_codes(path); }, words);
    }
  };
  refused("bits", "8,8", "");
  for (const char* bits : {"8", "8,", "8,8,8", "0,8", "32,8", "8,x", "8 ,8", "8,9"})
    refused("bits", bits, detail::cat("2 streams of 2 frames in ", detail::quote(bits)));
  refused("frames", "3", "2 streams of 3 frames");
  refused("frames", "9223372036854775807", "frames in '8,8'");
  refused("frames", "-2", "-2 frames");
  refused("streams", "-2", "-2 streams");
  refused("bits", "8,8", "5 U8", 5);
  refused("card", "255", "code 255 in stream 1");
}

TEST_CASE("codes: a folder is read in the order of names") {
  const Scratch scratch;
  check_refused([&] { code_files(scratch.folder); }, "no *.safetensors");
  check_refused([&] { code_files(scratch / "none"); }, "No such file");
  for (const char* name : {"c", "a", "b"}) {
    CodedRecording recording = small();
    recording.source = name;
    save_codes(scratch / (std::string(name) + ".safetensors"), recording);
  }
  scratch.put("readme.txt", "not codes");
  std::string names;
  for (const auto& path : code_files(scratch.folder)) names += load_codes(path).source;
  CHECK(names == "abc");
}

TEST_CASE("content_id: changes with every byte, the order and the borders of files") {
  const Scratch scratch;
  const auto id = [&](const std::vector<std::string>& contents) {
    std::vector<std::filesystem::path> paths;
    for (const auto& content : contents)
      paths.push_back(scratch.put("f" + std::to_string(paths.size()), content));
    return content_id(paths);
  };
  const std::string text = "forty-two bytes of text, or thereabouts...";
  CHECK(id({text}).size() == 16);
  CHECK(id({text}) == id({text}));
  std::map<std::string, int> seen;
  for (std::size_t i = 0; i < text.size(); ++i) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string changed = text;
      changed[i] = static_cast<char>(changed[i] ^ (1 << bit));
      ++seen[id({changed})];
    }
  }
  ++seen[id({text})];
  ++seen[id({text + '\0'})];
  ++seen[id({text, ""})];
  ++seen[id({"", text})];
  ++seen[id({"ab", "c"})];
  ++seen[id({"a", "bc"})];
  ++seen[id({"abc"})];
  CHECK(seen.size() == text.size() * 8 + 7);
  CHECK_THROWS_AS(content_id(std::vector<std::filesystem::path>{scratch / "none"}), Error);
}
