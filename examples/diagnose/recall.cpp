// diagnose recall: conversations in which a user states facts and asks for them later (make_data memory):
// whether the model knows the answers, by how long ago they were told.
//
// Formula: known answers: see questions.hpp. One is said where a model that talks freely says its pieces within the
//          time of the answer, half a second before or two after. Chance: 1 / the number of values it might have
//          been.
#include <map>

#include "../questions.hpp"
#include "commands.hpp"
#include "mttt/io/alignment.hpp"

using namespace diagnose;

namespace {

std::vector<Question> questions_of(const Recording& recording, const Options& options) {
  const auto folder = options.questions.empty() ? recording.path.parent_path() : options.questions;
  return read_questions(mttt::sidecar_of(folder / recording.path.filename()),
                        "name the folder of these files with --questions");
}

/// A question, and the pieces of its answer.
struct Asked {
  Question question;
  Pieces pieces;
};

/// Whether the pieces come, one after the other, in what a model says around the time of the answer.
bool says(const Asked& asked, const Talked& talked, const Recording& recording, const Facts& facts) {
  const double rate = recording.codes.frame_rate;
  const auto spoken = static_cast<mttt::Index>(1 + facts.dep_q);
  const auto first = std::max<mttt::Index>(0, static_cast<mttt::Index>((asked.question.from - 0.5) * rate));
  const auto end = std::min(recording.codes.frames, static_cast<mttt::Index>((asked.question.to + 2) * rate));
  std::size_t next = 0;
  for (mttt::Index t = first; t < end && next < asked.pieces.size(); ++t)
    if (talked.said[static_cast<std::size_t>(t * spoken)] == asked.pieces[next].second) ++next;
  return next == asked.pieces.size();
}

/// Shares of right answers, with 95 % by Wilson.
struct Share {
  double hits = 0, of = 0;
  void add(bool hit) { hits += hit, of += 1; }
  double mean() const { return of > 0 ? hits / of : NAN; }
  std::pair<double, double> around() const {
    const double z = 1.96, p = mean(), n = of, middle = (p + z * z / (2 * n)) / (1 + z * z / n);
    const double half = z / (1 + z * z / n) * std::sqrt(p * (1 - p) / n + z * z / (4 * n * n));
    return {middle - half, middle + half};
  }
};
std::string text_of(const Share& share) {
  if (share.of == 0) return "\u2013";
  const auto [low, high] = share.around();
  return percent_text(share.mean()) + " (" + percent_text(low) + " to " + percent_text(high) + ")";
}

constexpr double edges[] = {0.5, 1, 2, 4, 8, 16, 32, 64};  // in windows of attention
std::size_t bin_of(double windows) {
  std::size_t bin = 0;
  while (bin < std::size(edges) && windows > edges[bin]) ++bin;
  return bin;
}
std::string name_of_bin(std::size_t bin, double window) {
  const std::string to = bin < std::size(edges) ? number_text(edges[bin] * window) : "";
  if (bin == 0) return "up to " + to + " s";
  const std::string from = number_text(edges[bin - 1] * window);
  return to.empty() ? "more than " + from + " s" : from + " to " + to + " s";
}

struct Answers {
  std::string of;
  std::map<std::size_t, Share> by_bin;
  Share all;
  void add(std::size_t bin, bool hit) { by_bin[bin].add(hit), all.add(hit); }
};

}  // namespace

int recall(Subject& subject, const std::vector<Recording>& recordings, const Options& options) {
  const Facts& facts = subject.facts;
  const double window = static_cast<double>(facts.context) / recordings[0].codes.frame_rate;
  std::vector<std::vector<Asked>> asked;
  double chance = 0, count = 0;
  for (const auto& recording : recordings) {
    asked.emplace_back();
    for (const auto& question : questions_of(recording, options)) {
      asked.back().push_back(
          {question, pieces_between(question.from, question.to, recording.codes,
                                    [&](std::int32_t code) { return facts.is_word(code); })});
      if (asked.back().back().pieces.empty()) {
        asked.back().pop_back();  // beyond --max-frames
      } else {
        chance += question.chance, count += 1;
      }
    }
  }
  if (count == 0)
    mttt::fail("the recordings", "no question whose answer is among their frames", "memory conversations",
               "make them with make_data memory, encode them with their words");

  std::vector<Condition> conditions = {{.name = "as trained"}};
  if (!facts.ttt_layers.empty()) {
    conditions.push_back({.name = "TTT frozen at W_0", .frozen = true});
    conditions.push_back({.name = "gate 0", .alpha = 0});
  }
  std::vector<Answers> answers;
  Table csv{{"recording", "question", "delay_s", "chance", "condition", "right"}};
  const auto ask = [&](std::size_t r, Answers& to, auto&& right) {
    for (const Asked& one : asked[r]) {
      const bool hit = right(one);
      to.add(bin_of(one.question.delay / window), hit);
      csv.push_back({recordings[r].name(), one.question.says, exact(one.question.delay),
                     exact(one.question.chance), to.of, hit ? "1" : "0"});
    }
  };
  for (const auto& condition : conditions) {
    subject.become(condition);
    answers.push_back({condition.name, {}, {}});
    for (std::size_t r = 0; r < recordings.size(); ++r) {
      const auto heard = subject.listen(recordings[r].codes.codes, false);
      ask(r, answers.back(), [&](const Asked& one) { return knows(one.pieces, heard.likeliest_word); });
    }
  }
  subject.become({});
  answers.push_back({"as trained, said freely", {}, {}});
  TalkOptions talk{.gen = {}, .frames = 0, .seed = options.seed, .look_every = 0};
  talk.gen.text.temperature = options.temperatures[0];
  talk.gen.audio.temperature = options.audio_temperature;
  for (std::size_t r = 0; r < recordings.size(); ++r) {
    const auto talked = subject.talk(recordings[r].codes, talk);
    ask(r, answers.back(), [&](const Asked& one) { return says(one, talked, recordings[r], facts); });
  }

  Table table{{"since it was told"}};
  std::vector<mttt::Series> curves;
  for (const Answers& a : answers) {
    table[0].push_back(a.of);
    curves.push_back({a.of, {}, {}});
    for (const auto& [bin, share] : a.by_bin) {
      curves.back().x.push_back(static_cast<double>(bin) - 1.5), curves.back().y.push_back(share.mean());
    }
  }
  table[0].push_back("questions");
  for (const auto& [bin, share] : answers[0].by_bin) {
    table.push_back({name_of_bin(bin, window)});
    for (const Answers& a : answers) table.back().push_back(text_of(a.by_bin.at(bin)));
    table.back().push_back(number_text(share.of));
  }
  table.push_back({"all"});
  for (const Answers& a : answers) table.back().push_back(text_of(a.all));
  table.back().push_back(number_text(count));
  curves.push_back({"chance", {curves[0].x.front(), curves[0].x.back()}, {chance / count, chance / count}});

  Share beyond;  // of what attention no longer sees
  for (const auto& [bin, share] : answers[0].by_bin)
    if (bin >= bin_of(1.5)) beyond.hits += share.hits, beyond.of += share.of;
  Page page(options.output, "recall", title_of("What it was told", facts));
  const bool good = beyond.of > 0 && beyond.around().first > chance / count;
  page.verdict(beyond.of == 0
                   ? "No question is about what attention no longer sees (" + number_text(window) + " s)."
                   : "Of what was told longer ago than attention sees (" + number_text(window) +
                         " s), it knows " + text_of(beyond) + "; chance is " + percent_text(chance / count) +
                         ".",
               good);
  page.section(
      page.chart("recall", curves,
                 {.title = "Right answers", .x_label = "windows of attention since, as a power of 2"}));
  page.section(table_html(table));
  page.paragraph(
      "Known: each piece of the answer is the likeliest word in its frame, teacher-forced, as a stream. Said "
      "freely: "
      "the model talks as it likes to the user of the recording, and says the answer's pieces when it is "
      "asked. In "
      "brackets 95 % intervals. Delays count from the end of the word that was last heard to the answer.");
  page.file("recall.csv", csv_of(csv));
  page.write();
  return 0;
}
