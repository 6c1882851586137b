// Reads the reference files: tensors by name, and whole Params by the published names of their tensors. The
// bodies of these tests are templates over the backend: files here run them on Cpu, tests/cuda/golden_*.cu on
// Cuda.
#pragma once

#include <string>
#include <vector>

#include "catch.hpp"
#include "mttt/backend/cpu/cpu.hpp"
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

/// A copy of a backend's tensor in the arena of `host`, and the way back.
template <class Host, class B, class T, Index... E>
Tensor<std::remove_const_t<T>, E...> fetch(Host& host, B& be, Tensor<T, E...> t) {
  using U = std::remove_const_t<T>;
  const Tensor<U, E...> copy(host.template make<U, dyn>(t.size()).data(), t.extents());
  be.to_host(t.data(), copy.data(), t.size());
  return copy;
}
template <class B, class T, Index... E>
Tensor<std::remove_const_t<T>, E...> send(B& be, Tensor<T, E...> t) {
  using U = std::remove_const_t<T>;
  const Tensor<U, E...> copy(be.template make<U, dyn>(t.size()).data(), t.extents());
  be.to_device(t.data(), copy.data(), t.size());
  return copy;
}

}  // namespace mttt::testing
