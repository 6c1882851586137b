// `train` in two processes: against one, stopped, resumed by another number of processes, and when one of them fails.
#include <sys/wait.h>

#include <cstdio>

#include "../io/scratch.hpp"
#include "mttt/core/rng.hpp"
#include "mttt/io/codes.hpp"
#include "mttt/io/json.hpp"

namespace {
using namespace mttt;

struct Ran {
  int status;
  std::string output;
  bool says(const std::string& words) const { return output.find(words) != std::string::npos; }
};

Ran run(const std::string& command) {
  std::FILE* pipe = ::popen(("export OMP_NUM_THREADS=1; { " + command + "; } 2>&1").c_str(), "r");
  REQUIRE(pipe != nullptr);
  std::string output;
  for (int c; (c = std::fgetc(pipe)) != EOF;) output += static_cast<char>(c);
  return {WEXITSTATUS(::pclose(pipe)), output};
}

/// The losses that a run has logged, a step each.
std::vector<double> losses(const std::filesystem::path& folder) {
  std::ifstream file(folder / "metrics.jsonl");
  std::vector<double> all;
  for (std::string line; std::getline(file, line);) {
    const auto json = nlohmann::json::parse(line);
    if (json.contains("loss")) all.push_back(json["loss"]);
  }
  return all;
}

struct Job {
  Scratch scratch;
  std::string folder = scratch.folder.string(), train = std::string(MTTT_BIN_DIR) + "/train --config ",
              two = std::string(MTTT_MPIEXEC) + " -n 2 ";

  explicit Job(const std::string& more) {
    std::filesystem::create_directory(scratch / "codes");
    Rng rng(8);
    for (const int frames : {70, 41, 100}) {
      CodedRecording recording{17, frames, {}, 12.5, 512, 256, "codec", "source"};
      for (Index i = 0; i < 17 * frames; ++i)  // text: much padding, which weighs less
        recording.codes.push_back(static_cast<std::int32_t>(i >= frames ? rng.below(256)
                                                            : i % 3 > 0 ? 3
                                                                        : rng.below(512)));
      save_codes(scratch / ("codes/" + std::to_string(frames) + ".safetensors"), recording);
    }
    const std::string keys = "preset: tiny\nrun_dir: " + folder + "/run\ndata: {train_data: " + folder +
                             "/codes, shuffle: false}\nduration_sec: 1.28\nbatch_size: 3\nlog_freq: 1\n"
                             "full_finetuning: true\nttt: {enable: true, weight_lr_multiplier: 1, "
                             "alpha_lr_multiplier: 1, alpha_pull: 0.01}\nseed: 3\noptim: {lr: 1e-3}\n" +
                             more;
    scratch.put("train.yaml", keys);
    scratch.put("full.yaml", keys + "sharding: full\n");
  }
  std::string into(const std::string& name, const std::string& file = "train.yaml") const {
    return train + folder + "/" + file + " --output " + folder + "/" + name;
  }
};
}  // namespace

TEST_CASE(
    "two processes train as one does; either goes on from the other's checkpoint, whatever is shared out") {
  const Job job("max_steps: 6\nckpt_freq: 3\n");
  const Ran alone = run(job.into("one")), both = run(job.two + job.into("two"));
  INFO(alone.output << both.output);
  REQUIRE(alone.status == 0);
  REQUIRE(both.status == 0);
  CHECK(both.says("2 processes"));
  CHECK(both.output.find("step 6/6") == both.output.rfind("step 6/6"));  // one progress line
  const auto expected = losses(job.scratch / "one"), got = losses(job.scratch / "two");
  REQUIRE(expected.size() == 6);
  REQUIRE(got.size() == 6);
  for (std::size_t i = 0; i < 6; ++i)
    CHECK(got[i] == Approx(expected[i]).epsilon(1e-4));  // float32, six steps

  std::filesystem::copy(job.scratch / "two", job.scratch / "by_one",
                        std::filesystem::copy_options::recursive);
  std::filesystem::copy(job.scratch / "two", job.scratch / "by_two",
                        std::filesystem::copy_options::recursive);
  for (const char* by : {"by_one", "by_two"}) {
    for (const char* file : {"step_000006", "carried_000006", "model"})
      REQUIRE(std::filesystem::remove(job.scratch / (std::string(by) + "/" + file + ".safetensors")));
    const bool two = by == std::string("by_two");
    const Ran resumed = run((two ? job.two + job.into(by, "full.yaml") : job.into(by)) + " --resume");
    INFO(resumed.output);
    REQUIRE(resumed.status == 0);
    CHECK(resumed.says("resumed at step 3"));
  }
  const std::string model = "/model.safetensors";
  CHECK(content_of(job.folder + "/by_two" + model) == content_of(job.folder + "/two" + model));
  const auto by_one = losses(job.scratch / "by_one");
  REQUIRE(by_one.size() == 9);
  for (std::size_t i = 3; i < 6; ++i) CHECK(by_one[i + 3] == Approx(got[i]).epsilon(1e-4));
}

TEST_CASE("two processes: SIGUSR1 stops both in good order; what fails in one ends both") {
  const Job job("max_steps: 100000\n");
  const std::string metrics = job.folder + "/run/metrics.jsonl";
  const Ran stopped = run(job.two + job.into("run") + " & p=$!; for i in $(seq 600); do sleep 0.1; [ -s " +
                          metrics + " ] && break; done; kill -USR1 $p; wait $p");
  INFO(stopped.output);
  CHECK(stopped.status == 0);
  CHECK(stopped.says("stopped in good order"));
  const auto steps = losses(job.scratch / "run").size();
  char name[64];
  std::snprintf(name, sizeof name, "run/step_%06zu.safetensors", steps);
  CHECK(std::filesystem::exists(job.scratch / name));

  const Ran failed = run(job.two + "sh -c 'if [ \"${OMPI_COMM_WORLD_RANK:-$PMI_RANK}\" = 1 ]; then exec " +
                         job.train + "none.yaml; else exec " + job.into("failed") + "; fi'");
  INFO(failed.output);
  CHECK(failed.status != 0);
  CHECK(failed.says("train, rank 1 of 2: "));
  CHECK(failed.says("none.yaml"));
  CHECK(losses(job.scratch / "failed").empty());

  const Ran too_many = run(std::string(MTTT_MPIEXEC) + " -n 4 " + job.into("many"));
  INFO(too_many.output);
  CHECK(too_many.status != 0);
  CHECK(too_many.says("found 3 segments; expected one or more a rank"));
}
