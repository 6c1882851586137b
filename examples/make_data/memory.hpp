// Memory conversations: a user states facts, talks about other things, and asks for them.
#pragma once

#include "grammar.hpp"

struct MemoryOptions {
  double shortest = 5, longest = 30;  // seconds from when a value was last said to its word in the answer
  std::vector<double> delays = {};    // these instead, each as often as the others
  int fewest = 1, most = 4;           // facts in a conversation
  int values = 16;                    // of each attribute
  int attributes = 10, people = 9;    // of those there are
  double chat = 0.8;                  // how much of the waiting is filled with talk; the rest is silence
  int talks = 0;                      // exchanges of which talk is chosen; 0: without end
  double echo = 0.5;                  // how often the model confirms a fact by its value
  double length = 0;                  // seconds; 0: as the delays and facts need
};

struct Question {
  std::string person, attribute, value;
  int values;     // that it might have been
  bool echoed;    // the model said the value when it was told
  bool held_out;  // of this attribute and value nothing is in training
  std::size_t told_word, heard_word, asked_word, answer_word;  // of the conversation
};

struct MemoryConversation {
  Conversation conversation;
  std::vector<Question> questions;
};

MemoryConversation memory_conversation(const MemoryOptions& options, Split split, Conversation start,
                                       mttt::Rng& rng);

struct PairOptions {
  int keys = 16, values = 32;     // words of which pairs are made
  double silent = 0;              // share of conversations that are the model's text alone
  int shortest = 1, longest = 4;  // frames from word to word of those
  double by_user = 0.5;           // how often it is the user who tells, or asks
  double length = 40;             // seconds
};

/// The quickest of memory: a word, and the word that goes with it for as long as the conversation lasts, again and again.
/// Facts are asked for three times a minute, pairs up to twice a second: memory forms here first.
MemoryConversation pair_conversation(const PairOptions& options, Conversation start, mttt::Rng& rng);

/// Every sentence of a kind that memory conversations say, all values often enough to be pieces of a tokenizer.
std::vector<std::string> memory_text();
std::vector<std::string> memory_values();
