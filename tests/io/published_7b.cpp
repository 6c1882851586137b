// The presets of the published models against files of their full size: 15 GB that take no room, for no
//                                                                       number in them
// was ever written. Names, shapes and types are checked, and the time and the memory that this takes.
#include <sys/resource.h>
#include <sys/stat.h>

#include <chrono>

#include "hollow.hpp"

namespace {
std::string refused(const Repository& repository, const List& list) {
  write_hollow(repository.folder / "model.safetensors", list);
  return error_of([&] { check_moshi<presets::moshi_7b>(find_model(repository.folder.folder)); });
}

long peak_mb() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  return usage.ru_maxrss / 1024;
}
}  // namespace

TEST_CASE("the published 7B model in bf16, and Mimi, fit their presets", "[io]") {
  const Repository repository;
  const auto start = std::chrono::steady_clock::now();
  CHECK(refused(repository, published("moshi_7b_tensors.json", "BF16")).empty());
  CHECK(std::filesystem::file_size(repository.folder / "model.safetensors") > 15'000'000'000);
  struct stat status {};
  REQUIRE(::stat((repository.folder / "model.safetensors").c_str(), &status) == 0);
  CHECK(status.st_blocks * 512 < 10'000'000);  // the disk knows that nothing is there
  check_mimi<presets::mimi_24khz>(find_model(repository.folder.folder));
  CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(20));
  CHECK(peak_mb() < 500);
}

TEST_CASE("the published 7B model with weights per step below each other", "[io]") {
  const Repository repository;
  List list;
  std::map<std::string, Tensor7b> stacked;
  for (auto& tensor : published("moshi_7b_tensors.json", "BF16")) {
    const auto at = tensor.name.find("_projs.");
    if (at == tensor.name.npos) {
      list.push_back(tensor);
      continue;
    }
    const bool in = tensor.name.substr(at - 2, 2) == "in";
    const std::string name = tensor.name.substr(0, at) + (in ? "_proj_weight" : "_proj.weight");
    auto [place, fresh] = stacked.emplace(name, Tensor7b{name, "BF16", tensor.shape});
    if (!fresh) place->second.shape[0] += tensor.shape[0];
  }
  for (const auto& [name, tensor] : stacked) list.push_back(tensor);
  CHECK(list.size() < 400);
  CHECK(refused(repository, list).empty());
}

TEST_CASE("the published 7B model in int8", "[io]") {
  const Repository repository;
  List list;
  for (auto& tensor : published("moshi_7b_tensors.json", "BF16")) {
    const bool linear = tensor.name.find("emb") == tensor.name.npos && tensor.name.ends_with(".weight");
    list.push_back({tensor.name, linear ? "I8" : "BF16", tensor.shape});
    if (linear) list.push_back({tensor.name + "_scb", "F32", {tensor.shape[0]}});
  }
  CHECK(refused(repository, list).empty());
  list[list.size() - 1].shape = {7};
  CHECK_THAT(refused(repository, list), contains("found scales of shape [7], expected one a row"));
}

TEST_CASE("another 7B model is refused with all that differs", "[io]") {
  const Repository repository;
  auto list = published("moshi_7b_tensors.json", "BF16");
  std::erase_if(list, [](const Tensor7b& tensor) { return tensor.name.starts_with("depformer_in.7"); });
  for (auto& tensor : list) {
    if (tensor.name == "text_linear.weight") tensor.shape = {48000, 4096};
    if (tensor.name == "emb.0.weight") tensor.dtype = "I8";
  }
  list.push_back({"extra_heads.0.weight", "BF16", {6, 4096}});
  const auto message = refused(repository, list);
  CHECK_THAT(message, contains("4 problems") &&
                          contains("missing tensor 'depformer_in.7.weight' of shape [1024, 4096]"));
  CHECK_THAT(message, contains("'text_linear.weight': found [48000, 4096], expected [32000, 4096]"));
  CHECK_THAT(message,
             contains("mistyped tensor 'emb.0.weight': found I8, expected F32 or a type that converts"));
  CHECK_THAT(message, contains("extra tensor 'extra_heads.0.weight' of shape [6, 4096]"));
}
