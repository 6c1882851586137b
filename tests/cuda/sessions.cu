// Sessions on the GPU, as one recorded graph, beside the same conversations alone, call by call: bit for bit.
#include "agreement.cuh"
#include "laws/sessions_small.hpp"

#include <set>

namespace {
using namespace mttt;
using namespace mttt::testing;
using D = Cuda<float>;
using Talk = SmallTalk<D>;

struct Fixture {
  D gpu;
  Rng rng{5};
  Learned learned{rng};
  Store<Mimi<mimi_small, D>::Params, D> codec{gpu};
  Store<Mimi<mimi_small, D>::Codebooks, D> books{gpu};
  Store<Moshi<duplex_small, D>::Params, D> lm{gpu};
  Talk::Models models{*codec, *books, *lm};

  Fixture() {
    upload(gpu, learned.codec, codec);
    upload(gpu, learned.lm, lm);
    Mimi<mimi_small, D>::derive(gpu, *codec, *books);
  }
  void empty(Company<D>& company) {
    for (const auto& guest : company.guests) company.all.leave(guest.id);
    company.guests.clear(), company.kept.clear();
  }
  /// Through everything that may happen between frames.
  void live(Company<D>& company, Index frames) {
    for (Index t = 0; t < frames; ++t) {
      INFO("frame " << t);
      while (company.rng.uniform() < 0.4) company.happen(company.draw(8));
      if (company.guests.empty()) company.join();
      company.frame(0.8);
    }
    for (const Index n : company.happened) CHECK(n > 0);
    CHECK(company.audible > frames / 2);
  }
};
}  // namespace

TEST_CASE_METHOD(Fixture, "CUDA: a schedule of sessions in one graph, each as alone and call by call") {
  for (const Index slots : {3, 9}) {  // of few rows, and of more than those
    Company<D> company(gpu, models, slots, 11);
    live(company, 250);
  }
}

TEST_CASE_METHOD(Fixture, "CUDA: the memory of sessions does not grow, whatever they do") {
  Company<D> company(gpu, models, 4, 12);
  live(company, 200);
  empty(company);
  const Index arena = gpu.arena_bytes(), held = CudaMemory::held();
  live(company, 50);
  empty(company);
  CHECK(gpu.arena_bytes() == arena);
  CHECK(CudaMemory::held() == held);
}

TEST_CASE_METHOD(Fixture, "CUDA: a session of the GPU goes on on the CPU, and comes back") {
  using HostTalk = SmallTalk<Cpu<float>>;
  Company<D> company(gpu, models, 3, 13);
  for (int i = 0; i < 2; ++i) company.join();
  for (int t = 0; t < 12; ++t) company.frame(0.8);
  const SessionId id = company.guests.back().id;
  auto kept = company.all.snapshot(id);
  Sessions<HostTalk, Cpu<float>> on_cpu(learned.be, learned.models(), 2, lively);
  Store<HostTalk::State, Cpu<float>> moved(learned.be);
  download(gpu, kept, moved);
  const SessionId there = on_cpu.join(moved);
  std::set<std::int32_t> said;
  for (int t = 0; t < 20; ++t) {
    for (Index i = 0; i < Talk::frame_size; ++i) {
      const float x = static_cast<float>(rng.normal());
      company.all.hear(id).data()[i] = on_cpu.hear(there).data()[i] = x;
    }
    company.all.step();
    on_cpu.step();
    for (Index k = 0; k < 1 + Talk::voices; ++k) {
      CHECK(company.all.said(id)(k) == on_cpu.said(there)(k));
      said.insert(on_cpu.said(there)(k));
    }
  }
  CHECK(said.size() > 4);
  on_cpu.snapshot(there, moved);
  upload(gpu, moved, kept);
  const SessionId back = company.all.join(kept);
  std::fill_n(company.all.hear(back).data(), Talk::frame_size, 0.5f);
  std::fill_n(on_cpu.hear(there).data(), Talk::frame_size, 0.5f);
  company.all.step();
  on_cpu.step();
  for (Index k = 0; k < 1 + Talk::voices; ++k) CHECK(company.all.said(back)(k) == on_cpu.said(there)(k));
}
