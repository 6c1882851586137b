// A Moshi, its gradient and codes on CPU and GPU.
#pragma once

#include "agreement.cuh"
#include "laws/moshi_small.hpp"
#include "mttt/train/moshi_loss.hpp"

namespace mttt::testing {

/// Which Moshi; a type, for nvcc garbles configs as template arguments of classes around it.
struct SmallMoshi {
  static constexpr MoshiConfig config = moshi_small;
};

template <class T, class Which = SmallMoshi>
struct MoshiPair {
  using H = Cpu<T>;
  using D = Cuda<T>;
  using Model = Moshi<Which::config, H>;
  using DeviceModel = Moshi<Which::config, D>;
  static constexpr Index batch = 3, steps = 9;
  H cpu;
  D gpu;
  Rng rng{2};
  Store<typename Model::Params, H> params = laws::random_params<Model>(cpu, {.perturbation = 0.3}, rng);
  Store<typename Model::Params, H> grad{cpu}, fetched{cpu};
  Store<typename DeviceModel::Params, D> device_params{gpu}, device_grad{gpu};
  Streams<std::int32_t> codes = random_codes(cpu, batch, steps, rng);
  Streams<std::int32_t> device_codes = laws::detail::send(gpu, codes);
  double tolerance = laws::detail::agreement_of<T>(*params, batch* steps);

  MoshiPair() { upload(gpu, params, device_params); }
};

}  // namespace mttt::testing
