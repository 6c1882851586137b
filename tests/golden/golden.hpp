// Reads the reference files: tensors by name, and whole Params by the published names of their tensors.
#pragma once

#include <string>
#include <vector>

#include "catch.hpp"
#include "mttt/core/store.hpp"
#include "mttt/io/safetensors.hpp"
#include "mttt/laws.hpp"

namespace mttt::testing {

inline SafetensorsFile open_golden(const std::string& name) {
  return SafetensorsFile(std::string(MTTT_TEST_DATA) + "/" + name + ".safetensors");
}

template <class T>
std::vector<T> read_golden(const SafetensorsFile& file, const std::string& name) {
  const TensorEntry& entry = file.at(name);
  std::vector<T> values(entry.count());
  file.read(entry, values.data(), values.size());
  return values;
}

}  // namespace mttt::testing
