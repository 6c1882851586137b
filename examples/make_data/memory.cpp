#include "memory.hpp"

#include <cmath>

using mttt::Rng;

namespace {
using List = std::vector<std::string>;

struct Attribute {
  std::string name;
  List values;  // 16, one word each
};

const std::vector<Attribute>& attributes() {
  static const std::vector<Attribute> all{
      {"favorite color",
       {"red", "blue", "green", "yellow", "black", "white", "purple", "orange", "brown", "silver", "golden",
        "pink", "gray", "violet", "crimson", "turquoise"}},
      {"lucky number",
       {"seven", "three", "twelve", "eleven", "twenty", "four", "nine", "five", "eight", "fifteen", "two",
        "six", "thirty", "forty", "one", "ninety"}},
      {"favorite animal",
       {"elephant", "monkey", "horse", "tiger", "rabbit", "penguin", "camel", "dolphin", "eagle", "turtle",
        "spider", "lion", "squirrel", "chicken", "donkey", "crocodile"}},
      {"favorite food",
       {"pizza", "chocolate", "rice", "potatoes", "cheese", "bananas", "salad", "noodles", "honey",
        "mushrooms", "spinach", "bacon", "pancakes", "tomatoes", "cookies", "fish"}},
      {"first name",
       {"peter", "anna", "robert", "julia", "oliver", "emily", "thomas", "victoria", "henry", "barbara",
        "david", "sophia", "michael", "laura", "simon", "charlotte"}},
      {"home town",
       {"paris", "london", "berlin", "chicago", "tokyo", "moscow", "madrid", "boston", "vienna", "cairo",
        "sydney", "dublin", "lisbon", "venice", "houston", "athens"}},
      {"profession",
       {"doctor", "farmer", "pilot", "teacher", "lawyer", "baker", "soldier", "painter", "nurse", "engineer",
        "sailor", "judge", "singer", "butcher", "writer", "carpenter"}},
      {"favorite sport",
       {"tennis", "football", "swimming", "boxing", "golf", "hockey", "skiing", "rowing", "baseball",
        "running", "chess", "sailing", "wrestling", "volleyball", "climbing", "archery"}},
      {"favorite instrument",
       {"piano", "violin", "trumpet", "guitar", "flute", "drums", "harp", "cello", "organ", "clarinet",
        "trombone", "banjo", "accordion", "saxophone", "whistle", "mandolin"}},
      {"favorite plant",
       {"roses", "tulips", "bamboo", "cactus", "lilies", "ivy", "clover", "daisies", "moss", "lavender",
        "orchids", "poppies", "sunflowers", "grass", "thistles", "palms"}}};
  return all;
}

/// As the user calls them.
const List& people() {
  static const List all{"my",           "my brother's", "my sister's", "my neighbor's", "my father's",
                        "my teacher's", "my mother's",  "my uncle's",  "my doctor's"};
  return all;
}

std::string for_model(const std::string& person) { return "your" + person.substr(2); }

std::string what(const std::string& person, const std::string& attribute) { return person + " " + attribute; }

struct Fact {
  std::size_t person, attribute, value;
  double delay, state_at;
  Question question{};
  double ask_at = -1;  // not told yet
  bool done = false;
};

std::string opening(Rng& rng) {
  static const List openings{"", "", "please remember, ", "you know, ", "let me tell you, ", "by the way, "};
  return pick(openings, rng);
}

/// The value is spoken by itself. In one sentence the pitch, pace and loudness of what comes before it would tell it: a
/// model that has learned the sentences by heart answers without having listened. Answers the value's word.
std::size_t say_fact(Speaker speaker, const std::string& before, const std::string& value, double gap,
                     Conversation& c) {
  c.say(speaker, before + " is", gap);
  return c.say(speaker, value + ".", 0.04);
}

std::string question(const std::string& subject, Rng& rng) {
  static const List forms{"what is ", "what is ", "do you remember ", "tell me, what is ",
                          "can you tell me "};
  return pick(forms, rng) + subject + "?";
}

const List& acknowledgements() {
  static const List list{"okay.", "i see.", "good to know.", "i will remember that.", "all right."};
  return list;
}

double draw_delay(const MemoryOptions& o, Rng& rng) {
  if (!o.delays.empty()) return pick(o.delays, rng);
  return o.shortest * std::pow(o.longest / o.shortest, rng.uniform());
}

std::vector<Fact> draw_facts(const MemoryOptions& o, Split split, Rng& rng) {
  const auto keys = static_cast<std::uint64_t>(o.people) * static_cast<std::uint64_t>(o.attributes);
  const auto count =
      std::min<std::uint64_t>(keys, static_cast<std::uint64_t>(o.fewest) +
                                        rng.below(static_cast<std::uint64_t>(o.most - o.fewest + 1)));
  std::vector<Fact> facts;
  while (facts.size() < count) {
    Fact fact{rng.below(static_cast<std::uint64_t>(o.people)),
              rng.below(static_cast<std::uint64_t>(o.attributes)),
              rng.below(static_cast<std::uint64_t>(o.values)), draw_delay(o, rng), 0};
    const bool taken = std::any_of(facts.begin(), facts.end(), [&](const Fact& other) {
      return other.person == fact.person && other.attribute == fact.attribute;
    });
    const Attribute& attribute = attributes()[fact.attribute];
    const std::string subject = what(people()[fact.person], attribute.name);
    const bool kept =
        text_hash(subject) % attribute.values.size() == fact.value;  // one value of each, for tests
    if (taken || (kept && split == Split::train)) continue;
    fact.question = {people()[fact.person],
                     attribute.name,
                     attribute.values[fact.value],
                     o.values,
                     false,
                     kept,
                     0,
                     0,
                     0,
                     0};
    facts.push_back(std::move(fact));
  }
  return facts;
}

/// Of all, or of so many that their sentences are soon spoken and encoded.
Exchange draw_talk(const MemoryOptions& o, Split split, Rng& rng) {
  if (o.talks == 0) return small_talk(split, rng);
  Rng one(text_hash("talk"), rng.below(static_cast<std::uint64_t>(o.talks)) << 32);
  return small_talk(split, one);
}

/// Talk or silence until `due`, as near as sentences allow.
void wait_until(double due, const MemoryOptions& o, Split split, Conversation& c, Rng& rng) {
  while (due - c.now() > 0.3) {
    const double left = due - c.now();
    if (rng.uniform() < o.chat) {
      for (int tries = 0; tries < 6; ++tries) {
        const Exchange talk = draw_talk(o, split, rng);
        double needed = 0;
        for (const Line& line : talk) needed += 0.5 + 0.068 * static_cast<double>(line.text.size());
        if (needed > left + 0.5) continue;
        c.say(talk, rng);
        break;
      }
    }
    const double rest = due - c.now();
    if (rest > 0)
      c.pause(std::min(rest, o.chat >= 1 ? 0.3 + rng.uniform() : 0.5 + 3 * (1.2 - o.chat) * rng.uniform()));
  }
}

void tell(Fact& fact, const MemoryOptions& o, Conversation& c, Rng& rng) {
  Question& q = fact.question;
  q.told_word = q.heard_word = say_fact(Speaker::user, opening(rng) + what(q.person, q.attribute), q.value,
                                        Conversation::turn_gap(rng), c);
  q.echoed = rng.uniform() < o.echo;
  const double gap = 0.25 + 0.3 * rng.uniform();
  if (q.echoed) {
    q.heard_word =
        say_fact(Speaker::model, "okay, " + what(for_model(q.person), q.attribute), q.value, gap, c);
  } else {
    c.say(Speaker::model, pick(acknowledgements(), rng), gap);
  }
  fact.ask_at = c.words()[q.heard_word].end + fact.delay - 4.1;  // about what question and answer take
}

void ask(Fact& fact, Conversation& c, Rng& rng) {
  Question& q = fact.question;
  q.asked_word = c.say(Speaker::user, question(what(q.person, q.attribute), rng), 0.3 + 0.4 * rng.uniform());
  q.answer_word = say_fact(Speaker::model, what(for_model(q.person), q.attribute), q.value,
                           0.25 + 0.3 * rng.uniform(), c);
  fact.done = true;
}
}  // namespace

MemoryConversation memory_conversation(const MemoryOptions& o, Split split, Conversation c, Rng& rng) {
  std::vector<Fact> facts = draw_facts(o, split, rng);
  double longest = 0;
  for (const Fact& fact : facts) longest = std::max(longest, fact.delay);
  const double length = o.length > 0 ? o.length : longest + 5.0 * static_cast<double>(facts.size());
  for (Fact& fact : facts) fact.state_at = rng.uniform() * std::max(0.0, length - fact.delay - 4);

  MemoryConversation memory{std::move(c), {}};
  Conversation& talk = memory.conversation;
  // What is due first comes first; what comes late because of others is late.
  const auto due = [](const Fact& fact) { return fact.ask_at < 0 ? fact.state_at : fact.ask_at; };
  for (;;) {
    Fact* next = nullptr;
    for (Fact& fact : facts)
      if (!fact.done && (next == nullptr || due(fact) < due(*next))) next = &fact;
    if (next == nullptr) break;
    wait_until(due(*next), o, split, talk, rng);
    if (next->ask_at < 0) {
      tell(*next, o, talk, rng);
    } else {
      ask(*next, talk, rng);
      memory.questions.push_back(next->question);
    }
  }
  if (o.length > 0) wait_until(o.length - 0.5, o, split, talk, rng);
  return memory;
}

MemoryConversation pair_conversation(const PairOptions& o, Conversation c, Rng& rng) {
  static const List words = memory_values();
  struct Pair {
    std::string key, value;
    std::size_t heard = 0;
    bool told = false;
  };
  const auto first_value = static_cast<std::size_t>(o.keys);
  List keys(words.begin(), words.begin() + o.keys);
  std::vector<Pair> pairs;
  for (auto wanted = 3 + rng.below(first_value - 2); pairs.size() < wanted;) {
    std::swap(keys[pairs.size()], keys[pairs.size() + rng.below(keys.size() - pairs.size())]);
    pairs.push_back(
        {keys[pairs.size()], words[first_value + rng.below(static_cast<std::uint64_t>(o.values))]});
  }

  MemoryConversation memory{std::move(c), {}};
  Conversation& talk = memory.conversation;
  const bool silent = rng.uniform() < o.silent;
  const auto say = [&](Speaker speaker, const std::string& word, double gap) {
    if (!silent) return talk.say(speaker, word + ".", gap);
    const auto more = rng.below(static_cast<std::uint64_t>(o.longest - o.shortest + 1));
    return talk.think(word, o.shortest + static_cast<int>(more));
  };
  while (talk.now() < o.length) {
    Pair& pair = pairs[rng.below(pairs.size())];
    const Speaker asks = rng.uniform() < o.by_user ? Speaker::user : Speaker::model;
    const std::size_t asked = say(asks, pair.key, 0.1 + 0.3 * rng.uniform());
    const Speaker tells = pair.told ? Speaker::model : asks;
    const std::size_t word = say(tells, pair.value, tells == asks ? 0.04 : 0.15 + 0.2 * rng.uniform());
    if (pair.told)
      memory.questions.push_back(
          {"with", pair.key, pair.value, o.values, false, false, pair.heard, pair.heard, asked, word});
    pair.heard = word, pair.told = true;
  }
  return memory;
}

std::vector<std::string> memory_text() {
  std::vector<std::string> text;
  Rng rng(1);
  for (const auto& attribute : attributes()) {
    for (const auto& value : attribute.values) {
      for (const auto& person : people()) {
        const std::string subject = what(person, attribute.name);
        text.push_back(opening(rng) + subject + " is " + value + ".");
        text.push_back(question(subject, rng));
        text.push_back(what(for_model(person), attribute.name) + " is " + value + ".");
        text.push_back(pick(acknowledgements(), rng));
      }
    }
  }
  return text;
}

std::vector<std::string> memory_values() {
  std::vector<std::string> values;
  for (const auto& attribute : attributes())
    values.insert(values.end(), attribute.values.begin(), attribute.values.end());
  return values;
}
