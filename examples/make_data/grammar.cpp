#include "grammar.hpp"

#include <functional>

using mttt::Rng;

namespace {
using List = std::vector<std::string>;

constexpr auto user = Speaker::user, model = Speaker::model;

Exchange ask(std::string question, std::string answer) {
  return {{user, std::move(question)}, {model, std::move(answer)}};
}

const List& openings() {
  static const List list{"", "", "", "tell me, ", "so, ", "please tell me, ", "one more thing, ", "listen, "};
  return list;
}

Exchange arithmetic(Rng& rng) {
  const int kind = static_cast<int>(rng.below(3)), a = 1 + static_cast<int>(rng.below(kind == 2 ? 9 : 20)),
            b = 1 + static_cast<int>(rng.below(kind == 2 ? 9 : 20));
  const int x = kind == 1 ? a + b : a, result = kind == 0 ? a + b : kind == 1 ? a : a * b;
  const char* sign = kind == 0 ? " plus " : kind == 1 ? " minus " : " times ";
  const std::string task = number_word(x) + sign + number_word(b);
  return ask(pick(openings(), rng) + "what is " + task + "?", task + " is " + number_word(result) + ".");
}

Exchange order(Rng& rng) {
  static const List days{"monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"};
  static const List months{"january", "february", "march",     "april",   "may",      "june",
                           "july",    "august",   "september", "october", "november", "december"};
  const List& list = rng.below(2) ? days : months;
  const auto i = static_cast<std::size_t>(rng.below(list.size()));
  const bool after = rng.below(2);
  const auto& other = list[(i + (after ? 1 : list.size() - 1)) % list.size()];
  const std::string relation = after ? "after " : "before ";
  return ask("which " + std::string(&list == &days ? "day" : "month") + " comes " + relation + list[i] + "?",
             other + " comes " + relation + list[i] + ".");
}

Exchange counting(Rng& rng) {
  const int from = 1 + static_cast<int>(rng.below(12)), to = from + 2 + static_cast<int>(rng.below(4));
  std::string numbers;
  for (int n = from; n <= to; ++n) numbers += (n > from ? ", " : "") + number_word(n);
  return ask("please count from " + number_word(from) + " to " + number_word(to) + ".", numbers + ".");
}

Exchange arrival(Rng& rng) {
  static const List things{"train", "bus", "ship", "plane", "show", "lesson", "game", "film"};
  const auto& thing = pick(things, rng);
  const bool travels = &thing < &things[4];
  const int start = 1 + static_cast<int>(rng.below(8)), hours = 1 + static_cast<int>(rng.below(4));
  return ask("the " + thing + (travels ? " leaves at " : " begins at ") + number_word(start) + " and takes " +
                 number_word(hours) + (hours == 1 ? " hour" : " hours") + ". when does it " +
                 (travels ? "arrive?" : "end?"),
             std::string("it ") + (travels ? "arrives at " : "ends at ") + number_word(start + hours) + ".");
}

Exchange clock(Rng& rng) {
  static const List minutes{"half past ", "a quarter past ", "a quarter to ",
                            "ten past ",  "ten to ",         "just after "};
  static const List questions{"what time is it?", "do you know the time?",
                              "can you tell me the time, please?"};
  return ask(pick(questions, rng),
             "it is " + pick(minutes, rng) + number_word(1 + static_cast<int>(rng.below(12))) + ".");
}

Exchange weather(Rng& rng) {
  static const List places{"in the north",  "in the south", "by the sea",    "in the mountains",
                           "in the valley", "at home",      "on the island", "in the capital"},
      skies{"sunny", "cloudy", "rainy", "windy", "foggy", "stormy"},
      airs{"warm", "cold", "cool", "hot", "mild"}, days{"today", "tomorrow", "tonight", "on the weekend"};
  const std::string place = pick(places, rng), day = pick(days, rng);
  return ask("how is the weather " + place + " " + day + "?",
             place + " it is " + pick(skies, rng) + " and " + pick(airs, rng) + " " + day + ".");
}

Exchange opposite(Rng& rng) {
  static const std::pair<const char*, const char*> pairs[] = {
      {"hot", "cold"},   {"big", "small"},   {"old", "young"},   {"fast", "slow"},   {"high", "low"},
      {"long", "short"}, {"light", "dark"},  {"happy", "sad"},   {"early", "late"},  {"rich", "poor"},
      {"hard", "soft"},  {"empty", "full"},  {"open", "closed"}, {"strong", "weak"}, {"wet", "dry"},
      {"near", "far"},   {"clean", "dirty"}, {"loud", "quiet"},  {"thick", "thin"},  {"first", "last"},
      {"day", "night"},  {"begin", "end"},   {"buy", "sell"},    {"give", "take"},   {"summer", "winter"}};
  const auto& [one, two] = pick(pairs, rng);
  const bool turned = rng.below(2);
  const std::string a = turned ? two : one, b = turned ? one : two;
  return ask(pick(openings(), rng) + "what is the opposite of " + a + "?",
             "the opposite of " + a + " is " + b + ".");
}

const std::pair<const char*, const char*> spellings[] = {
    {"dog", "D, O, G"},     {"sun", "S, U, N"},     {"bird", "B, I, R, D"}, {"tree", "T, R, E, E"},
    {"fish", "F, I, S, H"}, {"book", "B, O, O, K"}, {"milk", "M, I, L, K"}, {"moon", "M, O, O, N"},
    {"ship", "S, H, I, P"}, {"door", "D, O, O, R"}, {"king", "K, I, N, G"}, {"snow", "S, N, O, W"},
    {"frog", "F, R, O, G"}, {"desk", "D, E, S, K"}, {"girl", "G, I, R, L"}, {"word", "W, O, R, D"},
    {"left", "L, E, F, T"}, {"jump", "J, U, M, P"}, {"five", "F, I, V, E"}, {"house", "H, O, U, S, E"}};

Exchange spelling(Rng& rng) {
  const auto& [word, letters] = pick(spellings, rng);
  if (rng.below(3) == 0)
    return ask(std::string("which word is ") + letters + "?", std::string("that is the word ") + word + ".");
  return ask(std::string("how do you spell ") + word + "?", std::string(letters) + ".");
}

Exchange capital(Rng& rng) {
  static const std::pair<const char*, const char*> pairs[] = {
      {"france", "paris"},     {"england", "london"}, {"spain", "madrid"},     {"italy", "rome"},
      {"germany", "berlin"},   {"russia", "moscow"},  {"japan", "tokyo"},      {"china", "beijing"},
      {"egypt", "cairo"},      {"greece", "athens"},  {"austria", "vienna"},   {"ireland", "dublin"},
      {"portugal", "lisbon"},  {"norway", "oslo"},    {"sweden", "stockholm"}, {"poland", "warsaw"},
      {"hungary", "budapest"}, {"canada", "ottawa"},  {"cuba", "havana"},      {"peru", "lima"}};
  const auto& [country, city] = pick(pairs, rng);
  if (rng.below(2))
    return ask(std::string("which country has the capital ") + city + "?",
               std::string(city) + " is the capital of " + country + ".");
  return ask(pick(openings(), rng) + "what is the capital of " + country + "?",
             std::string("the capital of ") + country + " is " + city + ".");
}

/// A question about what was just said.
Exchange story(Rng& rng) {
  static const List who{"the fox",   "the king",  "the sailor", "the old man",
                        "the queen", "the child", "the bird",   "the farmer"},
      does{"sleeps", "waits", "hides", "sings", "works", "sits"},
      where{"in the garden", "under the bridge", "on the hill",   "in the forest",
            "by the river",  "behind the house", "at the market", "in the kitchen"},
      when{"in the morning", "at noon", "at night", "in the evening", "all day", "after dinner"};
  const std::string w = pick(who, rng), d = pick(does, rng), p = pick(where, rng), t = pick(when, rng);
  const std::string told = w + " " + d + " " + p + " " + t + ". ";
  switch (rng.below(3)) {
    case 0:
      return ask(told + "where is " + w + "?", w + " is " + p + ".");
    case 1:
      return ask(told + "who " + d + " " + p + "?", w + " " + d + " " + p + ".");
    default:
      return ask(told + "when is " + w + " " + p + "?", t + ".");
  }
}

Exchange repeat(Rng& rng) {
  static const List words{"river",  "window", "silver",   "paper",  "garden", "yellow",
                          "winter", "little", "music",    "seven",  "candle", "bridge",
                          "orange", "table",  "mountain", "doctor", "travel", "story"};
  std::string list;
  const auto count = 2 + rng.below(3);
  for (std::uint64_t i = 0; i < count; ++i) list += (i ? ", " : "") + pick(words, rng);
  return ask("repeat after me. " + list + ".", list + ".");
}

Exchange kinds(Rng& rng) {
  static const std::pair<const char*, const char*> pairs[] = {
      {"a whale", "an animal"}, {"a rose", "a flower"},        {"an oak", "a tree"},
      {"a hammer", "a tool"},   {"a violin", "an instrument"}, {"an eagle", "a bird"},
      {"a salmon", "a fish"},   {"a carrot", "a vegetable"},   {"a chair", "furniture"},
      {"a diamond", "a stone"}, {"an ant", "an insect"},       {"a novel", "a book"}};
  const auto& [thing, kind] = pick(pairs, rng);
  const auto& [other, wrong] = pick(pairs, rng);
  const bool yes = rng.below(2) || thing == other;
  return ask(std::string("is ") + thing + " " + (yes ? kind : wrong) + "?",
             std::string(yes ? "yes, " : "no, ") + thing + " is " + kind + ".");
}

Exchange chat(Rng& rng) {
  static const Exchange talks[] = {
      {{user, "i went to the market this morning."},
       {model, "that sounds nice. what did you buy?"},
       {user, "some bread and a few apples."},
       {model, "i hope they taste good."}},
      {{user, "i am a little tired today."},
       {model, "did you sleep well?"},
       {user, "no, the neighbors were too loud."},
       {model, "then you should go to bed early tonight."}},
      {{user, "do you like music?"}, {model, "yes, i like songs with a slow melody."}},
      {{user, "it has been a long week."}, {model, "soon you can rest."}},
      {{user, "i am learning to swim."},
       {model, "good for you. is it hard?"},
       {user, "only the breathing."},
       {model, "that will come with time."}},
      {{user, "my car does not start."}, {model, "perhaps the battery is empty."}},
      {{user, "can you help me?"},
       {model, "of course. what can i do for you?"},
       {user, "i only wanted to talk."},
       {model, "i am always glad to talk."}},
      {{model, "what are you doing this evening?"},
       {user, "i will read a book."},
       {model, "enjoy your book."}},
      {{model, "have you eaten already?"},
       {user, "yes, we had soup and bread."},
       {model, "that sounds good."}},
      {{user, "the garden is full of flowers."}, {model, "spring is the best time of the year."}},
      {{user, "i lost my keys again."},
       {model, "did you look under the table?"},
       {user, "there they are, thank you."},
       {model, "you are welcome."}},
      {{user, "we will visit the museum on sunday."},
       {model, "what will you see there?"},
       {user, "old ships and maps."},
       {model, "that must be interesting."}},
      {{user, "i cannot find a good book."}, {model, "then try one with a happy end."}},
      {{user, "the bread is still warm."}, {model, "then eat it now."}},
      {{user, "are you a person?"}, {model, "no, i am a computer with a voice."}},
      {{user, "say something kind."}, {model, "you have a very pleasant voice."}}};
  return pick(talks, rng);
}

using Grammar = Exchange (*)(Rng&);
constexpr Grammar grammars[] = {arithmetic, arithmetic, order, counting, arrival, clock, weather, opposite,
                                spelling,   capital,    story, story,    repeat,  kinds, chat,    chat};
}  // namespace

std::uint64_t text_hash(std::string_view text) {
  std::uint64_t hash = 14695981039346656037u;  // FNV-1a
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 1099511628211u;
  return hash ^ (hash >> 29);
}

std::string number_word(int n) {
  static const List small{"zero",     "one",     "two",     "three",     "four",     "five",    "six",
                          "seven",    "eight",   "nine",    "ten",       "eleven",   "twelve",  "thirteen",
                          "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"},
      tens{"", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"};
  if (n < 20) return small[static_cast<std::size_t>(n)];
  return tens[static_cast<std::size_t>(n / 10)] +
         (n % 10 ? " " + small[static_cast<std::size_t>(n % 10)] : "");
}

Exchange greeting(Rng& rng) {
  static const List hellos{"hello.",    "good morning.",       "good evening.",
                           "hi there.", "hello, how are you?", "good day."};
  static const List replies{"hello, what can i do for you?", "hello, it is nice to hear you.",
                            "hi, how can i help you?",
                            "good to hear you. what would you like to talk about?"};
  const std::string& hello = pick(hellos, rng);
  if (hello.ends_with('?')) return ask(hello, "i am fine, thank you. what can i do for you?");
  return ask(hello, pick(replies, rng));
}

Exchange goodbye(Rng& rng) {
  static const List byes{"goodbye.", "thank you, goodbye.", "that is all for today, thank you.",
                         "i have to go now."};
  static const List replies{"goodbye.", "goodbye, it was nice to talk to you.", "see you soon.",
                            "have a nice day."};
  return ask(pick(byes, rng), pick(replies, rng));
}

Exchange small_talk(Split split, Rng& rng) {
  const Grammar grammar = pick(grammars, rng);
  Exchange exchange;
  for (int tries = 0; tries < 30; ++tries) {
    exchange = grammar(rng);
    if (held_out(exchange.front().text + exchange.back().text) == (split == Split::test)) return exchange;
  }
  return split == Split::test ? exchange
                              : small_talk(split, rng);  // a small grammar may have nothing held out
}

std::vector<std::string> grammar_text(int lines, std::uint64_t seed) {
  Rng rng(seed);
  std::vector<std::string> text;
  while (static_cast<int>(text.size()) < lines) {
    const auto kind = rng.below(20);
    for (const Line& line : kind == 0   ? greeting(rng)
                            : kind == 1 ? goodbye(rng)
                                        : small_talk(Split::train, rng))
      text.push_back(line.text);
  }
  return text;
}
