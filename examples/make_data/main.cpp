// Makes recordings to train on, spoken by flite: make_data memory --output build/data/memory --hours 2
//
//   make_data voices            speakers, and how fast each speaks
//   make_data memory   ...      a user states facts, talks about other things, asks for them
//   make_data pairs    ...      words that go with words, asked for at once and often
//   make_data dialogue ...      greetings, arithmetic, questions and answers
//   make_data monologue ...     one voice reads texts
//   make_data speech ...        people speak, from folders of sounds
//   make_data text              what the grammars say, for a tokenizer
//
// With --codec conversations are written as codes: OUTPUT/train.codes is what `encode` makes of recordings.
//
// OUTPUT/train.jsonl names OUTPUT/train/000000.wav and so on (stereo: the model left, a user right), beside each
// its words with times, and what is asked. Recording i is a function of the seed and i alone: --first lets
// several machines share a set. With --split test come other voices and texts: OUTPUT/test.jsonl.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <exception>
#include <functional>
#include <optional>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "../program.hpp"
#include "grammar.hpp"
#include "memory.hpp"
#include "monologue.hpp"
#include "recording.hpp"
#include "speech.hpp"

namespace {
namespace fs = std::filesystem;
using mttt::Rng;

struct Options {
  fs::path output, codec, tokenizer;
  std::uint64_t seed = 1;
  double hours = 0.1;
  int first = 0, voices = 12, jobs = 0, lines = 20000;
  bool test = false, held_out_voices = false;
  double cache_gb = 4, length = 0;
  MemoryOptions memory;
  PairOptions pairs;
  std::string delays = "5:30", facts = "1:4", pace = "1:4";
  std::vector<fs::path> texts;
  std::vector<std::string> people, kept, festival;
  double minutes = 1e6;

  Split split() const { return test ? Split::test : Split::train; }
};

using Clock = std::chrono::steady_clock;
double since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

/// "5:600", any between; "5,10,20", each of these; "5".
std::vector<double> numbers_of(const std::string& name, const std::string& text) {
  std::vector<double> numbers;
  for (const char* at = text.c_str();;) {
    char* end = nullptr;
    numbers.push_back(std::strtod(at, &end));
    if (end == at || !(numbers.back() > 0) || !(numbers.back() < 1e5))
      mttt::fail(name, "'" + text + "'", "5:600, or 5,10,20", "numbers above 0");
    if (*end == 0) return numbers;
    if (*end != ',' && *end != ':') mttt::fail(name, "'" + text + "'", "5:600, or 5,10,20");
    at = end + 1;
  }
}

/// Of pairs.
void read_pairs(Options& o) {
  const auto pace = numbers_of("--pace", o.pace);
  o.pairs.shortest = static_cast<int>(pace.front()), o.pairs.longest = static_cast<int>(pace.back());
  if (o.pairs.shortest < 1 || o.pairs.longest < o.pairs.shortest)
    mttt::fail("--pace", o.pace, "whole numbers of frames from 1 on, the smaller first");
  if (o.pairs.keys + o.pairs.values > static_cast<int>(memory_values().size()))
    mttt::fail("--keys and --values", std::to_string(o.pairs.keys + o.pairs.values),
               std::to_string(memory_values().size()) + " words at most");
  if (o.pairs.silent > 0 && o.codec.empty())
    mttt::fail("--silent", "no --codec", "codes to write, for text has no sound");
  if (o.length > 0) o.pairs.length = o.length;
}

/// Of facts.
void read_ranges(Options& o) {
  const auto delays = numbers_of("--delays", o.delays), facts = numbers_of("--facts", o.facts);
  if (o.delays.find(':') == std::string::npos) {
    o.memory.delays = delays;
  } else {
    o.memory.shortest = delays.front(), o.memory.longest = delays.back();
  }
  o.memory.fewest = static_cast<int>(facts.front()), o.memory.most = static_cast<int>(facts.back());
  if (o.memory.fewest < 1 || o.memory.most < o.memory.fewest || o.memory.longest < o.memory.shortest)
    mttt::fail("--facts or --delays", o.facts + " and " + o.delays, "the smaller number first");
}

/// What every recording says of itself.
std::string about(const Options& o, const char* kind, const std::string& voice) {
  return std::string(", \"kind\": \"") + kind + "\", \"split\": \"" + (o.test ? "test" : "train") +
         "\", \"voice\": \"" + voice + "\"";
}

Voice draw_voice(const Options& o, Rng& rng) {
  auto voices = user_voices(o.held_out_voices);
  voices.resize(std::min(voices.size(), static_cast<std::size_t>(o.voices)));
  return pick(voices, rng);
}

Recording finish(const Conversation& c, std::string about) {
  if (c.studio().coder() != nullptr) return {{}, 2, c.words(), std::move(about), c.coded()};
  return {c.stereo(), 2, c.words(), std::move(about)};
}

/// With what is asked.
Recording finish(const Options& o, const char* kind, const MemoryConversation& memory) {
  const auto& [talk, questions] = memory;
  std::string list;
  for (const Question& q : questions) {
    const auto& words = talk.words();
    const auto &heard = words[q.heard_word], &answer = words[q.answer_word];
    const auto flag = [](bool value) { return value ? "true" : "false"; };
    list += std::string(list.empty() ? "\n" : ",\n") + "{\"person\": \"" + q.person +
            "\", \"attribute\": \"" + q.attribute + "\", \"value\": \"" + q.value +
            "\", \"values\": " + std::to_string(q.values) + ", \"told\": [" +
            json_number(words[q.told_word].start) + ", " + json_number(words[q.told_word].end) +
            "], \"heard\": [" + json_number(heard.start) + ", " + json_number(heard.end) +
            "], \"asked\": " + json_number(words[q.asked_word].start) + ", \"answer\": [" +
            json_number(answer.start) + ", " + json_number(answer.end) +
            "], \"answer_word\": " + std::to_string(q.answer_word) +
            ", \"delay\": " + json_number(answer.start - heard.end) + ", \"echoed\": " + flag(q.echoed) +
            ", \"held_out\": " + flag(q.held_out) + "}";
  }
  return finish(talk, about(o, kind, talk.user().name()) + ",\n\"questions\": [" + list + "\n]");
}

Recording memory(const Options& o, Studio& studio, Rng& rng) {
  return finish(o, "memory",
                memory_conversation(o.memory, o.split(), Conversation(studio, draw_voice(o, rng)), rng));
}

Recording pairs(const Options& o, Studio& studio, Rng& rng) {
  return finish(o, "pairs", pair_conversation(o.pairs, Conversation(studio, draw_voice(o, rng)), rng));
}

Recording dialogue(const Options& o, Studio& studio, Rng& rng) {
  Conversation talk(studio, draw_voice(o, rng));
  const double length = o.length > 0 ? o.length : 20 + 40 * rng.uniform();
  talk.say(greeting(rng), rng);
  while (talk.now() < length - 6) {
    talk.pause(0.2 + rng.uniform());
    talk.say(small_talk(o.split(), rng), rng);
  }
  talk.pause(0.3 + 0.5 * rng.uniform());
  talk.say(goodbye(rng), rng);
  return finish(talk, about(o, "dialogue", talk.user().name()));
}

Recording monologue(const Options& o, const Library& library, Rng& rng) {
  const double length = o.length > 0 ? o.length : 60;
  if (!o.festival.empty()) {
    const std::string& voice = pick(o.festival, rng);
    return read_aloud(library, o.split(), festival_reader(voice), length,
                      about(o, "monologue", "festival-" + voice), rng);
  }
  // Before they listen to a user, models read in any voice; users of tests are no readers of training.
  const Voice voice = rng.below(4) == 0 && !o.held_out_voices ? model_voice() : draw_voice(o, rng);
  const Reader reader = [&](const std::vector<std::string>& sentences) {
    std::vector<Spoken> spoken;
    for (const auto& sentence : sentences) spoken.push_back(speak(voice, sentence));
    return spoken;
  };
  return read_aloud(library, o.split(), reader, length, about(o, "monologue", voice.name()), rng);
}

/// Makes recordings until they last as long as is asked, as many at once as there are cores.
int make_all(const Options& o, Studio& studio, const std::function<Recording(Rng&)>& make) {
  const std::string split = o.test ? "test" : "train";
  const fs::path codes = o.output / (split + ".codes");
  mttt::make_folders(o.output / split);
  if (studio.coder() != nullptr) mttt::make_folders(codes);
  int threads = 1;
#ifdef _OPENMP
  threads = o.jobs > 0 ? o.jobs : omp_get_max_threads();
#endif
  const auto start = Clock::now();
  std::string manifest;
  double seconds = 0, told = 0;
  int index = o.first;
  std::size_t words = 0;
  while (seconds < 3600 * o.hours) {
    std::vector<Recording> batch(static_cast<std::size_t>(2 * threads));
    std::vector<std::exception_ptr> errors(batch.size());
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (std::size_t i = 0; i < batch.size(); ++i) {
      try {
        // The parts of a seed that no draw of a recording reaches tell recordings and splits apart.
        Rng rng(o.seed, (static_cast<std::uint64_t>(index) + i) << 32 | (o.test ? 1u << 31 : 0));
        batch[i] = make(rng);
      } catch (...) {
        errors[i] = std::current_exception();
      }
    }
    std::size_t wanted = 0;
    for (double sum = seconds; wanted < batch.size() && sum < 3600 * o.hours; ++wanted) {
      if (errors[wanted]) std::rethrow_exception(errors[wanted]);
      sum += batch[wanted].seconds();
    }
    std::vector<std::string> names(wanted);
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (std::size_t i = 0; i < wanted; ++i) {
      char name[64];
      std::snprintf(name, sizeof name, "%s/%06d.wav", split.c_str(), index + static_cast<int>(i));
      names[i] = name;
      try {
        write_recording(o.output / name, codes, batch[i]);
      } catch (...) {
        errors[i] = std::current_exception();
      }
    }
    for (std::size_t i = 0; i < wanted; ++i, ++index) {
      if (errors[i]) std::rethrow_exception(errors[i]);
      manifest += manifest_line(names[i], batch[i]);
      seconds += batch[i].seconds();
      words += batch[i].words.size();
    }
    if (since(start) > told + 10) {
      told = since(start);
      std::printf("%d recordings, %.2f h in %.0f s\n", index - o.first, seconds / 3600, told);
      std::fflush(stdout);
    }
  }
  mttt::write_file_atomically(o.output / (split + ".jsonl"), manifest);
  const double took = since(start);
  std::printf("%s: %d recordings, %.3f h, %zu words, in %.1f s: %.2f h a minute on %d threads\n",
              (o.output / (split + ".jsonl")).c_str(), index - o.first, seconds / 3600, words, took,
              seconds / 60 / took, threads);
  if (studio.seconds_said() > 0)
    std::printf("%.0f s were said, %.0f s of them spoken anew; %zu sentences kept\n", studio.seconds_said(),
                studio.seconds_new(), studio.sentences());
  return 0;
}

/// All that is there, once: a folder for each of those who speak.
int make_speech(const Options& o) {
  const std::string split = o.test ? "test" : "train";
  std::string manifest;
  double all = 0;
  for (const std::string& text : o.people) {
    const Person person = person_of(text);
    const bool kept = std::find(o.kept.begin(), o.kept.end(), person.name) != o.kept.end();
    if (kept != o.test) continue;
    Rng rng(o.seed, text_hash(person.name) << 32);
    const auto recordings = recordings_of(person, o.length > 0 ? o.length : 20, 60 * o.minutes, rng);
    mttt::make_folders(o.output / split / person.name);
    double seconds = 0;
    for (std::size_t i = 0; i < recordings.size(); ++i) {
      char number[32];
      std::snprintf(number, sizeof number, "/%04zu.wav", i);
      const std::string name = split + "/" + person.name + number;
      write_recording(o.output / name, {}, recordings[i]);
      manifest += manifest_line(name, recordings[i]);
      seconds += recordings[i].seconds();
    }
    std::printf("%-20s %4zu recordings, %.1f min\n", person.name.c_str(), recordings.size(), seconds / 60);
    all += seconds;
  }
  if (manifest.empty()) mttt::fail("speech", "nobody of this split", "speakers, some of them kept for tests");
  mttt::write_file_atomically(o.output / (split + ".jsonl"), manifest);
  std::printf("%s: %.2f h\n", (o.output / (split + ".jsonl")).c_str(), all / 3600);
  return 0;
}

int print_voices() {
  const std::string text = "The answer to your question is twenty seven, and my sister lives in Chicago.";
  for (const Voice& voice : plain_voices()) {
    double seconds = 0;
    const auto start = Clock::now();
    for (int i = 0; i < 5; ++i) seconds += speak(voice, text).seconds();
    std::printf("%-20s %5.0f times real time on one core\n", voice.name().c_str(), seconds / since(start));
  }
  std::printf("model: %s\nusers:", model_voice().name().c_str());
  for (const Voice& voice : user_voices(false)) std::printf(" %s", voice.name().c_str());
  std::printf("\nusers held out:");
  for (const Voice& voice : user_voices(true)) std::printf(" %s", voice.name().c_str());
  std::printf("\n");
  return 0;
}

int print_text(const Options& o, bool values) {
  const auto print = [](const std::vector<std::string>& lines) {
    for (const auto& line : lines) std::printf("%s\n", line.c_str());
  };
  if (values) return print(memory_values()), 0;
  print(memory_text());
  print(grammar_text(o.lines, o.seed));
  return 0;
}

void common(CLI::App& app, Options& o) {
  app.add_option("--output", o.output, "folder; receives train.jsonl or test.jsonl, and a folder beside")
      ->required();
  app.add_option("--hours", o.hours, "of sound, at least")->capture_default_str()->check(CLI::PositiveNumber);
  app.add_option("--seed", o.seed, "another seed, other recordings")->capture_default_str();
  app.add_option("--first", o.first, "number of the first recording")->check(CLI::NonNegativeNumber);
  app.add_option("--voices", o.voices, "users' voices at most")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  app.add_flag("--held-out-voices", o.held_out_voices, "a speaker that training never hears");
  app.add_option("--length", o.length, "seconds of a recording; 0: as its content needs")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--cache-gb", o.cache_gb, "sentences kept in memory")->capture_default_str();
  app.add_option("--jobs", o.jobs, "recordings at once; 0: one a core")->check(CLI::NonNegativeNumber);
  app.add_flag("--test", o.test, "text that training leaves out");
}

void whole(CLI::App& app, const char* name, int& value, int least, int most, const char* says) {
  app.add_option(name, value, says)->capture_default_str()->check(CLI::Range(least, most));
}
void share(CLI::App& app, const char* name, double& value, const char* says) {
  app.add_option(name, value, says)->capture_default_str()->check(CLI::Range(0.0, 1.0));
}

/// Of conversations.
void coded(CLI::App& app, Options& o) {
  auto* codec =
      app.add_option("--codec", o.codec, "weights of mimi_small: write codes, put together of sentences");
  auto* tokenizer = app.add_option("--tokenizer", o.tokenizer, "sentencepiece model of the text stream");
  codec->check(CLI::ExistingFile)->needs(tokenizer);
  tokenizer->check(CLI::ExistingFile)->needs(codec);
}
}  // namespace

int main(int argc, char** argv) {
  Options o;
  bool values = false;
  CLI::App app("Makes recordings to train on, spoken by flite.");
  app.require_subcommand(1);
  CLI::App& voices = *app.add_subcommand("voices", "speakers, and how fast each speaks");
  CLI::App& remember = *app.add_subcommand("memory", "facts are stated, and asked for later");
  common(remember, o);
  coded(remember, o);
  remember.add_option("--delays", o.delays, "seconds: 5:600, any between, or 5,10,20")->capture_default_str();
  remember.add_option("--facts", o.facts, "in a conversation: 1:4")->capture_default_str();
  whole(remember, "--values", o.memory.values, 2, 16, "of each attribute");
  whole(remember, "--attributes", o.memory.attributes, 1, 10, "kinds of facts");
  whole(remember, "--people", o.memory.people, 1, 9, "of whom facts are told");
  share(remember, "--chat", o.memory.chat, "share of the waiting that is talk");
  remember.add_option("--talks", o.memory.talks, "exchanges of which talk is chosen; 0: without end")
      ->capture_default_str()
      ->check(CLI::NonNegativeNumber);
  share(remember, "--echo", o.memory.echo, "share of facts that the model confirms by their value");
  CLI::App& pair = *app.add_subcommand("pairs", "words that go with words, asked for at once and often");
  common(pair, o);
  coded(pair, o);
  whole(pair, "--keys", o.pairs.keys, 3, 100, "words that are asked with");
  whole(pair, "--values", o.pairs.values, 2, 100, "words that go with them");
  share(pair, "--silent", o.pairs.silent, "share of conversations that are the model's text alone");
  pair.add_option("--pace", o.pace, "frames from word to word of those: 1:4")->capture_default_str();
  share(pair, "--by-user", o.pairs.by_user, "how often the user tells or asks");
  CLI::App& talk = *app.add_subcommand("dialogue", "questions and answers by grammars");
  common(talk, o);
  coded(talk, o);
  CLI::App& read = *app.add_subcommand("monologue", "one voice reads texts; mono");
  common(read, o);
  read.add_option("--festival", o.festival, "voices of festival instead: kal_diphone,cmu_us_slt_arctic_hts")
      ->delimiter(',')
      ->allow_extra_args(false);
  read.add_option("texts", o.texts, "files of plain text")->required()->check(CLI::ExistingFile);
  CLI::App& people = *app.add_subcommand("speech", "people speak; mono, without words");
  people.add_option("--output", o.output, "folder; receives train.jsonl or test.jsonl, and a folder beside")
      ->required();
  people.add_option("--seed", o.seed, "another seed, another order")->capture_default_str();
  people.add_option("--length", o.length, "seconds of a recording; 0: 20")->check(CLI::NonNegativeNumber);
  people.add_option("--minutes", o.minutes, "of each speaker, at most")->check(CLI::PositiveNumber);
  people.add_option("--keep", o.kept, "speakers that are kept for tests")
      ->delimiter(',')
      ->allow_extra_args(false);
  people.add_flag("--test", o.test, "these, instead of the others");
  people.add_option("speakers", o.people, "NAME=FOLDER, NAME=FOLDER:PART")->required();
  CLI::App& text = *app.add_subcommand("text", "what the grammars say");
  text.add_option("--lines", o.lines, "of small talk")->capture_default_str();
  text.add_flag("--values", values, "only the values that memory conversations ask for");
  CLI11_PARSE(app, argc, argv);
  return run_program("make_data", [&] {
    if (voices) return print_voices();
    if (text) return print_text(o, values);
    if (people) return make_speech(o);
    std::optional<Coder> coder;
    if (!o.codec.empty()) coder.emplace(o.codec, o.tokenizer);
    Studio studio(static_cast<std::size_t>(o.cache_gb * 1e9), coder ? &*coder : nullptr);
    if (talk) return make_all(o, studio, [&](Rng& rng) { return dialogue(o, studio, rng); });
    if (read) {
      const Library library(o.texts);
      return make_all(o, studio, [&](Rng& rng) { return monologue(o, library, rng); });
    }
    if (pair) {
      read_pairs(o);
      return make_all(o, studio, [&](Rng& rng) { return pairs(o, studio, rng); });
    }
    read_ranges(o);
    o.memory.length = o.length;
    return make_all(o, studio, [&](Rng& rng) { return memory(o, studio, rng); });
  });
}
