#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <sstream>

#include "monologue.hpp"
#ifdef MTTT_HAS_AUDIO
#include "mttt/io/audio.hpp"
#endif

#ifdef MTTT_HAS_AUDIO
namespace {
/// Prints "wave FILE" and a line "word start end" for each word of the relation Word.
constexpr const char* script_head =
    "(define (say text file)\n"
    "  (let ((u (SynthText text)))\n"
    "    (utt.save.wave u file 'riff)\n"
    "    (format t \"wave %s\\n\" file)\n"
    "    (mapcar (lambda (w) (format t \"%s %f %f\\n\" (item.name w)\n"
    "      (item.feat w \"R:SylStructure.daughter1.daughter1.segment_start\")\n"
    "      (item.feat w \"R:SylStructure.daughtern.daughtern.segment_end\")))\n"
    "      (utt.relation.items u 'Word))))\n";

struct Folder {
  std::filesystem::path path;
  Folder() {
    std::string name = (std::filesystem::temp_directory_path() / "make_data-XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) mttt::fail(name, "no room", "a temporary folder");
    path = name;
  }
  Folder(const Folder&) = delete;
  ~Folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path, ignored);
  }
};

std::vector<Spoken> say(const std::string& voice, const std::vector<std::string>& sentences) {
  const Folder folder;
  std::ofstream script(folder.path / "script.scm");
  script << script_head << "(voice_" << voice << ")\n";
  for (std::size_t i = 0; i < sentences.size(); ++i)
    script << "(say \"" << sentences[i] << "\" \"" << (folder.path / std::to_string(i)).string()
           << ".wav\")\n";
  script.close();
  const std::string out = (folder.path / "words").string();
  const std::string command =
      "festival -b '" + (folder.path / "script.scm").string() + "' >'" + out + "' 2>&1";
  if (std::system(command.c_str()) != 0)
    mttt::fail("festival", "voice " + voice + ": " + std::string(mttt::WholeFile(out).text().substr(0, 300)),
               "speech", "install festival and the voice (festvox-kallpc16k, festvox-us-slt-hts)");

  std::vector<Spoken> spoken;
  std::vector<mttt::Word> words;
  std::string wave, line;
  const auto finish = [&] {
    if (wave.empty()) return;
    const auto sound = mttt::resample(mttt::to_mono(mttt::read_audio(wave)), sample_rate).samples;
    spoken.push_back(trimmed(sound, std::move(words)));
    words.clear();
  };
  for (std::ifstream in(out); std::getline(in, line);) {
    std::istringstream parts(line);
    std::string word;
    double start = 0, end = 0;
    parts >> word;
    if (word == "wave") {
      finish();
      parts >> wave;
    } else if (parts >> start >> end; word.starts_with('\'') && !words.empty()) {
      words.back().text += plain_word(word.c_str());  // sister 's: its sounds are the word's before
      words.back().end = std::max(words.back().end, end);
    } else if (end > start) {
      words.push_back({plain_word(word.c_str()), start, end, ""});
    }
  }
  finish();
  if (spoken.size() != sentences.size())
    mttt::fail("festival", std::to_string(spoken.size()) + " sentences", std::to_string(sentences.size()));
  return spoken;
}
}  // namespace

Reader festival_reader(const std::string& voice) {
  return [voice](const std::vector<std::string>& sentences) { return say(voice, sentences); };
}
#else
Reader festival_reader(const std::string& voice) {
  mttt::fail("festival voice " + voice, "a program that was built without libsndfile and soxr",
             "one with both", "build with them");
}
#endif
