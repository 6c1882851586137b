// The program check, on a folder of full size without contents, and on what is wrong with such folders.
#include "../io/hollow.hpp"

namespace {
int check(const Scratch& folder, const std::string& arguments) {
  const std::string log = (folder / "log").string();
  const int status = std::system((MTTT_BIN_DIR "/check " + arguments + " > " + log + " 2>&1").c_str());
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}
}  // namespace

TEST_CASE("check tells what a folder holds, and what is wrong with it", "[e2e]") {
  const Repository repository;
  const auto& folder = repository.folder;
  write_hollow(folder / "model.safetensors", published("moshi_7b_tensors.json", "BF16"));
  CHECK(check(folder, folder.folder.string()) == 0);
  CHECK_THAT(content_of(folder / "log"), contains("Moshi: 439 tensors, 15.38 GB in BF16") &&
                                             contains("Mimi: 318 tensors") &&
                                             contains("all of it fits the presets moshi_7b and mimi_24khz"));
  std::filesystem::copy_file(MTTT_SOURCE_DIR "/assets/tokenizer.model", folder / "tokenizer_spm_32k_3.model");
  CHECK(check(folder, folder.folder.string()) == 1);
  CHECK_THAT(content_of(folder / "log"), contains("check: ") && contains("found 512 pieces; expected 32000"));
  folder.put("model.safetensors", "version https://git-lfs.github.com/spec/v1\n");
  CHECK(check(folder, folder.folder.string()) == 1);
  CHECK_THAT(content_of(folder / "log"), contains("found a Git LFS pointer"));
}
