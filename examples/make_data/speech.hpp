// Recordings of people, from folders of short sounds.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "mttt/core/rng.hpp"
#include "recording.hpp"

/// NAME=FOLDER, or NAME=FOLDER:PART for the files whose names hold PART.
struct Person {
  std::string name, part;
  std::filesystem::path folder;
};
Person person_of(const std::string& text);

/// All that someone says, in an order by `rng`: recordings of about `length` seconds, at most `most` seconds in all,
/// mono, silence between sounds shortened. No words are known.
std::vector<Recording> recordings_of(const Person& person, double length, double most, mttt::Rng& rng);
